"""The shared contract: what every public function of the library promises.

A function joins with one ``register(Case(...))`` in ``tests/cases/<room>.py``; ``CLAUSES`` are then
checked for it by ``tests/test_contract.py``. A case must hold

* *oracle*      agree with a float64 NumPy or SciPy reference, in float32 and in float64;
* *jit*         give the same eagerly as under ``jax.jit``;
* *dtype*       keep the dtype it was given, with float64 enabled too, and without silent promotion;
* *halves*      compute half types and integers in float32, and refuse complex numbers by name;
* *scale*       follow its declared homogeneity, gradient included, from 1e-30 to 1e30 in float32;
* *compiles*    compile nothing on a second call with new values of the same shapes;
* *vmap*        give the same as a loop, sharded over eight devices unless it takes ``leading``
                batch axes itself;
* *sharded*     give the same with the batch sharded over eight devices, and leave it there;
* *exports*     lower for cpu, cuda and tpu, which needs none of them;
* *gradient*    have the gradient that central finite differences have;
* *degenerate*  behave as declared on every declared degenerate input.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from typing import Any, NamedTuple, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import spectral_jax

Tree = Any
BATCH = 8
# Why a case is `gathered`: a loop over a sharded axis runs on every device.
IN_TURN = "a CPU takes the matrices of a stack through LAPACK in turn: linalg/lapack.py"
DTYPES = ("float32", "float64")
FLOATING = "real floating"
# Operations that round nothing.
EXACT = set(
    "abs broadcast_in_dim concatenate copy dynamic_slice gather max min neg pad reduce_max "
    "reduce_min reshape rev select_n sign slice sort split squeeze transpose".split()
)
PLATFORMS = ("cpu", "cuda", "tpu")
# Between devices; an all-reduce is left to loops that go on until every matrix is done.
MOVES_DATA = ("all-gather", "all-to-all", "collective-permute")
SIDE_DOOR = {
    "analysis",
    "cli",
    "compress",
    "factored",
    "nnx",
    "plots",
    "checkpoints",
}  # files in, pictures out: not pure functions of arrays


class Degenerate(NamedTuple):
    """A degenerate input, what must hold of the result, and whether the gradient stays finite."""

    inputs: tuple[Tree, ...]
    holds: Callable[[Tree], bool]
    finite_gradient: bool = True


@dataclass(frozen=True, eq=False)
class Case:
    """One public function under contract.

    ``name`` is ``room.function`` or ``room.function: variant``. ``function`` maps pytrees of
    floating arrays to a pytree of arrays; static options, integers and keys are bound in it.
    ``select`` picks what is determined (a value, not a residual or the sign of a vector) for the
    oracle, equality and gradient clauses. ``tolerance`` is relative to the largest magnitude of
    each expected leaf, as spectra want it.
    ``degree`` (a tree prefix of the selected result) says that inputs scaled by ``s`` scale it by
    ``s ** degree``; ``units`` are the inputs' own exponents where not all are 1. A case without a
    degree says in ``unscaled`` why. ``replaces`` marks results that take the place of weights, and
    so come back in a half dtype; ``exact_dtype`` says why a half dtype or integers cannot be given.
    ``recompiles`` and ``unbatched`` hold the reason why that clause cannot apply; ``gathered`` why
    a sharded batch ends on, or passes through, every device. Every case exports.
    """

    name: str
    function: Callable[..., Tree]
    make_inputs: Callable[[jax.Array, str], tuple[Tree, ...]]
    oracle: Callable[..., Tree]
    select: Callable[[Tree], Tree] = lambda result: result
    tolerance: Mapping[str, float] = field(
        default_factory=lambda: {"float32": 1e-5, "float64": 1e-11}
    )
    differentiable: bool = True
    gradient_tolerance: float = 1e-6
    degenerate: Mapping[str, Degenerate] = field(default_factory=dict)
    degree: Tree = None
    units: tuple[int, ...] = ()
    unscaled: str = ""
    replaces: bool = False
    exact_dtype: str = ""
    leading: bool = False
    unbatched: str = ""
    gathered: str = ""
    recompiles: str = ""

    @property
    def covers(self) -> str:
        return self.name.partition(":")[0]

    @property
    def is_variant(self) -> bool:
        return ":" in self.name

    def inputs(self, dtype: str, seed: int = 0) -> tuple[Tree, ...]:
        # Put on the device: `jnp.asarray` of an array of NumPy compiles a program for its shape.
        return jax.device_put(self.make_inputs(jax.random.key(seed), dtype))

    def value(self, *inputs: Tree) -> Tree:
        return self.select(self.function(*inputs))

    def clauses(self) -> tuple[str, ...]:
        """Name the clauses that apply to this case."""
        absent = {
            "halves": bool(self.exact_dtype),
            "scale": self.degree is None,
            "compiles": bool(self.recompiles),
            "vmap": bool(self.unbatched),
            "sharded": bool(self.unbatched),
            "gradient": not self.differentiable,
            "degenerate": not self.degenerate,
        }
        return tuple(clause for clause in CLAUSES if not absent.get(clause, False))


CASES: dict[str, Case] = {}
EXEMPT: dict[str, str] = {}


def register(case: Case) -> None:
    """Put a case under contract."""
    if case.name in CASES:
        raise ValueError(f"case {case.name!r} is registered twice; name the variant after a colon")
    CASES[case.name] = case


def exempt(name: str, reason: str) -> None:
    """Leave ``room.function`` out of the contract, and say where it is tested instead."""
    EXEMPT[name] = reason


def discover() -> dict[str, Case]:
    """Import every file of ``tests/cases`` and return the registered cases."""
    from tests import cases

    for module in pkgutil.iter_modules(cases.__path__):
        importlib.import_module(f"{cases.__name__}.{module.name}")
    return CASES


def public_functions() -> set[str]:
    """``room.function`` for each function that a room exports; those of a module that it exports
    are ``room.module.function``."""
    modules = {
        m.name: importlib.import_module(f"spectral_jax.{m.name}")
        for m in pkgutil.iter_modules(spectral_jax.__path__)
        if m.name not in SIDE_DOOR and not m.name.startswith("_")
    }
    exported = {
        f"{room}.{name}": getattr(module, name)
        for room, module in modules.items()
        for name in module.__all__
    }
    for dotted, thing in list(exported.items()):
        if inspect.ismodule(thing):
            exported |= {f"{dotted}.{name}": getattr(thing, name) for name in thing.__all__}
    return {dotted for dotted, thing in exported.items() if _is_function(thing)}


def _is_function(thing: object) -> bool:
    """Classes and type aliases are callable too, but promise nothing."""
    return callable(thing) and not inspect.isclass(thing) and get_origin(thing) is None


# Clauses


# Compiling is what the clauses cost, so they share one program per case and dtype; eager execution,
# which compiles every operation on its own, is left to the clauses where it is the point. Hence
# also the NumPy of inputs (tests/draws.py), selections and declarations.


@cache
def program(case: Case) -> Callable[..., Tree]:
    return jax.jit(case.function)


@cache
def batched_program(case: Case) -> Callable[..., Tree]:
    return jax.jit(jax.vmap(case.value))


@cache
def gradient_program(case: Case) -> Callable[..., Tree]:
    """The gradient, with respect to every input, of a fixed functional of the selected result."""

    def functional(inputs: tuple[Tree, ...]) -> jax.Array:
        leaves = jax.tree.leaves(case.value(*inputs))
        pairs = zip(leaves, _unit_normal(0, leaves), strict=True)
        return sum(jnp.vdot(weight, leaf) for leaf, weight in pairs)

    return jax.jit(jax.grad(functional))


def selected(case: Case, *inputs: Tree) -> Tree:
    return case.select(_on_host(program(case)(*inputs)))


def check_oracle(case: Case) -> None:
    for dtype in DTYPES:
        with jax.enable_x64(dtype == "float64"):
            inputs = case.inputs(dtype)
            expected = case.oracle(*_float64(inputs))
            result = selected(case, *inputs)
        assert_close(result, expected, case.tolerance[dtype], f"oracle, {dtype}")


def check_jit(case: Case) -> None:
    inputs = case.inputs("float32")
    eager, jitted = case.value(*inputs), selected(case, *inputs)
    assert_close(jitted, eager, case.tolerance["float32"], "jit against eager")


def check_dtype(case: Case) -> None:
    for dtype in DTYPES:
        with jax.enable_x64(True):
            inputs = case.inputs(dtype)
            with jax.numpy_dtype_promotion("strict"):
                found = _floating_dtypes(jax.eval_shape(case.function, *inputs))
        assert found == {dtype}, f"{dtype} in, {sorted(found)} out"


def check_halves(case: Case) -> None:
    """Numbers about weights in float32; what replaces weights, in the dtype of the weights.

    A half type has no program to compile if it does what float32 does: the same operations with the
    same constants (a tolerance is of the dtype computed in, not of the one given), none in halves.
    """
    single = case.inputs("float32")
    half = jax.jit(case.function).trace(*_typed(single, "bfloat16"))
    found = _floating_dtypes(half.out_info)
    allowed = {"float32", "bfloat16"} if case.replaces else {"float32"}
    assert found <= allowed, f"bfloat16 in, {sorted(found)} out"
    steps = list(_steps(half.jaxpr.jaxpr))
    rounded = {step.name for step in steps if step.to_half and step.name not in EXACT}
    assert not rounded, f"computed in bfloat16: {sorted(rounded)}"
    ours = _steps(program(case).trace(*single).jaxpr.jaxpr)
    differ = [
        (step.text, other.text)
        for step, other in zip_longest(steps, ours, fillvalue=NO_STEP)
        if step.text != other.text
    ]
    assert not differ, f"bfloat16 and float32 take other steps: {differ[0]}"
    jax.eval_shape(case.function, *_typed(single, "int32"))
    try:
        jax.eval_shape(case.function, *_typed(single, "complex64"))
    except ValueError as error:
        assert "complex" in str(error), f"complex numbers: {error}"
    else:
        raise AssertionError("complex numbers were taken for real ones")


def check_scale(case: Case) -> None:
    """``f(s A) = s^d f(A)``; the gradient, where all parts have one degree, ``s^(d - 1)``.

    As far as both fit into float32.
    """
    inputs = case.inputs("float32")
    units = case.units or (1,) * len(inputs)
    plain = selected(case, *inputs)
    degrees = _prefix(case.degree, plain)
    with_gradient = case.differentiable and len(set(degrees)) == 1 and set(units) == {1}
    slope = gradient_program(case)(inputs) if with_gradient else None
    reach = 30 / max(map(abs, (1, *degrees, *(d - 1 for d in degrees), *units)))
    for power in (-reach, -2 / 3 * reach, 2 / 3 * reach, reach):
        s = float(np.float32(10**power))
        factors = [np.float32(s**unit) for unit in units]
        scaled = tuple(map(_times, inputs, factors))
        result = selected(case, *scaled)
        tolerance = case.tolerance["float32"]
        assert_close(_divided(result, s, degrees), plain, tolerance, f"scale {s:.0e}")
        if with_gradient:
            found = _divided(
                gradient_program(case)(scaled), s, [degrees[0] - 1] * len(jax.tree.leaves(slope))
            )
            assert_close(found, jax.tree.leaves(slope), 10 * tolerance, f"gradient at {s:.0e}")


def check_compiles(case: Case) -> None:
    first, second = case.inputs("float32", seed=0), case.inputs("float32", seed=1)
    jax.block_until_ready(case.function(*first))
    with _counting_compilations() as compiled:
        jax.block_until_ready(case.function(*second))
    assert not compiled, f"{len(compiled)} compilations on a second call with the same shapes"


def check_vmap(case: Case) -> None:
    """Where one program takes the batch anyway, it is the sharded one: that saves a compilation."""
    with jax.enable_x64(True):
        batch, looped = _batch(case)
        _, sharded = _sharded(case)
        mapped = batched_program(case)(*batch) if case.leading else sharded
        assert_close(mapped, looped, case.tolerance["float64"], "vmap against loop")
        if case.leading:
            assert_close(sharded, looped, case.tolerance["float64"], "leading axis against loop")
    # A program that was traced before is mapped too, as in a scan under vmap, and where JAX has no
    # float64. What goes wrong there does while it is traced.
    inputs = _stack([case.inputs("float32", seed) for seed in range(2)])
    jax.eval_shape(jax.vmap(jax.jit(case.value)), *inputs)


def check_sharded(case: Case) -> None:
    """Equal numbers could also come from eight devices that each compute the whole batch."""
    with jax.enable_x64(True):
        _, looped = _batch(case)
        compiled, result = _sharded(case)
        assert_close(result, looped, case.tolerance["float64"], "sharded against loop")
    if not case.gathered:
        for leaf in jax.tree.leaves(result):
            sharding = leaf.sharding
            assert sharding.is_equivalent_to(_by_batch(), leaf.ndim), f"not sharded: {sharding}"
        moved = [operation for operation in MOVES_DATA if operation in compiled.as_text()]
        assert not moved, f"matrices of a batch need none of each other, but for {moved}"


def check_exports(case: Case) -> None:
    """At once, or for one platform after the other where each has a program of its own."""
    inputs = case.inputs("float32")
    try:
        jax.export.export(program(case), platforms=PLATFORMS)(*inputs)
    except NotImplementedError:  # an operation that one of them lacks, in a branch for another
        for platform in PLATFORMS:
            jax.export.export(program(case), platforms=[platform])(*inputs)


def check_gradient(case: Case, *, directions: int = 3, step: float = 1e-5) -> None:
    """Compare directional derivatives with central differences, relative to the gradient's norm."""
    with jax.enable_x64(True):
        inputs = _float64(case.inputs("float64"))
        gradient = gradient_program(case)(inputs)
        assert _finite(gradient), "the gradient is not finite"
        scale = max(1.0, np.sqrt(_inner(gradient, gradient)))
        for seed in range(directions):
            direction = _unit_normal(seed, inputs)
            forward, backward = (
                _float64(selected(case, *_moved(inputs, direction, distance)))
                for distance in (step, -step)
            )
            weights = _unit_normal(0, forward)
            numeric = (_inner(weights, forward) - _inner(weights, backward)) / (2 * step)
            error = abs(numeric - _inner(gradient, direction)) / scale
            assert error <= case.gradient_tolerance, f"gradient: relative error {error:.1e}"


