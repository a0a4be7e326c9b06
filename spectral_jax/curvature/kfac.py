"""Kronecker-factored approximate curvature, and its correction in its own eigenbasis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from spectral_jax._choices import check_choice
from spectral_jax.curvature._batches import Model, take
from spectral_jax.curvature._blocks import (
    Block,
    Member,
    activations,
    blocks_of,
    leaf_gradient,
    outer,
    signals,
)
from spectral_jax.curvature._passes import (
    Batch,
    Fisher,
    Given,
    Problem,
    examples_are_apart,
    over_batches,
    problem_of,
    tapped_at,
)
from spectral_jax.curvature._subset import Where
from spectral_jax.curvature._taps import Backward, Taps
from spectral_jax.curvature.kronecker import (
    EigenBlock,
    Factor,
    KroneckerBlock,
    KroneckerEigenbasis,
    KroneckerOperator,
    nearest_product,
)
from spectral_jax.curvature.losses import Loss
from spectral_jax.linalg.subspace import mm

Sums = TypeVar("Sums")
Sharing: TypeAlias = Literal["expand", "reduce"]

# What a model and a rotation lose of a gradient, in units of the rounding of its dtype.
ROUNDINGS = 8


def kfac(
    model: Model,
    loss: Loss,
    params: PyTree,
    data: tuple[PyTree, Num[Array, "n ..."]],
    *,
    weight: Float[Array, "n ..."] | None = None,
    sharing: Sharing = "expand",
    fisher: Fisher = "exact",
    samples: int = 1,
    key: PRNGKeyArray | None = None,
    micro_batch: int | None = None,
    where: Where = None,
) -> KroneckerOperator:
    """Approximate the Gauss-Newton (Fisher) matrix by one Kronecker product for each kernel.

    The matrix is ``C = sum_i s_i J_i^T H_i J_i`` over items ``i`` (predictions) with the shares
    ``s_i`` of `item_shares`, ``J_i`` the Jacobian of an item's outputs and ``H_i`` the Hessian of
    its loss. A kernel ``W [in, out]`` that meets the activations ``a_t`` at positions ``t`` and is
    sent back the signals ``b_t`` has gradients ``sum_t a_t b_t^T``. Its block is taken for
    ``A (x) B`` with second moments ``A`` of the activations and ``B`` of the signals, a bias for
    one more row of ``W`` that meets a 1. Blocks of different kernels are taken to be independent.

    What is exact: one example at one position (each block, that is); deep linear networks with
    `SquaredError`, in their setting of ``sharing``. Blocks of scales and shifts of norms, and
    whatever else is no kernel, are exact up to 256 parameters and beyond that exact on the
    diagonal, where the rest is left out: `KroneckerOperator.kinds` says which is which. A kernel
    that is used several times has the Kronecker product that is nearest to the sum of those of its
    uses; that uses meet in ``C`` is left out (and put back into the diagonal by `ekfac`).

    Args:
      model: ``(params, inputs) -> outputs [n, *positions, c]``; static, like the loss. If the
        outputs of an example depend on others, as with batch norm in training mode, all is NaN.
      loss: one of this room's.
      params: a pytree; vectors of the result are ``ravel_pytree(params)``.
      data: ``(inputs, targets)`` with a leading axis of ``n`` examples.
      weight: of examples ``[n]`` or items, 1 by default; masked items have none.
      sharing: of a kernel among the positions of an example, as in a convolution or a sequence.
        ``"expand"`` takes positions for examples of their own: right where each position has its
        own loss, as in a language model. ``"reduce"`` takes the sum over positions for a product
        of the mean activation and the summed signal: right where positions are averaged before
        the loss, as in a classifier of images. They agree where there is one position.
      fisher: ``"exact"`` takes the expectation over the model's own predictions, with a backward
        pass for each item of an example and each of the ``c - 1`` (softmax) or ``c`` columns of a
        root of ``H``. ``"mc"`` estimates the same with ``samples`` random signs for every column
        and item: unbiased, with less variance than sampled labels, and one backward pass each.
        ``"empirical"`` takes the gradients for the given targets, which is another matrix: it
        vanishes where the data are fitted. One backward pass for each item of an example.
      key: for ``"mc"``; the signs of an example depend on its place in the data, on no batch.
      micro_batch: examples at a time, all by default; the result does not depend on it. An example
        takes the memory of its activations (a convolution's as patches) and signals.
      where: which leaves, as in `ggn`: a predicate of names or a tree of booleans. The others are
        constants.

    Float32 parameters give float32 factors by products of full precision, with eigenvalues below
    about 1e-7 of the largest of a factor lost in rounding; for those pass float64. Factors are
    squares: activations or signals below 1e-17 count for little or nothing in float32, above 1e19
    they give NaN. Weights that are all 0, or masks, give NaN. Works under ``jit``, ``vmap`` and
    ``grad``.
    Raises ``ValueError`` for an unknown option, ``"mc"`` without a key, and data that do not fit.
    Sources: Martens & Grosse, arXiv 1503.05671; Grosse & Martens, 1602.01407 (convolutions);
    Eschenhagen et al., 2311.00636 (expand and reduce).

    >>> from spectral_jax.curvature.losses import SquaredError
    >>> def linear(w, x):
    ...     return x @ w
    >>> x = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    >>> c = kfac(linear, SquaredError(), jnp.ones((2, 1)), (x, jnp.zeros((2, 1))))
    >>> c.dense().tolist()  # 2 X^T X / n
    [[1.0, 2.0], [2.0, 5.0]]
    """
    check_choice(("expand", "reduce"), sharing=sharing)
    problem, given = problem_of(
        model,
        loss,
        params,
        data,
        weight=weight,
        where=where,
        fisher=fisher,
        samples=samples,
        key=key,
        micro_batch=micro_batch,
    )
    return _kfac(problem, sharing, given)


def ekfac(
    basis: KroneckerOperator | KroneckerEigenbasis,
    model: Model,
    loss: Loss,
    params: PyTree,
    data: tuple[PyTree, Num[Array, "n ..."]],
    *,
    weight: Float[Array, "n ..."] | None = None,
    fisher: Fisher = "exact",
    samples: int = 1,
    key: PRNGKeyArray | None = None,
    micro_batch: int | None = None,
    where: Where = None,
) -> KroneckerEigenbasis:
    """The Gauss-Newton (Fisher) matrix by its own diagonal in a Kronecker-factored eigenbasis.

    With the basis ``Q`` of `kfac` the values are the second moments ``q^T C q`` of the gradients
    along its vectors ``q``, instead of the products of eigenvalues of factors. Of all matrices that
    are diagonal in that basis this one is the nearest to ``C`` in the Frobenius norm, whichever way
    positions share a kernel, and its trace is that of ``C``. Values that rounding may have made
    are 0.

    Args:
      basis: from `kfac`, of the same parameters; the data may be others.

    All other arguments are those of `kfac`, and so is what holds of the result. The cost is that of
    `kfac` and, for each example and backward pass, ``2 in out`` operations for every position of a
    kernel, where there is more than one.
    Source: George et al., arXiv 1806.03884.
    """
    if not isinstance(basis, KroneckerOperator | KroneckerEigenbasis):
        raise ValueError(f"basis is a {type(basis).__name__}: pass kfac of the same parameters")
    problem, given = problem_of(
        model,
        loss,
        params,
        data,
        weight=weight,
        where=where,
        fisher=fisher,
        samples=samples,
        key=key,
        micro_batch=micro_batch,
    )
    if isinstance(basis, KroneckerOperator):
        basis = basis.eigenbasis()
    return _ekfac(problem, given, basis)


@jax.default_matmul_precision("highest")
@partial(jax.jit, static_argnums=(0, 1))
def _kfac(problem: Problem, sharing: Sharing, given: Given) -> KroneckerOperator:
    blocks = _blocks(problem, given)

    def factors(batch: Batch, _: None) -> tuple[list[list[Factor]], list[list[Factor]]]:
        entering = [[_entering(m, batch, sharing) for m in block.members] for block in blocks]
        returning = batch.over_columns(
            lambda backward: [_returning(b, batch.tapped, backward, sharing) for b in blocks]
        )
        return entering, returning

    entering, returning = _known(problem, given, over_batches(problem, given, factors))
    return KroneckerOperator(tuple(map(_kronecker_block, blocks, entering, returning)))


@jax.default_matmul_precision("highest")
@partial(jax.jit, static_argnums=0)
def _ekfac(problem: Problem, given: Given, basis: KroneckerEigenbasis) -> KroneckerEigenbasis:
    blocks = _blocks(problem, given)
    if [b.shape for b in blocks] != [b.index.shape for b in basis.blocks]:
        raise ValueError("basis has other blocks than the model: pass kfac of the same parameters")

    def squares(batch: Batch, basis: KroneckerEigenbasis) -> list[Array]:
        pairs = list(zip(blocks, basis.blocks, strict=True))
        return batch.over_columns(
            lambda backward: [_squares(b, own, batch.tapped, backward) for b, own in pairs]
        )

    values = _known(problem, given, over_batches(problem, given, squares, basis))
    return basis.with_values(list(map(_above_rounding, basis.blocks, values)))


def _known(problem: Problem, given: Given, sums: Sums) -> Sums:
    """Sums over examples, NaN if outputs depend on who else is in a batch: they mean nothing."""
    apart = examples_are_apart(problem, given)
    return jax.tree.map(lambda x: jnp.where(apart, x, jnp.nan), sums)


def _blocks(problem: Problem, given: Given) -> tuple[Block, ...]:
    """The blocks of the model, from shapes alone."""
    found: list[tuple[Block, ...]] = []

    def record(inputs: PyTree) -> None:
        tapped = tapped_at(problem, given.point, inputs)
        found.append(blocks_of(problem.names, given.point.chosen, tapped))

    (inputs, _, _), _ = take(given.batches, 0)
    jax.eval_shape(record, inputs)
    return found[0]


def _entering(member: Member, batch: Batch, sharing: Sharing) -> Factor:
    """The weighted second moment of what enters a kernel: ``A``, or its diagonal."""
    entering = activations(member, batch.tapped)
    use = batch.tapped.uses[member.use]
    positions = entering.shape[1]
    shares = batch.position_shares(positions)
    if entering.ndim == 2 and sharing == "expand":
        return jnp.zeros(use.shape[0], shares.dtype).at[entering].add(shares)
    if sharing == "reduce":
        shares = jnp.sum(shares, axis=1, keepdims=True)
        if entering.ndim == 2:
            row = jnp.zeros(use.shape[0], shares.dtype)
            entering = jax.vmap(lambda rows: row.at[rows].add(1 / positions))(entering)[:, None]
        entering = jnp.mean(entering, axis=1, keepdims=True)
    return _gram(jnp.sqrt(shares)[..., None] * entering)


def _returning(block: Block, tapped: Taps, backward: Backward, sharing: Sharing) -> list[Factor]:
    """For every member the second moment of the signals, ``B``; for others the exact block."""
    if block.kind == "unused":
        return [jnp.zeros(block.shape[0], tapped.outputs.dtype)]
    if not block.members:
        gradient = leaf_gradient(block, tapped, backward)
        return [_gram(gradient) if block.kind == "dense" else jnp.sum(gradient**2, axis=0)]
    sent_back = [signals(member, backward) for member in block.members]
    if sharing == "reduce" or block.kind == "dense":
        sent_back = [jnp.sum(each, axis=1) for each in sent_back]
    return [_gram(each) for each in sent_back]


def _kronecker_block(
    block: Block, entering: Sequence[Factor], returning: Sequence[Factor]
) -> KroneckerBlock:
    one = jnp.ones((1, 1), returning[0].dtype)
    if block.members:
        products = [
            (b, a) if member.turned else (a, b)
            for member, a, b in zip(block.members, entering, returning, strict=True)
        ]
        a, b = nearest_product(products)
    else:
        a, b = (one, *returning) if block.kind == "dense" else (*returning, one)
    return KroneckerBlock(a, b, block.places, block.names, block.kind)


def _squares(
    block: Block, own: EigenBlock, tapped: Taps, backward: Backward
) -> Float[Array, "i o"]:
    """The squares of a block's gradients in its basis, summed over examples."""
    if block.kind == "unused":
        return jnp.zeros(block.shape, tapped.outputs.dtype)
    if not block.members:
        gradients = leaf_gradient(block, tapped, backward).reshape(-1, *block.shape)
        return jnp.sum(jax.vmap(own.to_basis)(gradients) ** 2, axis=0)
    pairs = []
    for member in block.members:
        pair = activations(member, tapped), signals(member, backward)
        left, right = pair[::-1] if member.turned else pair
        pairs.append((_rotated(left, own.u), _rotated(right, own.v)))
    left, right = pairs[0]
    if len(pairs) == 1 and left.shape[1] == 1 and left.ndim == right.ndim:
        return mm((left[:, 0] ** 2).T, right[:, 0] ** 2)

    def add(total: Array, example: list[tuple[Array, Array]]) -> tuple[Array, None]:
        gradients = [outer(left, right, block.shape) for left, right in example]
        return total + sum(gradients) ** 2, None

    return jax.lax.scan(add, jnp.zeros(block.shape, tapped.outputs.dtype), pairs)[0]


def _above_rounding(own: EigenBlock, values: Float[Array, "i o"]) -> Float[Array, "i o"]:
    """Second moments with those set to 0 that rounding alone may have made.

    A coordinate of a vector of ``k`` entries comes with an error of about ``sqrt(k)`` roundings of
    the vector's length, whose square is the sum of the values along that side.
    """
    rounding = (ROUNDINGS * jnp.finfo(values.dtype).eps) ** 2
    lost = jnp.zeros_like(values)
    if own.u is not None:
        lost += len(own.u) * rounding * jnp.sum(values, axis=0)
    if own.v is not None:
        lost += len(own.v) * rounding * jnp.sum(values, axis=1, keepdims=True)
    return jnp.where(values <= lost, 0, values)


def _rotated(side: Array, vectors: Float[Array, "k k"] | None) -> Array:
    """One side of gradients in the coordinates of its basis; row numbers stand for unit vectors."""
    if vectors is None:
        return side
    return vectors[side] if side.ndim == 2 else mm(side, vectors)


def _gram(rows: Float[Array, "*n k"]) -> Float[Array, "k k"]:
    rows = rows.reshape(-1, rows.shape[-1])
    return mm(rows.T, rows)
