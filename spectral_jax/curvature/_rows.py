"""The matrix ``J`` whose ``J^T J`` is a Gauss-Newton or a Fisher matrix, by its rows."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from spectral_jax.curvature._batches import Model
from spectral_jax.curvature._subset import Subset
from spectral_jax.curvature.losses import Loss

# The chosen leaves of the parameters, and the others.
Parts: TypeAlias = tuple[list[Array], list[Any]]
Root: TypeAlias = Literal["hessian", "gradient"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """A row per example, position and column of a root of the loss's curvature in the outputs.

    The row is ``sqrt(share) R_k^T df/dtheta``. ``root`` says which root: ``hessian`` is ``R`` with
    ``R R^T`` the loss's Hessian, of ``loss.rank(c)`` columns; ``gradient`` is one column, the
    gradient at the given targets. ``subset`` are the parameters ``theta``. Static: functions, no
    arrays.
    """

    model: Model
    loss: Loss
    root: Root
    subset: Subset

    def outputs(self, chosen: list[Array], others: list[Any], inputs: PyTree) -> Array:
        """Of the model."""
        return self.model(self.subset.rebuild(chosen, others), inputs)

    def columns(self, c: int) -> int:
        """The number of columns of the root for ``c`` outputs."""
        return self.loss.rank(c) if self.root == "hessian" else 1

    def weighted(
        self, outputs: Array, targets: Array, shares: Array, y: Float[Array, "n *positions r"]
    ) -> Float[Array, "n *positions c"]:
        """``sqrt(share) R y``: what flows back from outputs into a combination of rows."""
        if self.root == "hessian":
            back = self.loss.root_product(outputs, targets, y)
        else:
            back = self.loss.gradient(outputs, targets) * y
        return jnp.sqrt(shares)[..., None] * back

    def cotangents(
        self, outputs: Array, targets: Array, shares: Array
    ) -> Float[Array, "k n *positions c"]:
        """What flows back for each of the ``k`` rows of an example."""
        r = self.columns(outputs.shape[-1])
        items = outputs.shape[1:-1]
        units = jnp.eye(prod(items) * r, dtype=shares.dtype).reshape(-1, *items, r)

        def one(unit: Array) -> Array:
            y = jnp.broadcast_to(unit, (len(outputs), *unit.shape))
            return self.weighted(outputs, targets, shares, y)

        return jax.vmap(one)(units)

    def gradients(
        self, params: Parts, data: tuple[PyTree, PyTree], shares: Array
    ) -> Float[Array, "n k p"]:
        """The rows of each example, formed."""
        chosen, others = params

        def single(inputs: PyTree, targets: PyTree, shares: Array) -> Array:
            one = jax.tree.map(lambda x: x[None], (inputs, targets))
            outputs, pull_back = jax.vjp(lambda c: self.outputs(c, others, one[0]), chosen)
            back = self.cotangents(outputs, one[1], shares[None]).astype(outputs.dtype)
            return jax.vmap(lambda back: ravel_pytree(pull_back(back)[0])[0])(back)

        return jax.vmap(single)(*data, shares)

    def combinations(
        self,
        params: Parts,
        data: tuple[PyTree, PyTree],
        shares: Array,
        y: Float[Array, "combinations n *positions r"],
    ) -> Float[Array, "combinations p"]:
        """``J^T y`` for some combinations of all rows."""
        chosen, others = params
        outputs, pull_back = jax.vjp(lambda c: self.outputs(c, others, data[0]), chosen)

        def one(y: Array) -> Array:
            back = self.weighted(outputs, data[1], shares, y).astype(outputs.dtype)
            return ravel_pytree(pull_back(back)[0])[0]

        return jax.lax.map(one, y)
