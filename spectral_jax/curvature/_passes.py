"""Sums over micro-batches and backward passes, for matrices made of gradients of items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree

from spectral_jax._choices import check_choice
from spectral_jax._options import count
from spectral_jax.curvature._batches import (
    Batches,
    Layout,
    Model,
    add_up,
    leading,
    micro_size,
    one_batch,
    pair_of,
    split,
    take,
)
from spectral_jax.curvature._products import check_precision, outputs_of
from spectral_jax.curvature._rows import Rows
from spectral_jax.curvature._subset import Subset, Where, names_of, select
from spectral_jax.curvature._taps import Backward, Taps, taps
from spectral_jax.curvature.kernel import COMPARED, outputs_are_apart
from spectral_jax.curvature.losses import Loss
from spectral_jax.curvature.objective import check_loss
from spectral_jax.linalg.arguments import check_key
from spectral_jax.linalg.convolutions import fast_convolutions

Fisher: TypeAlias = Literal["exact", "mc", "empirical"]
Sum = TypeVar("Sum")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is static under ``jit``: the options are those of `kfac`, ``names`` of chosen leaves."""

    model: Model
    loss: Loss
    fisher: Fisher
    samples: int
    subset: Subset
    names: tuple[str, ...]
    layout: Layout


class Point(NamedTuple):
    """Where the matrix is taken: the leaves that it is about, and the others. With a key."""

    chosen: list[Array]
    others: list[Array]
    key: PRNGKeyArray | None


class Given(NamedTuple):
    """The arrays of a `Problem`."""

    point: Point
    batches: Batches


class Batch(NamedTuple):
    """A micro-batch of the model's examples, and gradients with respect to its outputs.

    The sum over ``columns`` of ``g g^T``, with ``g`` the gradient of parameters for
    ``cotangents(column)``, is the part of these examples in the matrix of ``problem.fisher``.
    """

    tapped: Taps
    shares: Float[Array, "n *items"]
    columns: int
    cotangents: Callable[[Int[Array, ""]], Float[Array, "n *items c"]]

    def over_columns(self, function: Callable[[Backward], Sum]) -> Sum:
        """The sum of ``function`` over the backward passes of all columns."""

        def of_column(column: Int[Array, ""]) -> Sum:
            return function(self.tapped.backward(self.cotangents(column)))

        return _summed(of_column, self.columns)

    def position_shares(self, positions: int) -> Float[Array, "n positions"]:
        """The shares of positions: those of the items if there are as many, else equal ones."""
        of_items = self.shares.reshape(len(self.shares), -1)
        if of_items.shape[1] == positions:
            return of_items
        equal = jnp.sum(of_items, axis=1, keepdims=True) / positions
        return jnp.broadcast_to(equal, (len(equal), positions))


def problem_of(
    model: Model,
    loss: Loss,
    params: PyTree,
    data: tuple[PyTree, Num[Array, "n ..."]],
    *,
    weight: Float[Array, "n ..."] | None,
    where: Where,
    fisher: Fisher,
    samples: int,
    key: PRNGKeyArray | None,
    micro_batch: int | None,
) -> tuple[Problem, Given]:
    """What the arguments of `kfac` say, or ``ValueError`` for those that make no sense."""
    check_loss(loss)
    check_choice(("exact", "mc", "empirical"), fisher=fisher)
    if fisher == "mc":
        check_key(key, draws="fisher='mc' draws signs")
    inputs, targets = pair_of(data)
    n, m = leading(data), micro_size(leading(data), micro_batch)
    outputs = outputs_of(model, params, one_batch(inputs, m))
    jax.eval_shape(loss.value, outputs, one_batch(targets, m))  # refuses targets by name
    subset, chosen, others = select(params, where)
    pairs = zip(names_of(params), subset.chosen, strict=True)
    names = tuple(name for name, here in pairs if here)
    mask = loss.mask(targets).astype(subset.dtype)
    examples = inputs, targets, jnp.arange(n)
    batches, layout = split(examples, mask, weight, m, False, params)
    given = Given(Point(chosen, others, key), batches)
    check_precision(subset, given)
    samples = count("samples", samples)
    return Problem(model, loss, fisher, samples, subset, names, layout), given


