"""Every public function keeps the shared contract, and the contract can fail."""

import importlib
import inspect
import os
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AxisType, PartitionSpec

import spectral_jax
from spectral_jax.linalg.precision import working
from tests.contract import CLAUSES, EXEMPT, Case, Degenerate, discover, public_functions

CASES = discover()
# Where numbers may be wrong, variants are looked at each time; their plumbing is the function's.
OF_VARIANTS = ("oracle", "scale", "degenerate")


def marks(case, clause):
    seldom = clause == "exports" or (case.is_variant and clause not in OF_VARIANTS)
    return [pytest.mark.slow] if seldom else []


PARAMETERS = [
    pytest.param(case, clause, id=f"{case.name}-{clause}", marks=marks(case, clause))
    for case in CASES.values()
    for clause in case.clauses()
]


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("case, clause", PARAMETERS)
def test_keeps_the_contract(case, clause):
    CLAUSES[clause](case)


def test_every_public_function_is_under_contract_or_exempt_with_a_reason():
    covered = {case.covers for case in CASES.values()}
    assert sorted(public_functions() - covered - set(EXEMPT)) == []
    assert all(EXEMPT.values())


def test_cases_and_exemptions_name_public_functions_once():
    covered = {case.covers for case in CASES.values()}
    assert sorted((covered | set(EXEMPT)) - public_functions()) == []
    assert sorted(covered & set(EXEMPT)) == []


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_oracle_knows_more_than_the_library_and_sees_its_inputs(case):
    """It calls nothing that it is to check, and no one answer is right for all inputs."""
    called = set()

    def note(frame, event, argument):
        called.add(frame.f_code.co_filename)

    with jax.enable_x64(True):
        inputs = [jax.tree.map(np.asarray, case.inputs("float64", seed)) for seed in range(3)]
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        answers = [jax.tree.leaves(case.oracle(*values)) for values in inputs]
    finally:
        sys.setprofile(before)
    assert [
        file for file in called if file.startswith(os.path.dirname(spectral_jax.__file__))
    ] == []
    first, *others = [np.concatenate([np.ravel(leaf) for leaf in answer]) for answer in answers]
    assert any(not np.array_equal(first, other) for other in others)


def test_functions_of_one_name_share_their_argument_order():
    """Swapping the ratio and the probability of a quantile gives a number, too."""
    places: dict[tuple[str, str], set[int]] = {}
    for dotted in public_functions():
        room, _, name = dotted.rpartition(".")
        function = getattr(importlib.import_module(f"spectral_jax.{room}"), name)
        for place, (argument, kind) in enumerate(inspect.signature(function).parameters.items()):
            if kind.kind is not inspect.Parameter.KEYWORD_ONLY:
                places.setdefault((name, argument), set()).add(place)
    assert [key for key, found in places.items() if len(found) > 1] == []


# The contract is itself under test: a sound toy passes, and each broken toy fails its clause.

SOUND = Case(
    name="toy.squared_norms",
    function=lambda x: jnp.sum(working(x) ** 2, axis=-1),
    make_inputs=lambda key, dtype: (jax.random.normal(key, (3, 4), dtype),),
    oracle=lambda x: np.einsum("ij,ij->i", x, x),
    degenerate={
        "empty": Degenerate((jnp.zeros((3, 0)),), lambda y: bool((y == 0).all())),
        "zero": Degenerate((jnp.zeros((3, 4)),), lambda y: bool((y == 0).all())),
    },
    degree=2,
    leading=True,
)


@jax.custom_batching.custom_vmap
def normalised_by_batch(x):
    return x / jnp.max(jnp.abs(x))


@normalised_by_batch.def_vmap
def _(axis_size, in_batched, x):
    return x / jnp.max(jnp.abs(x)), True


def summed_over_shards(x):
    if x.ndim == 2:
        return x
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("batch")
    total = jax.shard_map(
        lambda y: jax.lax.psum(y, "batch"), mesh=mesh, in_specs=spec, out_specs=PartitionSpec()
    )
    return jnp.broadcast_to(total(x), x.shape)


@jax.custom_vjp
def wrong_slope(x):
    return x * x


wrong_slope.defvjp(lambda x: (x * x, x), lambda x, y_bar: (3 * x * y_bar,))


def one_after_the_other(x):
    return jax.lax.map(jnp.sort, x)


only_on_a_cpu = Primitive("only_on_a_cpu")
only_on_a_cpu.def_abstract_eval(lambda x: x)
mlir.register_lowering(only_on_a_cpu, lambda context, x: [x], platform="cpu")


@pytest.mark.parametrize("clause", SOUND.clauses())
def test_a_sound_function_passes(clause):
    assert set(SOUND.clauses()) == set(CLAUSES)
    CLAUSES[clause](SOUND)


