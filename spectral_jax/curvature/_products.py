"""Products with curvature matrices: what one micro-batch adds, and the sum over all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from spectral_jax.curvature._batches import Layout, Model, add_up, take
from spectral_jax.curvature._subset import Subset
from spectral_jax.curvature.losses import Loss, inner
from spectral_jax.linalg.convolutions import fast_convolutions
from spectral_jax.linalg.operators import floating_dtype
from spectral_jax.linalg.precision import unit_of

Leaves = list[Array]
Tree = Callable[[Leaves], PyTree]


class Part(NamedTuple):
    """A micro-batch, the shares of its items, and the key of draws."""

    batch: Any
    shares: Array
    key: Any


@runtime_checkable
class Term(Protocol):
    """What a micro-batch adds to a product: static and hashable."""

    def __call__(self, tree: Tree, at: Leaves, v: Leaves, part: Part) -> Leaves:
        """``sum_i shares_i h_i v`` at the parameters ``tree(at)``, for a tangent of ``at``."""


@dataclasses.dataclass(frozen=True)
class MeanProduct:
    """The static part of an operator that is a mean over examples."""

    term: Term
    subset: Subset
    layout: Layout

    def __call__(self, data: Any, x: Array) -> Array:
        return _mean_product(self, data, x)


@dataclasses.dataclass(frozen=True)
class HessianTerm:
    """Of ``loss(params, batch)``, which gives one number an example or their mean."""

    loss: Callable[[Any, Any], Array]
    method: str

    def __call__(self, tree: Tree, at: Leaves, v: Leaves, part: Part) -> Leaves:
        def mean(at: Leaves) -> Array:
            values = jnp.asarray(self.loss(tree(at), part.batch), part.shares.dtype)
            return jnp.sum(part.shares * values)

        gradient = jax.grad(mean)
        if self.method == "forward":
            return jax.jvp(gradient, (at,), (v,))[1]
        if self.method == "reverse":
            return jax.vjp(gradient, at)[1](v)[0]  # a symmetric matrix is its own transpose
        return difference(gradient, at, v)


@dataclasses.dataclass(frozen=True)
class OutputsTerm:
    """``J^T B J v`` with a matrix ``B`` on the outputs of each item, of the given ``kind``.

    "hessian": of the loss. "outer": the gradient times itself. "sampled": that, averaged over
    ``samples`` draws of targets.
    """

    model: Model
    loss: Loss
    kind: str
    method: str
    samples: int = 1

    def __call__(self, tree: Tree, at: Leaves, v: Leaves, part: Part) -> Leaves:
        inputs, targets, index = part.batch
        outputs, tangents, pull_back = linearized(
            lambda at: self.model(tree(at), inputs), at, v, self.method
        )
        if self.kind == "hessian":
            curved = self.loss.hessian_product(outputs, targets, tangents)
        elif self.kind == "outer":
            curved = self._outer(outputs, targets, tangents)
        else:
            curved = self._sampled(part, outputs, tangents)
        return pull_back((part.shares[..., None] * curved).astype(outputs.dtype))

    def _outer(self, outputs: Array, targets: Array, tangents: Array) -> Array:
        gradient = self.loss.gradient(outputs, targets)
        return gradient * inner(gradient, tangents.astype(gradient.dtype))

    def _sampled(self, part: Part, outputs: Array, tangents: Array) -> Array:
        """Every draw of every example has a key of its own, whatever the batch it comes in."""
        _, given, index = part.batch
        at = jax.lax.stop_gradient(outputs)

        def draw(total: Array, s: Array) -> tuple[Array, None]:
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(part.key, i), s))(index)
            targets = jax.vmap(self.loss.sample)(keys, at, given)
            return total + self._outer(outputs, targets, tangents) / self.samples, None

        zero = jnp.zeros(outputs.shape, floating_dtype(outputs))
        return jax.lax.scan(draw, zero, jnp.arange(self.samples))[0]


@dataclasses.dataclass(frozen=True)
class JacobianProduct:
    """The static part of the Jacobian of outputs ``[n, *positions, c]``."""

    model: Model
    subset: Subset
    layout: Layout
    outputs: tuple[int, ...]

    def forward(self, data: Any, x: Array) -> Array:
        """``J x``."""
        return _jacobian_product(self, data, x)

    def backward(self, data: Any, y: Array) -> Array:
        """``J^T y``."""
        return _jacobian_transpose(self, data, y)


def linearized(
    f: Callable[[Leaves], Array], at: Leaves, v: Leaves, method: str
) -> tuple[Array, Array, Callable[[Array], Leaves]]:
    """``f(at)``, its Jacobian's product with ``v``, and the product with the transpose."""
    if method == "forward":
        outputs, push_forward = jax.linearize(f, at)
        transpose = jax.linear_transpose(push_forward, at)
        return outputs, push_forward(v), lambda u: transpose(u)[0]
    outputs, pull_back = jax.vjp(f, at)
    if method == "reverse":
        tangents = jax.vjp(lambda u: pull_back(u)[0], jnp.zeros_like(outputs))[1](v)[0]
    else:
        tangents = difference(f, at, v)
    return outputs, tangents, lambda u: pull_back(u)[0]


