"""What a penalty must hold before anything is trained with it: a check of one just written.

* *shape*      the value is one floating number;
* *finite*     it is finite, and so is its gradient;
* *gradient*   its gradient is that of central differences in float64, and not zero everywhere;
               with a state, that of the value at the state held, or solved for anew;
* *jit*        the compiled value is the eager one;
* *vmap*       the values of two networks at once are those of each;
* *stack*      of matrices, one ``[1, m, n]`` counts as ``[m, n]``: groups come as ``[g, m, n]``;
* *halves*     weights in bfloat16 get finite updates in bfloat16;
* *scale*      value and gradient are finite for weights 1000 times as large and as small;
* *zeros*      the gradient is finite at weights that are all zero;
* *prox*       if there is one, no point is found that its definition would prefer.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from spectral_jax.optim.penalties import Penalty
from spectral_jax.optim.sight import (
    SIGHTS,
    Activations,
    Function,
    Sight,
    arguments,
    check_kind,
    started,
)

EXAMPLES = 12
CLOSE = 1e-6  # relative, in float64
# Of central differences: the step, and how close they are; coarse where each solves for a state.
FINE, COARSE = (1e-4, 1e-5), (1e-3, 1e-2)
# Of a value, as a part of it, divided by the step; where there may be nothing to penalise, 0 may be
# the difference of two ones.
ROUNDING = 1e-9
PROX_STEP = 0.3
TRACED = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)
DESCENTS = 200
# Objectives are compared to this part of them; where a state is solved for, to its tolerance.
PROX_SLACK, SOLVED_SLACK = 1e-5, 1e-2


class Held(NamedTuple):
    """A clause, and the input on which it holds."""

    clause: str
    input: str


class _Broken(Exception):
    """What does not hold, in words."""


def check_penalty(penalty: Penalty) -> tuple[Held, ...]:
    """Check a penalty on small networks, clause by clause; what held.

    Compiles a dozen small programs, in a few seconds. A penalty on activations is shown
    ``(features, outputs)`` of a network with one hidden layer, as the trainer does; one on the
    function is given that network.

    Raises ``ValueError``, in one line: which clause breaks on which input, how, and, of an error,
    in which line of the file that the value is written in.

    >>> from spectral_jax.optim import regulariser
    >>> @regulariser
    ... def unfinished(matrices):
    ...     return sum(jnp.sum(jnp.sign(w)) for w in matrices)
    >>> check_penalty(unfinished)
    Traceback (most recent call last):
    ValueError: gradient, on dense layers 5 x 4 and 4 x 3: it is 0 for every weight: rounding, sign,
    argmax, comparisons and stop_gradient have none
    """
    check_kind(penalty)
    held = []
    for case in _cases(penalty):
        for clause, check in CLAUSES.items():
            if not _applies(clause, case):
                continue
            try:
                check(case)
            except _Broken as broken:
                raise ValueError(f"{clause}, on {case.name}: {broken}") from None
            except Exception as error:  # whatever the code of somebody else raises
                raise ValueError(f"{clause}, on {case.name}: {_told(error, penalty)}") from error
            held.append(Held(clause, case.name))
    return tuple(held)


def _applies(clause: str, case: _Case) -> bool:
    if clause == "prox":
        return case.penalty.prox is not None
    return clause != "stack" or (case.penalty.sees == "matrices" and case.generic and case.dense)


@dataclass(frozen=True, eq=False)
class _Case:
    """A penalty on a small network: its value as a function of the parameters, compiled once."""

    name: str
    penalty: Penalty
    shapes: PyTree
    generic: bool  # matrices of one column may have nothing to penalise
    dense: bool = True

    def params(self, dtype: str, seed: int = 0) -> PyTree:
        rng = np.random.default_rng(seed)
        is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
        drawn = jax.tree.map(rng.standard_normal, self.shapes, is_leaf=is_shape)
        return _of_dtype(drawn, dtype)

    def by_hand(self, params: PyTree, kept: Any) -> Array:
        """The value, not compiled."""
        return _sight(self.penalty, params).value(params, kept)

    def value(self, params: PyTree, kept: Any) -> Array:
        """The value, compiled."""
        return self.both(params, kept)[0]

    def pull(self, params: PyTree, kept: Any) -> PyTree:
        """The gradient, as training adds it."""
        return self.both(params, kept)[1]

    @cached_property
    def kept(self) -> Callable[[PyTree], Any]:
        """The penalty's state for parameters."""

        def kept(params):
            sight = _sight(self.penalty, params)
            start = started(sight, params)[1]
            if self.penalty.refresh is None:
                return start
            return self.penalty.refresh(*arguments(sight, params)[0], start)

        return jax.jit(kept)

    @cached_property
    def both(self) -> Callable[[PyTree, Any], tuple[Array, PyTree]]:
        """`value` and `pull` in one program: to compile it takes most of the time of a check."""

        def both(params, kept):
            nothing = jax.tree.map(jnp.zeros_like, params)
            sight = _sight(self.penalty, params)
            pull = sight.pulled(nothing, params, kept, jnp.ones((), jnp.float32))
            return sight.value(params, kept), pull

        return jax.jit(both)


