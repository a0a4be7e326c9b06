"""What a penalty sees of the parameters, and how its slope and its proximal step reach them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from spectral_jax import weights
from spectral_jax._transforms.leaves import changed, floats, moved
from spectral_jax.optim.penalties import Penalty

View: TypeAlias = Callable[[optax.Params], Sequence[Array]]


class Matrices(NamedTuple):
    """Weights with their signs."""

    penalty: Penalty
    view: View | None

    def blocks(self, params: PyTree) -> tuple[Array, ...]:
        return _seen(self.view or _all_matrices, floats(params))

    def pulled(self, updates: PyTree, params: PyTree, kept: Any, strength: Array) -> PyTree:
        """The updates and ``strength`` times the penalty's gradient."""
        slope = jax.grad(lambda p: self.penalty.value(self.blocks(p), kept))(floats(params))
        return changed(lambda u, p, c: u + strength.astype(c.dtype) * c, updates, params, slope)

    def shrunk(self, updates: PyTree, params: PyTree, kept: Any, size: Array) -> PyTree:
        """The updates that lead on to the proximal point of where they led."""
        assert self.penalty.prox is not None
        before, transposed = jax.vjp(self.blocks, moved(params, updates))
        after = self.penalty.prox(before, size, kept)
        steps = tuple(jnp.subtract(a, b) for a, b in zip(after, before, strict=True))
        # A view that only moves entries is undone by its transpose.
        (back,) = transposed(steps)
        return changed(lambda u, p, c: u + c, updates, params, back)


class Magnitudes(NamedTuple):
    """``|W|``: weights as the edges of a graph."""

    penalty: Penalty
    view: View | None

    def blocks(self, params: PyTree) -> tuple[Array, ...]:
        return self._read(jax.tree.map(jnp.abs, floats(params)))

    def pulled(self, updates: PyTree, params: PyTree, kept: Any, strength: Array) -> PyTree:
        """The updates and ``strength * c * sign(W)``, with ``c`` the slope in ``|W|``."""

        def pull(u, p, c):
            return u + strength.astype(c.dtype) * c * jnp.sign(p)

        return changed(pull, updates, params, self._slope(params, kept))

    def shrunk(self, updates: PyTree, params: PyTree, kept: Any, size: Array) -> PyTree:
        """The updates that lead on to where they led, nearer to zero by ``size * c``."""

        def shrink(u, p, c):
            w = p + u
            return jnp.sign(w) * jnp.maximum(jnp.abs(w) - size.astype(c.dtype) * c, 0) - p

        return changed(shrink, updates, params, self._slope(params, kept))

    def _slope(self, params: PyTree, kept: Any) -> PyTree:
        """In ``|W|``, not a subgradient: a weight at zero has one too, which keeps it there."""
        magnitudes = jax.tree.map(
            lambda p: jnp.maximum(jnp.abs(p), jnp.finfo(p.dtype).tiny), floats(params)
        )
        return jax.grad(lambda m: self.penalty.value(self._read(m), kept))(magnitudes)

    def _read(self, magnitudes: PyTree) -> tuple[Array, ...]:
        return _seen(self.view or _chain, magnitudes)


SIGHTS = {"matrices": Matrices, "magnitudes": Magnitudes}


def _seen(view: View, params: PyTree) -> tuple[Array, ...]:
    blocks = tuple(view(params))
    if not blocks:
        raise ValueError("view: it shows the penalty nothing; return at least one array")
    return blocks


def _all_matrices(params: PyTree) -> list[Array]:
    """By names and shapes alone: `weights.matrices` sees tied arrays outside of jit only."""
    leaves = weights.named_leaves(params)
    views = weights.plan(leaves, conv="flattened").views
    return [view.read(*(leaves[source] for source in view.sources)) for view in views]


def _chain(params: PyTree) -> tuple[Array, ...]:
    try:
        layout = weights.layout(params)
    except ValueError as error:
        hint = "view=lambda params: weights.graph_weights(params, layout)"
        raise ValueError(f"{error} ({hint})") from None
    return weights.graph_weights(params, layout)
