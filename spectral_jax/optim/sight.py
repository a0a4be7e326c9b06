"""What a penalty sees of the parameters, and how its gradient and proximal step reach them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from spectral_jax import weights
from spectral_jax._transforms.leaves import changed, floats, moved, refuse_codes
from spectral_jax.linalg.arguments import check_key
from spectral_jax.optim.penalties import Penalty

View: TypeAlias = Callable[[optax.Params], Sequence[Array]]
BatchView: TypeAlias = Callable[[optax.Params, Any], Sequence[Array]]
Apply: TypeAlias = Callable[[optax.Params, Any], Any]


class Matrices(NamedTuple):
    """A penalty that sees the weights with their signs."""

    penalty: Penalty
    view: View | None

    def blocks(self, params: PyTree) -> tuple[Array, ...]:
        return self._read(params)(floats(params))

    def value(self, params: PyTree, kept: Any) -> Array:
        return self.penalty.value(self.blocks(params), kept)

    def pulled(self, updates: PyTree, params: PyTree, kept: Any, strength: Array) -> PyTree:
        """The updates plus ``strength`` times the penalty's gradient."""
        read = self._read(params)
        slope = jax.grad(lambda p: self.penalty.value(read(p), kept))(floats(params))
        return _plus(updates, params, strength, slope)

    def shrunk(self, updates: PyTree, params: PyTree, kept: Any, size: Array) -> PyTree:
        """The updates that lead to the proximal point of the weights after the given updates."""
        assert self.penalty.prox is not None
        before, transposed = jax.vjp(self._read(params), moved(params, updates))
        after = self.penalty.prox(before, size, kept)
        steps = tuple(jnp.subtract(a, b) for a, b in zip(after, before, strict=True))
        # The view only selects and rearranges entries: its transpose puts the changes back.
        (back,) = transposed(steps)
        return changed(lambda u, p, c: u + c, updates, params, back)

    def _read(self, params: PyTree) -> Callable[[PyTree], tuple[Array, ...]]:
        shown = self.view or _all_matrices(params)
        return lambda moved: _seen(shown(moved))


class Magnitudes(NamedTuple):
    """A penalty that sees ``|W|``: the weights as the edges of a graph."""

    penalty: Penalty
    view: View | None

    def blocks(self, params: PyTree) -> tuple[Array, ...]:
        return self._read(params)(jax.tree.map(jnp.abs, floats(params)))

    def value(self, params: PyTree, kept: Any) -> Array:
        return self.penalty.value(self.blocks(params), kept)

    def pulled(self, updates: PyTree, params: PyTree, kept: Any, strength: Array) -> PyTree:
        """The updates plus ``strength * c * sign(W)``, with ``c`` the slope in ``|W|``."""

        def pull(u, p, c):
            return u + strength.astype(c.dtype) * c * jnp.sign(p)

        return changed(pull, updates, params, self._slope(params, kept))

    def shrunk(self, updates: PyTree, params: PyTree, kept: Any, size: Array) -> PyTree:
        """The updates that also move the weights they lead to by ``size * c`` towards zero.

        A weight that would pass zero stops there: the soft threshold.
        """

        def shrink(u, p, c):
            w = p + u
            return jnp.sign(w) * jnp.maximum(jnp.abs(w) - size.astype(c.dtype) * c, 0) - p

        return changed(shrink, updates, params, self._slope(params, kept))

    def _slope(self, params: PyTree, kept: Any) -> PyTree:
        """The derivative in ``|W|``, also of weights at 0, where one in ``W`` does not exist.

        It is what keeps a weight at 0 in proximal mode. Magnitudes are raised to the smallest
        positive number: a norm over kernel positions has no derivative at 0.
        """
        magnitudes = jax.tree.map(
            lambda p: jnp.maximum(jnp.abs(p), jnp.finfo(p.dtype).tiny), floats(params)
        )
        read = self._read(params)
        return jax.grad(lambda m: self.penalty.value(read(m), kept))(magnitudes)

    def _read(self, params: PyTree) -> Callable[[PyTree], tuple[Array, ...]]:
        shown = self.view or _chain(params)
        return lambda magnitudes: _seen(shown(magnitudes))


class Activations(NamedTuple):
    """A penalty that sees what the network computes of a batch."""

    penalty: Penalty
    view: BatchView
    batch: PyTree = None

    def blocks(self, params: PyTree) -> tuple[Array, ...]:
        return _seen(self.view(params, self.batch))

    def value(self, params: PyTree, kept: Any) -> Array:
        return self.penalty.value(self.blocks(params), kept)

    def pulled(self, updates: PyTree, params: PyTree, kept: Any, strength: Array) -> PyTree:
        """The updates plus ``strength`` times the penalty's gradient."""
        slope = _slope_through_network(lambda whole: self.value(whole, kept), params)
        return _plus(updates, params, strength, slope)