def _cases(penalty: Penalty) -> Iterator[_Case]:
    yield _Case("dense layers 5 x 4 and 4 x 3", penalty, _layers((5, 4), (4, 3)), True)
    yield _Case("dense layers 5 x 1 and 1 x 3", penalty, _layers((5, 1), (1, 3)), False)
    if penalty.sees == "matrices":
        # The groups come as one array [2, 18, 2]: here `w.T` is not `w.mT`.
        shapes = _layers((1, 1, 3, 4), (3, 3, 2, 4), (1, 1, 4, 3))
        yield _Case("convolutions 1 x 1, 3 x 3 in 2 groups, 1 x 1", penalty, shapes, True, False)


def _layers(*shapes: tuple[int, ...]) -> PyTree:
    return {str(i): {"kernel": shape, "bias": shape[-1:]} for i, shape in enumerate(shapes)}


def _sight(penalty: Penalty, params: PyTree) -> Sight:
    """What the penalty sees of these parameters, and of a batch in their dtype."""
    dtype = params["0"]["kernel"].dtype
    batch = {"x": jnp.asarray(np.random.default_rng(1).standard_normal((EXAMPLES, 5)), dtype)}
    if penalty.sees == "activations":
        return Activations(penalty, lambda params, batch: _network(params, batch["x"]), batch)
    if penalty.sees == "function":
        key = jax.random.key(2)
        return Function(penalty, lambda params, x: _network(params, x)[1], batch, key)
    return SIGHTS[penalty.sees](penalty, None)


def _network(params: PyTree, x: Array) -> tuple[Array, Array]:
    """The hidden layer and the outputs."""
    first, second = params["0"], params["1"]
    features = jnp.tanh(x @ first["kernel"] + first["bias"])
    return features, features @ second["kernel"] + second["bias"]


def _shape(case: _Case) -> None:
    params = case.params("float32")
    found = jax.eval_shape(case.by_hand, params, jax.eval_shape(case.kept, params))
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise _Broken(f"the value is a {type(found).__name__}: return one number, a JAX array")
    if found.shape != () or not jnp.issubdtype(found.dtype, jnp.floating):
        raise _Broken(f"the value is {found.dtype}{list(found.shape)}: return one floating number")


def _finite(case: _Case) -> None:
    params = case.params("float32")
    kept = case.kept(params)
    if not np.isfinite(case.value(params, kept)):
        raise _Broken(f"the value is {float(case.value(params, kept))}")
    _refuse_infinite(case.pull(params, kept))


def _gradient(case: _Case) -> None:
    with jax.enable_x64(True):
        params = case.params("float64")
        kept = case.kept(params)
        pull = case.pull(params, kept)
        if case.generic and _norm(pull) == 0:
            raise _Broken(
                "it is 0 for every weight: rounding, sign, argmax, comparisons and stop_gradient "
                "have none"
            )
        wrong = _difference(case, lambda p: case.value(p, kept), params, pull, *FINE)
        if wrong and case.penalty.refresh is not None:
            # What the value reads of the state may be what its gradient is right to leave out.
            wrong = _difference(case, lambda p: case.value(p, case.kept(p)), params, pull, *COARSE)
        if wrong:
            raise _Broken(wrong)