def check_degenerate(case: Case) -> None:
    for name, (inputs, holds, finite_gradient) in case.degenerate.items():
        with jax.enable_x64(True):
            inputs = _float64(inputs)
            result = _on_host(program(case)(*inputs))
            assert holds(result), f"degenerate input {name!r} breaks its declaration: {result}"
            if case.differentiable and finite_gradient:
                gradient = gradient_program(case)(inputs)
                assert _finite(gradient), f"degenerate input {name!r}: the gradient is not finite"


CLAUSES: dict[str, Callable[[Case], None]] = {
    "oracle": check_oracle,
    "jit": check_jit,
    "dtype": check_dtype,
    "halves": check_halves,
    "scale": check_scale,
    "compiles": check_compiles,
    "vmap": check_vmap,
    "sharded": check_sharded,
    "exports": check_exports,
    "gradient": check_gradient,
    "degenerate": check_degenerate,
}


# Vocabulary of the clauses


def assert_close(got: Tree, expected: Tree, tolerance: float, what: str) -> None:
    """Compare trees leaf by leaf; errors are relative to the leaf's largest expected magnitude."""
    got_leaves, expected_leaves = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(got_leaves) == len(expected_leaves), f"{what}: {len(got_leaves)} results"
    for ours, theirs in zip(got_leaves, expected_leaves, strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, expected {theirs.shape}"
        scale = np.max(np.abs(theirs), initial=0.0) or 1.0
        error = np.max(np.abs(ours - theirs), initial=0.0) / scale
        assert error <= tolerance, f"{what}: relative error {error:.1e} > {tolerance:.1e}"


class _counting_compilations:
    """Collect the compile events of a block, inner jits included."""

    def __enter__(self) -> list[str]:
        self.events: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self.events

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            self.events.append(event)


@cache
def _batch(case: Case) -> tuple[Tree, Tree]:
    """Inputs stacked, and what each gives by itself; in float64."""
    singles = [case.inputs("float64", seed) for seed in range(BATCH)]
    looped = [selected(case, *inputs) for inputs in singles]
    return _stack(singles), _stack(looped)


@cache
def _sharded(case: Case) -> tuple[jax.stages.Compiled, Tree]:
    """The program for the batch on eight devices, and what it gives."""
    batch = jax.device_put(_batch(case)[0], _by_batch())
    compiled = (program if case.leading else batched_program)(case).lower(*batch).compile()
    result = compiled(*batch)
    return compiled, case.select(result) if case.leading else result


def _by_batch() -> NamedSharding:
    devices = jax.devices("cpu")[:BATCH]
    mesh = jax.make_mesh((BATCH,), ("batch",), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec("batch"))


def _stack(trees: list[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _moved(inputs: Tree, direction: Tree, distance: float) -> Tree:
    return jax.tree.map(lambda x, d: x + distance * d, inputs, direction)


def _unit_normal(seed: int, like: Tree) -> Tree:
    """A random direction of unit norm over the whole tree, in the dtypes of ``like``."""
    rng = np.random.default_rng(seed)
    draws = jax.tree.map(lambda x: rng.standard_normal(x.shape), like)
    norm = np.sqrt(_inner(draws, draws))
    return jax.tree.map(lambda draw, x: np.asarray(draw / norm, x.dtype), draws, like)


def _inner(a: Tree, b: Tree) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(sum(np.vdot(x, y) for x, y in pairs))


def _float64(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


class _Step(NamedTuple):
    """An operation of a traced function; ``text`` takes half types for float32."""

    name: str
    to_half: bool
    text: str


NO_STEP = _Step("", False, "no step")


def _steps(jaxpr: Jaxpr) -> Iterator[_Step]:
    """Every operation but conversions, in order, those of inner functions too."""
    for equation in jaxpr.eqns:
        parameters = jax.tree.leaves(list(equation.params.values()))
        inner = [x for x in parameters if isinstance(x, Jaxpr | ClosedJaxpr)]
        for called in inner:
            yield from _steps(called.jaxpr if isinstance(called, ClosedJaxpr) else called)
        name = equation.primitive.name
        if not inner and name != "convert_element_type":
            to_half = any(value.aval.dtype == jnp.bfloat16 for value in equation.outvars)
            operands = map(_operand, [*equation.invars, *equation.outvars])
            text = " ".join([name, *operands]).replace("bfloat16", "float32")
            yield _Step(name, to_half, text)


def _operand(value: Var | Literal) -> str:
    constant = f"={value.val}" if isinstance(value, Literal) else ""
    return f"{value.aval.dtype}{list(value.aval.shape)}{constant}"


def _floating_dtypes(tree: Tree) -> set[str]:
    return {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.isdtype(x.dtype, FLOATING)}


def _typed(tree: Tree, dtype: str) -> Tree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def _on_host(tree: Tree) -> Tree:
    return jax.tree.map(np.asarray, tree)


def _times(tree: Tree, factor: np.float32) -> Tree:
    return jax.tree.map(lambda x: np.asarray(x) * factor, tree)


def _prefix(degree: Tree, result: Tree) -> list[float]:
    """The degree of each leaf of the result, from one for all or one for each part."""
    if isinstance(degree, int | float):
        return [degree] * len(jax.tree.leaves(result))
    parts = zip(degree, result, strict=True)
    return [d for part, below in parts for d in _prefix(part, below)]


def _divided(result: Tree, s: float, degrees: list[float]) -> list[np.ndarray]:
    leaves = jax.tree.leaves(result)
    return [np.float64(leaf) / s**d for leaf, d in zip(leaves, degrees, strict=True)]


def _finite(tree: Tree) -> bool:
    return all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(tree))