class Function(NamedTuple):
    """A penalty that sees the network as a function, to differentiate it."""

    penalty: Penalty
    apply: Apply | None
    batch: PyTree = None
    key: Array | None = None

    def arguments(self, params: PyTree) -> tuple[Any, ...]:
        """What the penalty's functions are given, before its state."""
        return self.apply, params, self.batch, self.key

    def value(self, params: PyTree, kept: Any) -> Array:
        keeps = () if self.penalty.refresh is None else (kept,)
        return self.penalty.value(*self.arguments(params), *keeps)

    def pulled(self, updates: PyTree, params: PyTree, kept: Any, strength: Array) -> PyTree:
        """The updates plus ``strength`` times the penalty's gradient."""
        slope = _slope_through_network(lambda whole: self.value(whole, kept), params)
        return _plus(updates, params, strength, slope)


Sight: TypeAlias = Matrices | Magnitudes | Activations | Function
SIGHTS = {
    "matrices": Matrices,
    "magnitudes": Magnitudes,
    "activations": Activations,
    "function": Function,
}


def check_kind(penalty: Penalty) -> None:
    """Raise ``ValueError`` for an unknown kind, and for what a penalty of its kind would ignore."""
    sees = penalty.sees
    if sees not in SIGHTS:
        raise ValueError(f"Penalty(sees={sees!r}): choose one of {sorted(SIGHTS)}")
    if sees != "matrices" and penalty.prox is not None:
        raise ValueError(
            f"Penalty(prox=...): one on {sees} would ignore it; write the value on matrices"
        )
    if penalty.refresh is not None:
        return
    if penalty.staleness is not None:
        raise ValueError("Penalty(staleness=...): without refresh= it would be ignored; pass both")
    if sees == "function" and penalty.init is not Penalty._field_defaults["init"]:
        raise ValueError(
            "Penalty(init=...): one on the function keeps a state only with refresh=; pass both"
        )


def started(sight: Sight, params: PyTree) -> tuple[jnp.dtype, Any]:
    """The dtype of the penalty's numbers, and its state before the first update."""
    if isinstance(sight, Matrices | Magnitudes):
        refuse_codes(params)
    else:  # there is no batch yet
        shown = params if isinstance(sight, Function) else ()
        return jnp.result_type(*jax.tree.leaves(floats(params))), sight.penalty.init(shown)
    blocks = sight.blocks(params)
    return blocks[0].dtype, sight.penalty.init(blocks)


def arguments(sight: Sight, params: PyTree) -> tuple[tuple[Any, ...], PyTree]:
    """What a refresh is given before the state, and what of it must be finite."""
    if isinstance(sight, Function):
        return sight.arguments(params), floats(params)
    blocks = sight.blocks(params)
    return (blocks,), blocks


def looking_at(sight: Sight, *, batch: PyTree, key: Array | None, apply: Apply | None) -> Sight:
    """The sight with what it looks at in this step, of what it looks at; ValueError without."""
    if isinstance(sight, Activations):
        if batch is None:
            raise ValueError(
                "the penalty looks at a batch: call update(updates, state, params, batch=batch)"
            )
        return sight._replace(batch=batch)
    if isinstance(sight, Function):
        given = {"apply": sight.apply if apply is None else apply, "batch": batch, "key": key}
        missing = ", ".join(f"{name}={name}" for name, value in given.items() if value is None)
        if missing:
            raise ValueError(
                "the penalty differentiates the network: call update(updates, state, params, "
                f"{missing}); apply may be an option of spectral_penalty as well"
            )
        check_key(key, draws="the penalty draws probes")
        return sight._replace(**given)
    return sight


def _plus(updates: PyTree, params: PyTree, strength: Array, slope: PyTree) -> PyTree:
    return changed(lambda u, p, c: u + strength.astype(c.dtype) * c, updates, params, slope)


def _slope_through_network(value: Callable[[PyTree], Array], params: PyTree) -> PyTree:
    """The gradient in the floating leaves of what is given all leaves, in their own dtypes."""

    def of_floats(moved: PyTree) -> Array:
        whole = jax.tree.map(
            lambda own, given: given if own is None else own.astype(given.dtype),
            moved,
            params,
            is_leaf=lambda x: x is None,
        )
        return value(whole)

    return jax.grad(of_floats)(floats(params))


def _seen(shown: Sequence[Array]) -> tuple[Array, ...]:
    blocks = tuple(shown)
    if not blocks:
        raise ValueError("view: it shows the penalty nothing; return at least one array")
    return blocks


def _all_matrices(params: PyTree) -> View:
    """The matrices of `weights.plan`, which goes by names, shapes and dtypes as they are stored.

    `weights.matrices` would also find tied arrays, but only outside of ``jit``: the penalty must
    see the same inside and outside.
    """
    views = weights.plan(weights.named_leaves(params), conv="flattened").views

    def shown(moved: PyTree) -> list[Array]:
        leaves = weights.named_leaves(moved)
        return [view.read(*(leaves[source] for source in view.sources)) for view in views]

    return shown


def _chain(params: PyTree) -> View:
    try:
        layout = weights.layout(params)
    except ValueError as error:
        hint = "view=lambda params: weights.graph_weights(params, layout)"
        raise ValueError(f"{error} ({hint})") from None
    return lambda magnitudes: weights.graph_weights(magnitudes, layout)