def _difference(
    case: _Case,
    value: Callable[[PyTree], Array],
    params: PyTree,
    pull: PyTree,
    step: float,
    close: float,
) -> str:
    """How the gradient differs from central differences, in words; empty where it does not."""
    rounding = ROUNDING * (abs(float(value(params))) + (not case.generic))
    for seed in range(1, 4):
        way = case.params("float64", seed)
        ahead, behind = (
            float(value(_moved(params, lambda p, w, s=s: p + s * w, way))) for s in (step, -step)
        )
        numeric, exact = (ahead - behind) / (2 * step), _inner(pull, way)
        if not abs(numeric - exact) <= close * _norm(pull) * _norm(way) + rounding:
            return f"along a random direction it is {exact:.6g}, and differences give {numeric:.6g}"
    return ""


def _jit(case: _Case) -> None:
    with jax.enable_x64(True):
        params = case.params("float64")
        kept = case.kept(params)
        _refuse_other("compiled", case.value(params, kept), case.by_hand(params, kept))


def _vmap(case: _Case) -> None:
    with jax.enable_x64(True):
        members = [case.params("float64", seed) for seed in range(2)]
        kept = [case.kept(params) for params in members]

        def of_both(*members):
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
            return jax.vmap(case.by_hand)(*stacked)

        pairs = [*zip(members, kept, strict=True)]
        together = jax.jit(of_both)(*pairs)
        alone = np.stack([case.value(*pair) for pair in pairs])
        _refuse_other("under vmap", together, alone)


def _stack(case: _Case) -> None:
    def stacked(params):
        seen = tuple(x[None] for x in _sight(penalty, params).blocks(params))
        kept = penalty.init(seen)
        if penalty.refresh is not None:
            kept = penalty.refresh(seen, kept)
        return penalty.value(seen, kept)

    with jax.enable_x64(True):
        params, penalty = case.params("float64"), case.penalty
        found, expected = jax.jit(stacked)(params), case.value(params, case.kept(params))
        close = CLOSE if penalty.refresh is None else SOLVED_SLACK
        if found.shape != () or not np.allclose(found, expected, rtol=close, atol=0):
            raise _Broken(
                f"of each [m, n] as [1, m, n] the value is {np.asarray(found)}, and otherwise "
                f"{expected}: work on the last two axes, w.mT and not w.T, axis=-2 and not axis=0"
            )


def _halves(case: _Case) -> None:
    params = case.params("bfloat16")
    pull = case.pull(params, case.kept(params))
    for leaf in jax.tree.leaves(pull):
        if leaf.dtype != jnp.bfloat16:
            raise _Broken(f"updates of bfloat16 weights are {leaf.dtype}")
    _refuse_infinite(pull)


def _scale(case: _Case) -> None:
    for factor in (1e-3, 1e3):
        params = _moved(case.params("float32"), lambda p: factor * p)  # noqa: B023
        kept = case.kept(params)
        if not np.isfinite(case.value(params, kept)):
            raise _Broken(f"of weights times {factor:g} the value is not finite")
        _refuse_infinite(case.pull(params, kept), f"of weights times {factor:g} ")


def _zeros(case: _Case) -> None:
    params = _moved(case.params("float32"), np.zeros_like)
    _refuse_infinite(
        case.pull(params, case.kept(params)),
        advice=": the derivative of a root or a norm at 0 is infinite; add a small number under it",
    )