def difference(f: Callable[[Leaves], PyTree], at: Leaves, v: Leaves) -> PyTree:
    """The derivative of ``f`` along ``v`` as a central difference.

    The step moves the parameters by ``eps^(1/3)`` of their norm (5e-3 in float32), where the error
    of the difference, of second order in the step, is about that of rounding divided by the step.
    """
    size, length = _norm(at), _norm(v)
    step = float(jnp.finfo(size.dtype).eps) ** (1 / 3) * jnp.where(size > 0, size, 1)
    step = step / jnp.where(length > 0, length, 1)
    ahead, behind = (
        f([x + (sign * step).astype(x.dtype) * d for x, d in zip(at, v, strict=True)])
        for sign in (1, -1)
    )
    return jax.tree.map(lambda a, b: (a - b) / (2 * step).astype(a.dtype), ahead, behind)


def outputs_of(model: Model, params: PyTree, inputs: PyTree) -> jax.ShapeDtypeStruct:
    """The shape ``[m, *positions, c]`` of a micro-batch's outputs, else ``ValueError``."""
    m = jax.tree.leaves(inputs)[0].shape[0]
    outputs = jax.eval_shape(model, params, inputs)
    real = hasattr(outputs, "dtype") and jnp.issubdtype(outputs.dtype, jnp.floating)
    if not real or outputs.ndim < 2 or outputs.shape[0] != m:
        raise ValueError(
            f"model returns {outputs} for {m} examples: return real outputs [{m}, *positions, c], "
            "with c = 1 if there is but one"
        )
    return outputs


def check_precision(subset: Subset, data: Any) -> None:
    """Raise ``ValueError`` for float64 data with float32 parameters: products would be float32."""
    if floating_dtype(data) != subset.dtype:
        raise ValueError(
            f"params are {subset.dtype} and data {floating_dtype(data)}: cast one to the other"
        )


@partial(jax.jit, static_argnums=0)
def _mean_product(kind: MeanProduct, data: Any, x: Array) -> Array:
    @fast_convolutions
    def term(held: Any, examples: Any, shares: Array) -> Leaves:
        at, others, key, v = held
        part = Part(examples, shares, key)
        return kind.term(lambda at: kind.subset.rebuild(at, others), at, v, part)

    at, others, key, batches = data
    v = kind.subset.unravel(x.astype(kind.subset.dtype))
    return add_up(kind.layout, term, (at, others, key, v), batches).astype(x.dtype)


@partial(jax.jit, static_argnums=0)
def _jacobian_product(kind: JacobianProduct, data: Any, x: Array) -> Array:
    at, others, batches = data
    v = kind.subset.unravel(x.astype(kind.subset.dtype))

    @fast_convolutions
    def rows(j: Array) -> Array:
        inputs = take(batches, j)[0]
        return jax.jvp(lambda at: kind.model(kind.subset.rebuild(at, others), inputs), (at,), (v,))[
            1
        ]

    # Micro-batch j holds every count-th example.
    found = jnp.moveaxis(jax.lax.map(rows, jnp.arange(kind.layout.count)), 0, 1)
    n, *others_shape = kind.outputs
    return found.reshape(-1, *others_shape)[:n].ravel().astype(x.dtype)


@partial(jax.jit, static_argnums=0)
def _jacobian_transpose(kind: JacobianProduct, data: Any, y: Array) -> Array:
    at, others, batches = data

    @fast_convolutions
    def term(held: Any, inputs: Any, cotangents: Array) -> Leaves:
        at, others = held
        f = lambda at: kind.model(kind.subset.rebuild(at, others), inputs)  # noqa: E731
        outputs, pull_back = jax.vjp(f, at)
        return pull_back(cotangents.astype(outputs.dtype))[0]

    # In the place of shares: padded by zeros, and in micro-batches as the examples are.
    cotangents = y.astype(kind.subset.dtype).reshape(kind.outputs)
    padding = batches.shares.shape[0] * kind.layout.count - kind.outputs[0]
    cotangents = jnp.pad(cotangents, [(0, padding)] + [(0, 0)] * (cotangents.ndim - 1))
    cotangents = cotangents.reshape(*batches.shares.shape[:2], *kind.outputs[1:])
    batches = batches._replace(shares=cotangents)
    return add_up(kind.layout, term, (at, others), batches).astype(y.dtype)


def _norm(tree: PyTree) -> Array:
    """The Euclidean norm of all entries, from 1e-38 to 1e38."""
    flat = ravel_pytree(tree)[0]
    unit = unit_of(flat)
    return unit * jnp.linalg.norm(flat / unit)
