"""Flax NNX modules as pure functions: of their outputs, and of what flows inside them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache, partial, wraps
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from jaxtyping import Array, PyTree

from spectral_jax._choices import check_choice
from spectral_jax.linalg.precision import working

Mode: TypeAlias = Literal["eval", "train"]
Pool: TypeAlias = Literal["mean", "positions"]
# An error lists so many parts of a module; a large language model has thousands.
LISTED = 60


def from_nnx(module: nnx.Module, mode: Mode = "eval") -> tuple["PureModule", PyTree]:
    """``(model, params)`` of a module: ``model(params, inputs)`` is ``module(inputs)``.

    ``params`` is a nested dict of the module's ``nnx.Param`` arrays. Everything else, such as the
    running statistics of batch norm, is held by ``model`` at its present values. The module itself
    is left as it is. In mode "eval" dropout is off and batch norm uses its running statistics; in
    mode "train" the losses of examples depend on each other and have no curvature of a mean
    (`curvature.check` refuses them).

    ``model`` is static: programs compiled for it serve all parameters, but not another ``from_nnx``
    of the module.

    >>> model, params = from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> sorted(params), model(params, jnp.zeros((5, 2))).shape
    (['bias', 'kernel'], (5, 3))
    """
    definition, *states = nnx.split(_in_mode(module, mode), nnx.Param, ...)
    return PureModule(definition, *states), nnx.to_pure_dict(states[0])


@dataclasses.dataclass(frozen=True, eq=False)
class PureModule:
    """A module without its parameters, to call with them; see `from_nnx`."""

    definition: Any
    variables: Any
    others: Any

    def __call__(self, params: PyTree, inputs: Any) -> Array:
        """The outputs of the module with these parameters."""
        state = nnx.clone(self.variables)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.definition, state, self.others, copy=True)(inputs)


def tap(
    module: nnx.Module,
    points: str | Mapping[str, str],
    *,
    pool: Pool | None = "mean",
    mode: Mode = "eval",
) -> "Tapped":
    """``features(params, inputs)``: what flows into or out of parts of a module.

    The *penultimate features* of a network are the input of its last layer, ``"head:input"``. They
    are not always the output of another part: where the activation is a plain function, such as
    ``nnx.relu``, the part before gives what has not been through it yet.

    Args:
      points: one of them, for an array, or several under names that you choose, for a dict of
        arrays, all from one forward pass. ``"blocks.0"`` is the output of the part that is
        ``module.blocks[0]``, ``"head:input"`` the first argument of ``module.head``,
        ``"embed.attend:input"`` that of another method, and ``""`` the output of the module.
      pool: what becomes of the axes between the first (examples) and the last (features), as
        images and sequences have them. "mean": the mean over positions, ``[b, *positions, p]`` to
        ``[b, p]``, in float32 for half types. "positions": a row for every position,
        ``[b * positions, p]``; repeat labels as often. None: arrays, or trees, as they are.
      mode: as in `from_nnx`.

    ``params`` is the dict of `from_nnx`, or the module itself as it is by then. A dict may hold
    running statistics too, ``nnx.to_pure_dict(nnx.state(module))``; what it does not hold stays as
    it was when tapped. ``features`` is static: programs compiled for it serve all parameters.

    Works under ``jit``, ``vmap`` and ``grad``, and for parts inside ``nnx.remat``, ``nnx.scan`` and
    ``nnx.vmap``; those of the last two come with their layers as a leading axis. Raises
    ``ValueError`` for a part that is not there (with those that are) and, when called, for one that
    is called not at all or several times, or is no array with an axis of examples and one of
    features.

    >>> net = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu,
    ...                      nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
    >>> features = tap(net, {"penultimate": "layers.2:input", "outputs": ""})
    >>> {name: x.shape for name, x in features(net, jnp.ones((5, 4))).items()}
    {'penultimate': (5, 3), 'outputs': (5, 2)}
    """
    check_choice(("mean", "positions", None), pool=pool)
    if not isinstance(module, nnx.Module):
        raise ValueError(f"module is a {type(module).__name__}: pass an nnx.Module")
    texts = points.values() if isinstance(points, Mapping) else (points,)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"points={points!r}: pass a point, or points by names of your own")
    module = _in_mode(module, mode)
    named = {"": points} if isinstance(points, str) else points
    parsed = {name: point_of(module, text) for name, text in named.items()}
    return Tapped(*nnx.split(module), parsed, pool, isinstance(points, str))


class Point(NamedTuple):
    """A part of a module, by its path, and which side of it."""

    path: str
    side: str


@dataclasses.dataclass(frozen=True, eq=False)
class Tapped:
    """A module as the function that gives what flows inside it; see `tap`."""

    definition: Any
    state: Any
    points: dict[str, Point]
    pool: Pool | None
    single: bool

    def __call__(self, params: PyTree | nnx.Module, inputs: Any) -> Array | dict[str, Array]:
        """What flows at the points for these inputs, with these parameters."""
        if isinstance(params, nnx.Module):
            params = nnx.to_pure_dict(nnx.state(params))
        state = nnx.clone(self.state)
        nnx.replace_by_pure_dict(state, params)
        merged = nnx.merge(self.definition, state, copy=True)
        _, found = values_at(merged, self.points, inputs, pool=self.pool)
        return found[""] if self.single else found


def point_of(module: nnx.Module, text: str) -> Point:
    """The point of `tap` that a text names; ``ValueError`` if the module has none such."""
    path, _, side = text.replace("/", ".").partition(":")
    if side not in ("", "input", "output"):
        raise ValueError(f"point {text!r}: behind the colon choose 'input' or 'output'")
    try:
        _part(module, path)
    except (AttributeError, LookupError, TypeError):
        known = [".".join(map(str, path)) for path, part in nnx.iter_modules(module) if path]
        entries = [name for name in known if name.startswith(f"{path}.")]
        close = entries[:1] or get_close_matches(path, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
        raise ValueError(
            f"point {text!r}: {type(module).__name__} has no part {path!r}: {hint}"
            f"It has {', '.join(known[:LISTED])}{more}"
        ) from None
    return Point(path, side or "output")


def values_at(
    module: nnx.Module, points: Mapping[str, Point], inputs: Any, *, pool: Pool | None, **options
) -> tuple[Any, dict[str, Array]]:
    """The outputs, and what flows at the points, of a module made in the program that calls this.

    The module is changed: its parts record, in ``nnx.Intermediate``. ``options`` go to its call.
    """
    parts = {name: _part(module, point.path) for name, point in points.items()}
    for part, method in parts.values():
        if not hasattr(getattr(part, method), "records"):
            # Python looks for ``__call__`` in the class, not in the object.
            part.__class__ = _recording(type(part), method)
    try:
        outputs = module(inputs, **options)
    except TraceContextError as error:
        raise ValueError(
            "a tapped part is called inside a transformation of jax, which lets no record out: "
            "transform with nnx (nnx.remat, nnx.scan, nnx.vmap), or tap a part around it"
        ) from error
    return outputs, {name: _seen(*parts[name], point, pool) for name, point in points.items()}


def _in_mode(module: nnx.Module, mode: Mode) -> nnx.Module:
    """A copy of the module in this mode."""
    check_choice(("eval", "train"), mode=mode)
    module = nnx.clone(module)
    if mode == "eval":
        module.eval()
    else:
        module.train()
    return module


def _part(module: nnx.Module, path: str) -> tuple[nnx.Module, str]:
    """The module at a path, and which of its methods is meant."""
    node: Any = module
    for name in path.split(".") if path else ():
        node = node[int(name)] if name.isdigit() else getattr(node, name)
    if inspect.ismethod(node) and isinstance(node.__self__, nnx.Module):
        return node.__self__, node.__name__
    if not isinstance(node, nnx.Module) or not callable(node):
        raise LookupError(path)
    return node, "__call__"


@cache
def _recording(kind: type[nnx.Module], method: str) -> type[nnx.Module]:
    """The class, with a method that keeps what it is given and what it returns.

    It keeps them in a variable of the module, which the transformations of nnx carry outside.
    """
    call: Callable[..., Any] = getattr(kind, method)

    @wraps(call)
    def recorded(self, *args, **options):
        outputs = call(self, *args, **options)
        first = next(iter((*args, *options.values())), None)
        # The last is a number, which nnx.scan and nnx.vmap stack as they stack the rest.
        record = first, outputs, jnp.zeros(())
        setattr(self, _record(method), nnx.Intermediate((*_records(self, method), record)))
        return outputs

    recorded.records = True  # type: ignore[attr-defined]
    return type(kind.__name__, (kind,), {method: recorded})


def _record(method: str) -> str:
    return f"_seen_by_{method.strip('_')}"


def _records(part: nnx.Module, method: str) -> tuple[Any, ...]:
    kept = getattr(part, _record(method), None)
    return () if kept is None else kept.get_value()


def _seen(part: nnx.Module, method: str, point: Point, pool: Pool | None) -> Any:
    """What was recorded at a point, pooled."""
    name, records = f"point {':'.join(point)!r}", _records(part, method)
    if len(records) != 1:
        raise ValueError(
            f"{name}: the part is called {len(records)} times in a forward pass: name one that is "
            "called once, or write a function of (params, inputs) in the place of tap"
        )
    given, outputs, layers = records[0]
    seen = given if point.side == "input" else outputs
    if pool is None:
        return seen
    pooled = partial(_pooled, name, pool)
    for _ in range(layers.ndim):
        pooled = jax.vmap(pooled)
    return pooled(seen)


def _pooled(name: str, pool: Pool, x: Any) -> Array:
    """Rows of features, ``[b, p]`` or ``[b * positions, p]``, from ``[b, *positions, p]``."""
    if not hasattr(x, "shape") or x.ndim < 2:
        raise ValueError(
            f"{name} is {jax.tree.map(jnp.shape, x)}: rows of features are of one array "
            "[b, *positions, p]; pool=None gives it as it is"
        )
    if x.ndim == 2:
        return x
    if pool == "positions":
        return x.reshape(-1, x.shape[-1])
    return jnp.mean(working(x, name), axis=tuple(range(1, x.ndim - 1)))