BROKEN = {
    "oracle": (lambda x: 1.001 * jnp.sum(x * x, axis=-1), "oracle, float32: relative error"),
    "jit": (
        lambda x: x + float(isinstance(x, jax.core.Tracer)),
        "jit against eager: relative error",
    ),
    "dtype": (lambda x: x.astype("float32"), "float64 in, \\['float32'\\] out"),
    "halves": (lambda x: jnp.sum(x * x, axis=-1), "bfloat16 in, \\['bfloat16'\\] out"),
    "scale": (lambda x: jnp.sum(x * x, axis=-1) + 1e-12, "scale 1e-15: relative error"),
    "compiles": (lambda x: jax.jit(lambda y: 2 * y)(x), "1 compilations on a second call"),
    "vmap": (normalised_by_batch, "vmap against loop: relative error"),
    "sharded": (summed_over_shards, "sharded against loop: relative error"),
    "exports": (lambda x: only_on_a_cpu.bind(x), "'only_on_a_cpu' not found for platform"),
    "gradient": (wrong_slope, "gradient: relative error"),
    "degenerate": (lambda x: x / jnp.sum(x), "degenerate input 'empty' breaks|'zero' breaks"),
}


@pytest.mark.parametrize("clause", CLAUSES)
def test_a_function_that_breaks_a_clause_fails_it(clause):
    function, message = BROKEN[clause]
    with pytest.raises((AssertionError, NotImplementedError), match=message):
        CLAUSES[clause](replace(SOUND, function=function))


def test_a_batch_that_every_device_computes_fails_the_sharded_clause():
    """One matrix after the other: right numbers, and no device is spared anything."""
    in_turn = replace(SOUND, function=one_after_the_other)
    with pytest.raises(AssertionError, match="not sharded"):
        CLAUSES["sharded"](in_turn)
    CLAUSES["sharded"](replace(in_turn, gathered="to sort one row at a time"))


def test_a_batch_that_is_gathered_on_the_way_fails_the_sharded_clause():
    gathered = replace(SOUND, function=lambda x: x + one_after_the_other(x))
    with pytest.raises(AssertionError, match="but for \\['all-gather'\\]"):
        CLAUSES["sharded"](gathered)


def test_implicit_promotion_fails_the_dtype_clause():
    mixed = replace(SOUND, function=lambda x: x * jnp.arange(4, dtype="float32"))
    with pytest.raises(ValueError, match="promotion path"):
        CLAUSES["dtype"](mixed)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: working(jnp.sum(x * x, axis=-1)), "computed in bfloat16: .*'mul'"),
        (
            lambda x: jnp.sum(working(x) ** 2, axis=-1) + jnp.finfo(x.dtype).eps,
            "take other steps: .*=0.0078125",
        ),
    ],
    ids=["squares", "tolerance"],
)
def test_what_is_computed_for_halves_and_not_as_in_float32_fails_the_halves_clause(
    function, message
):
    with pytest.raises(AssertionError, match=message):
        CLAUSES["halves"](replace(SOUND, function=function))


def test_complex_numbers_read_as_real_ones_fail_the_halves_clause():
    real_part = replace(SOUND, function=lambda x: jnp.sum(jnp.real(x).astype("float32"), axis=-1))
    with pytest.raises(AssertionError, match="taken for real"):
        CLAUSES["halves"](real_part)


def test_a_gradient_that_underflows_fails_the_scale_clause():
    norm = replace(SOUND, function=lambda x: jnp.sqrt(jnp.sum(x * x, axis=-1) + 1e-30), degree=1)
    with pytest.raises(AssertionError, match="scale 1e-30"):
        CLAUSES["scale"](norm)


def test_a_leading_axis_that_mixes_the_batch_fails_the_vmap_clause():
    mixes = replace(SOUND, function=lambda x: x / jnp.max(jnp.abs(x)))
    with pytest.raises(AssertionError, match="leading axis against loop"):
        CLAUSES["vmap"](mixes)


@pytest.mark.parametrize("clause", ["gradient", "degenerate"])
def test_a_nan_gradient_fails(clause):
    has_nan_slope = replace(
        SOUND,
        function=lambda x: jnp.linalg.norm(x - x[:1], axis=-1),
        degenerate={"zero": SOUND.degenerate["zero"]},
    )
    with pytest.raises(AssertionError, match="gradient is not finite"):
        CLAUSES[clause](has_nan_slope)


def test_a_degenerate_input_may_declare_that_it_has_no_gradient():
    zero = SOUND.degenerate["zero"]._replace(finite_gradient=False)
    norms = replace(
        SOUND, function=lambda x: jnp.linalg.norm(x, axis=-1), degenerate={"zero": zero}
    )
    CLAUSES["degenerate"](norms)