def _prox(case: _Case) -> None:
    """Look for a better point: on the way back, and down from both ends of it."""
    with jax.enable_x64(True):
        params, penalty = case.params("float64"), case.penalty
        sight, kept = _sight(penalty, params), case.kept(params)
        assert not isinstance(sight, Function) and penalty.prox is not None
        before = jax.jit(sight.blocks)(params)
        after = tuple(jax.jit(penalty.prox)(before, jnp.asarray(PROX_STEP), kept))
        if [x.shape for x in after] != [x.shape for x in before]:
            raise _Broken("it returns other shapes than it is given")

        def objective(x):
            state = kept if penalty.refresh is None else penalty.refresh(x, kept)
            away = sum(jnp.sum((a - b) ** 2) for a, b in zip(x, before, strict=True)) / 2
            return PROX_STEP * penalty.value(x, jax.lax.stop_gradient(state)) + away

        found, least = _least(objective, before, after)
        slack = PROX_SLACK if penalty.refresh is None else SOLVED_SLACK
        if not least >= found - slack * abs(found):
            raise _Broken(
                f"with step = {PROX_STEP}, step value(x) + |x - w|^2 / 2 is {found:.6g} at the x "
                f"that it returns, and {least:.6g} at another one"
            )


def _least(
    objective: Callable[[Any], Array], before: Sequence[Array], after: Sequence[Array]
) -> tuple[float, float]:
    """The objective at ``after``, and the least that is found elsewhere."""
    both = jax.jit(jax.value_and_grad(objective))  # the loops are not compiled: that takes longer
    start, end = (tuple(map(np.asarray, blocks)) for blocks in (before, after))
    ways = [
        both(tuple(x + t * (w - x) for x, w in zip(end, start, strict=True)))[0]
        for t in np.linspace(-0.5, 1.5, 81)
    ]
    return float(both(end)[0]), min(
        float(np.min(ways)), _descended(both, start), _descended(both, end)
    )


def _descended(both: Callable[[Any], tuple[Array, Any]], start: tuple[np.ndarray, ...]) -> float:
    """The objective down its gradient, by steps that grow while they help and halve when not."""
    x, rate = start, 0.1
    value, slope = both(x)
    for _ in range(DESCENTS):
        further = tuple(a - rate * np.asarray(g) for a, g in zip(x, slope, strict=True))
        reached, there = both(further)
        better = bool(reached < value)
        if better:
            x, value, slope = further, reached, there
        rate *= 1.5 if better else 0.5
    return float(value)


CLAUSES: dict[str, Callable[[_Case], None]] = {
    "shape": _shape,
    "finite": _finite,
    "gradient": _gradient,
    "jit": _jit,
    "vmap": _vmap,
    "stack": _stack,
    "halves": _halves,
    "scale": _scale,
    "zeros": _zeros,
    "prox": _prox,
}


def _refuse_infinite(pull: PyTree, what: str = "", advice: str = "") -> None:
    for leaf in map(np.asarray, jax.tree.leaves(pull)):
        if not np.all(np.isfinite(leaf)):
            wrong = "NaN" if np.any(np.isnan(leaf)) else "infinite"
            raise _Broken(f"{what}the gradient is {wrong}{advice}")


def _refuse_other(how: str, found: Array, expected: Array | np.ndarray) -> None:
    if not np.allclose(found, expected, rtol=CLOSE, atol=0):
        raise _Broken(f"the value {how} is {np.asarray(found)}, and otherwise {expected}")


def _of_dtype(tree: PyTree, dtype: str) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def _moved(params: PyTree, function: Callable[..., np.ndarray], *others: PyTree) -> PyTree:
    """Other parameters, by NumPy: JAX would compile every operation on every shape."""
    dtype = str(params["0"]["kernel"].dtype)
    ours = (jax.tree.map(np.asarray, tree) for tree in (params, *others))
    return _of_dtype(jax.tree.map(function, *ours), dtype)


def _inner(a: PyTree, b: PyTree) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(sum(np.vdot(x, y) for x, y in pairs))


def _norm(tree: PyTree) -> float:
    return float(np.sqrt(_inner(tree, tree)))


def _told(error: Exception, penalty: Penalty) -> str:
    """The error's first line, and the line of the file in which the value is written."""
    code = getattr(inspect.unwrap(penalty.value), "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if code and frame.filename == code.co_filename]
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, TRACED):
        first = "NumPy, float() and if cannot see what JAX traces; use jax.numpy and jnp.where"
    where = f" ({code.co_filename}, line {lines[-1]})" if code and lines else ""
    return f"{type(error).__name__}: {first}{where}"
