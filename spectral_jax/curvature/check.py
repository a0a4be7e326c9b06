"""Whether an operator is what solvers take it for, and its loss one that has a mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from spectral_jax.curvature._products import HessianTerm, MeanProduct
from spectral_jax.curvature.kernel import without_zeros
from spectral_jax.curvature.streams import StreamOperator
from spectral_jax.linalg.operators import SymmetricOperator, check_operator
from spectral_jax.linalg.precision import unit_of

EXAMPLES = 16
PLACE = (
    "its place in the batch, as under dropout with one key for a whole batch: switch dropout off "
    "(nnx: model.eval(), or from_nnx), or fold an example's index into its key"
)
MATES = (
    "the others in its batch, as under batch norm in training mode: use running statistics "
    "(use_running_average=True; nnx: model.eval(), or from_nnx)"
)


class Check(NamedTuple):
    """How far products with random vectors ``u`` and ``v`` are from those of a symmetric matrix.

    ``symmetry`` is ``|u A v - v A u|`` and ``linearity`` ``|A (u + 2 v) - A u - 2 A v|``, divided
    by the length of the vectors multiplied: rounding leaves about 1e-6 in float32 and 1e-15 in
    float64, and with ``method="difference"`` they are an estimate of the difference's own error.
    ``repeatability`` is the largest relative change from one product to the next of the same
    vectors: 0, unless something is random. All are NaN if a product is not ``finite``.
    """

    symmetry: float
    linearity: float
    repeatability: float
    finite: bool


def check(op: SymmetricOperator | StreamOperator, key: PRNGKeyArray) -> Check:
    """Try products with ``op``, and whether examples have losses of their own; on the host.

    Six products with random vectors, drawn with ``key``. For operators of this room, and sums and
    multiples of them, also the losses of up to 16 examples (of a stream: of its first batch), once
    more in reverse order and in halves: where they change, the mean over examples depends on how
    they were batched, and no number made from it is one of the model. That is tried with small
    numbers in the place of parameters that are 0: after a last layer of zeros nothing shows. Check
    an operator before it is `stored`, which keeps no model. A product with a loss that is not
    finite gives ``finite=False``.

    Raises ``ValueError``, with what to change, if the loss of an example depends on its place in
    the batch (dropout with one key for a batch) or on the others in it (batch norm in training
    mode), if ``op`` is no operator, and under ``jit``.

    >>> from spectral_jax.linalg import dense_operator
    >>> check(dense_operator(jnp.array([[1.0, 2.0], [2.0, 0.0]])), jax.random.key(0)).finite
    True
    """
    whole = op.first() if isinstance(op, StreamOperator) else op
    check_operator(whole)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(whole)):
        raise ValueError("check compares numbers: call it outside jit, vmap and grad")
    for part in filter(_is_mean, jax.tree.leaves(whole, is_leaf=_is_mean)):
        _check_examples(part.apply, part.data)
    u, v = jax.random.normal(key, (2, op.size), op.dtype)
    block = jnp.stack([u, v, u + 2 * v], axis=1)
    first, second = (_product(op, block) for _ in range(2))
    symmetry, linearity, change = map(float, _defects(block, first, second))
    return Check(symmetry, linearity, change, bool(jnp.isfinite(first).all()))


def _product(op: SymmetricOperator | StreamOperator, block: Array) -> Array:
    if isinstance(op, StreamOperator):
        return jnp.asarray(op @ block)
    return _compiled_product(op, block)


@jax.jit
def _compiled_product(op: SymmetricOperator, block: Array) -> Array:
    return op @ block


@jax.jit
def _defects(block: Array, first: Array, second: Array) -> tuple[Array, Array, Array]:
    dot = partial(jnp.vdot, precision=jax.lax.Precision.HIGHEST)
    unit = unit_of(first)  # whose squares leave no dtype
    first, second = first / unit, second / unit
    (u, v, _), (au, av, both) = block.T, first.T
    size = jnp.linalg.norm(u) * jnp.linalg.norm(av) + jnp.linalg.norm(v) * jnp.linalg.norm(au)
    symmetry = _ratio(jnp.abs(dot(u, av) - dot(v, au)), size)
    parts = jnp.linalg.norm(au) + 2 * jnp.linalg.norm(av)
    linearity = _ratio(jnp.linalg.norm(both - au - 2 * av), parts)
    change = _ratio(jnp.max(jnp.abs(second - first)), jnp.max(jnp.abs(first)))
    return symmetry, linearity, change


def _ratio(part: Array, whole: Array) -> Array:
    """0 of nothing is 0: the zero matrix is as symmetric as any."""
    return jnp.where(whole == 0, part, part / jnp.where(whole == 0, 1, whole))


def _is_mean(node: Any) -> bool:
    return isinstance(node, SymmetricOperator) and isinstance(node.apply, MeanProduct)


def _check_examples(kind: MeanProduct, data: Any) -> None:
    """Raise ``ValueError`` if the loss of an example is not its own."""
    at, others, _, batches = data
    examples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:EXAMPLES], batches.examples)
    params = kind.subset.rebuild(list(map(without_zeros, at)), others)
    half = jax.tree.leaves(examples)[0].shape[0] // 2

    def losses(part: slice) -> Array:
        return _values(kind.term)(params, jax.tree.map(lambda x: x[: 2 * half][part], examples))

    if not half:
        return
    whole, backwards = losses(slice(None)), losses(slice(None, None, -1))
    _require(whole, backwards[::-1] if whole.ndim else backwards, PLACE)
    parts = losses(slice(half)), losses(slice(half, None))
    _require(whole, jnp.concatenate(parts) if whole.ndim else (parts[0] + parts[1]) / 2, MATES)


def _values(term: Any) -> Callable[[PyTree, Any], Array]:
    """What a batch is made of: losses or, where the loss is one of this room, outputs."""
    if isinstance(term, HessianTerm):
        return term.loss
    return lambda params, batch: term.model(params, batch[0])


def _require(plain: Array, other: Array, cause: str) -> None:
    tolerance = float(jnp.finfo(plain.dtype).eps) ** 0.5
    size = jnp.max(jnp.abs(plain))
    if bool(jnp.max(jnp.abs(plain - other)) > tolerance * size):
        raise ValueError(f"the loss of an example depends on {cause}")