def over_batches(
    problem: Problem, given: Given, function: Callable[[Batch, PyTree], Sum], held: PyTree = None
) -> Sum:
    """The sum of ``function(batch, held)`` over micro-batches, wherever their examples lie."""

    def of_batch(at: tuple[Point, PyTree], examples: PyTree, shares: Array) -> Sum:
        point, held = at
        inputs, targets, numbers = examples
        tapped = tapped_at(problem, point, inputs)
        return function(_batch(problem, tapped, targets, shares, point.key, numbers), held)

    at = given.point, held
    like = jax.eval_shape(of_batch, at, *take(given.batches, 0))
    _, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))
    return unravel(add_up(problem.layout, of_batch, at, given.batches))


def examples_are_apart(problem: Problem, given: Given) -> Bool[Array, ""]:
    """Whether no example's outputs depend on others; compared for a few of them."""
    inputs, _, _ = given.batches.examples
    few = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:COMPARED], inputs)
    rows = Rows(problem.model, problem.loss, "hessian", problem.subset)
    return outputs_are_apart(rows, (given.point.chosen, given.point.others), few)


def tapped_at(problem: Problem, point: Point, inputs: PyTree) -> Taps:
    """The model's `Taps`, of its chosen leaves."""

    def model(chosen: list[Array], inputs: PyTree) -> Array:
        return problem.model(problem.subset.rebuild(chosen, point.others), inputs)

    return taps(model, point.chosen, inputs)


def _batch(
    problem: Problem,
    tapped: Taps,
    targets: Array,
    shares: Array,
    key: Any,
    numbers: Int[Array, " n"],
) -> Batch:
    loss, outputs = problem.loss, tapped.outputs
    items, rank = prod(shares.shape[1:]), loss.rank(outputs.shape[-1])
    roots = jnp.sqrt(shares)[..., None]

    def item(number: Int[Array, ""]) -> Array:
        return (jnp.arange(items, dtype=number.dtype) == number).reshape(*shares.shape[1:], 1)

    def of_root(coefficients: Array) -> Array:
        coefficients = jnp.broadcast_to(coefficients, (*shares.shape, rank)).astype(outputs.dtype)
        return roots * loss.root_product(outputs, targets, coefficients)

    def exact(column: Int[Array, ""]) -> Array:
        here = jnp.arange(rank, dtype=column.dtype) == column % rank
        return of_root(item(column // rank) & here)

    def empirical(column: Int[Array, ""]) -> Array:
        return jnp.where(item(column), roots * loss.gradient(outputs, targets), 0)

    def monte_carlo(column: Int[Array, ""]) -> Array:
        def signs(number: Int[Array, ""]) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(key, number), column)
            return jax.random.rademacher(own, (*shares.shape[1:], rank), outputs.dtype)

        return of_root(jax.vmap(signs)(numbers)) / problem.samples**0.5

    columns = {"exact": items * rank, "empirical": items, "mc": problem.samples}
    cotangents = {"exact": exact, "empirical": empirical, "mc": monte_carlo}
    return Batch(tapped, shares, columns[problem.fisher], cotangents[problem.fisher])


def _summed(function: Callable[[Int[Array, ""]], Sum], number: int) -> Sum:
    """The sum of ``function`` over ``range(number)``, which may be empty."""
    if number == 1:
        return fast_convolutions(function)(jnp.zeros((), jnp.int32))

    @fast_convolutions
    def step(total: Sum, one: Int[Array, ""]) -> tuple[Sum, None]:
        return jax.tree.map(jnp.add, total, function(one)), None

    like = jax.eval_shape(function, jnp.zeros((), jnp.int32))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.scan(step, zero, jnp.arange(number, dtype=jnp.int32))[0]
