"""Complete spectra of Gauss-Newton and Fisher matrices, of any number of parameters."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from spectral_jax._options import count
from spectral_jax.curvature._batches import Model, Weight, leading, pair_of
from spectral_jax.curvature._matrix import (
    Problem,
    Route,
    bytes_of_example,
    matrix_of,
    route_of,
)
from spectral_jax.curvature._rows import Parts, Root, Rows
from spectral_jax.curvature._subset import Where, select
from spectral_jax.curvature._taps import taps
from spectral_jax.curvature.losses import Loss, shares_of
from spectral_jax.curvature.objective import check_loss
from spectral_jax.linalg.decompositions import eigh
from spectral_jax.linalg.values import eigvalsh

# Roundings that hide a part of a row: in float32, eigenvalues at this floor were off by up to 3 %,
# for 1 to 6 layers and pairs of inputs that differ in their last digits.
LOST = 2
# Examples that are evaluated together and one by one, to see whether they are apart.
COMPARED = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectrum:
    """All eigenvalues of a curvature matrix that its rank allows.

    values: descending, ``rank_bound`` of them; all others of the matrix are 0. Those at or below
      ``floor``, of either sign, are rounding.
    floor: below it no digit is certain.
    exact: whether the values are those of the matrix. If not they are NaN: the model, or a value in
      the dtype of the parameters, is not finite, or the outputs of an example depend on which
      others are in its batch.
    vectors: eigenvectors in the space of raveled parameters ``[p, k]``, of the largest values, if
      they were asked for. Those of values at or below the floor are NaN.
    rank_bound: the number of rows, or of parameters if there are fewer.
    route: ``kernel``, by inner products of rows, or ``parameter``.
    """

    values: Float[Array, " r"]
    floor: Float[Array, ""]
    exact: Bool[Array, ""]
    vectors: Float[Array, "p k"] | None
    rank_bound: int = dataclasses.field(metadata={"static": True})
    route: Route = dataclasses.field(metadata={"static": True})


def ggn_spectrum(
    model: Model,
    loss: Loss,
    params: PyTree,
    data: tuple[PyTree, PyTree],
    *,
    weight: Weight = None,
    where: Where = None,
    route: Literal["auto", "kernel", "parameter"] = "auto",
    vectors: int = 0,
    memory: int = 4 * 2**30,
) -> Spectrum:
    """Every eigenvalue of ``(1/n) sum_i J_i^T H_i J_i``, the Gauss-Newton matrix of a mean loss.

    It has at most ``n r`` eigenvalues other than 0, for ``r = c - 1`` with a softmax, and they are
    those of the ``n r x n r`` matrix of inner products of rows ``R_i^T J_i``, ``R_i R_i^T = H_i``.
    Those are computed layer by layer from activations and backward signals, without any gradient
    of an example, as ``sum_l (A_l A_l^T + 1) o (B_l B_l^T)``. Of the losses here the Gauss-Newton
    matrix is the Fisher matrix, with its expectation over targets taken exactly.

    Args:
      model: ``model(params, inputs) -> outputs [n, *positions, c]``. Static: a fresh lambda
        compiles afresh.
      loss: a loss of this room.
      params: a pytree of arrays.
      data: ``(inputs, targets)``, each a pytree with a leading axis of ``n`` examples. The mean is
        over all items that the loss does not mask.
      weight: of each example ``[n]`` or item ``[n, *positions]``, 1 by default.
      where: which leaves of ``params`` count, by a predicate of their names or a tree of booleans.
      route: ``kernel`` is the above, ``parameter`` forms the ``p x p`` matrix, ``auto`` takes the
        smaller of the two.
      vectors: how many eigenvectors of the largest eigenvalues to return as well. The eigensolver
        then takes about four times as long.
      memory: bytes that may be used; about half of them are what the matrix takes.

    Called by itself it sums in float64 even where JAX has that switched off, so that eigenvalues
    of a float32 model have digits down to about 1e-13 of the trace. In a ``jit`` or ``vmap``
    without float64 all is float32 and ends at ``1e-7 n r`` of the largest. ``floor`` says where.
    Products run at JAX's highest precision, those within the model too.

    Works under ``jit`` and ``vmap``. Raises ``ValueError`` for shapes that do not fit, and for a
    matrix beyond ``memory``, saying which route or how many examples fit.

    >>> from spectral_jax.curvature import SquaredError
    >>> x = jnp.array([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    >>> spectrum = ggn_spectrum(lambda w, x: x @ w, SquaredError(), jnp.ones((3, 1)),
    ...                         (x, jnp.zeros((2, 1))))
    >>> spectrum.values.tolist(), spectrum.route, spectrum.rank_bound
    ([16.0, 9.0], 'kernel', 2)
    """
    problem = problem_of(
        model, loss, "hessian", params, data, weight=weight, where=where, memory=memory
    )
    return _spectrum(problem, route, vectors)


def empirical_fisher_spectrum(
    model: Model,
    loss: Loss,
    params: PyTree,
    data: tuple[PyTree, PyTree],
    *,
    weight: Weight = None,
    where: Where = None,
    route: Literal["auto", "kernel", "parameter"] = "auto",
    vectors: int = 0,
    memory: int = 4 * 2**30,
) -> Spectrum:
    """Every eigenvalue of ``(1/n) sum_i g_i g_i^T``, gradients at the given targets.

    A row per item, so that at most ``n`` eigenvalues are not 0. It is no substitute for the Fisher
    matrix: where a model fits its targets, the gradients vanish (arXiv 1905.12558). Arguments,
    transforms, accuracy and errors are those of `ggn_spectrum`.

    >>> from spectral_jax.curvature import SquaredError
    >>> x = jnp.array([[3.0], [4.0]])
    >>> empirical_fisher_spectrum(lambda w, x: x @ w, SquaredError(), jnp.ones((1, 1)),
    ...                           (x, jnp.zeros((2, 1)))).values.tolist()
    [674.0]
    """
    problem = problem_of(
        model, loss, "gradient", params, data, weight=weight, where=where, memory=memory
    )
    return _spectrum(problem, route, vectors)


def _spectrum(problem: Problem, route: str, vectors: int) -> Spectrum:
    chosen = route_of(problem, route)
    rank = min(problem.sizes.values())
    vectors = count("vectors", vectors, least=0, most=rank, why="what the rank allows")
    with jax.default_matmul_precision("highest"):
        matrix = matrix_of(problem, chosen)
        apart = examples_are_apart(problem)
        lost = lost_in(problem)
        spectrum, basis = spectrum_of(problem, matrix, apart, lost, rank, vectors)
        if vectors and chosen == "kernel":
            basis = _mapped_back(problem, spectrum.values[:vectors], basis)
    found = jnp.where(spectrum.values[:vectors] > spectrum.floor, basis, jnp.nan)
    return dataclasses.replace(spectrum, vectors=found if vectors else None, route=chosen)


def problem_of(
    model: Model,
    loss: Loss,
    root: Root,
    params: PyTree,
    data: tuple[PyTree, PyTree],
    *,
    weight: Any,
    where: Where,
    memory: int,
) -> Problem:
    """The arguments in the dtype of spectra; ``ValueError`` for those that do not fit."""
    check_loss(loss)
    leading(data)
    inputs, targets = jax.tree.map(jnp.asarray, pair_of(data))
    subset, chosen, others = select(params, where)
    rows = Rows(model, loss, root, subset)
    outputs = jax.eval_shape(rows.outputs, chosen, others, inputs)
    jax.eval_shape(loss.value, outputs, targets)  # refuses targets by name
    shares, _ = shares_of(loss.mask(targets).astype(subset.dtype), weight)
    problem = Problem(rows, (chosen, others), (inputs, targets), shares, count("memory", memory))
    if problem.of_each == 0:
        raise ValueError("a softmax of one output is constant: use SigmoidCrossEntropy()")
    return problem


def examples_are_apart(problem: Problem) -> Bool[Array, ""]:
    """Whether a few examples have the same outputs together and one by one.

    Not those of a model that normalises by its batch, nor if they are NaN.
    """
    few = jax.tree.map(lambda x: x[:COMPARED], problem.data[0])
    return outputs_are_apart(problem.rows, problem.params, few)


@partial(jax.jit, static_argnames="rows")
def outputs_are_apart(rows: Rows, params: Parts, few: PyTree) -> Bool[Array, ""]:
    """Whether some inputs have the same outputs together and one by one.

    With numbers in the place of zero parameters: outputs of a last layer of zeros are all equal.
    """
    chosen, others = params
    params = (list(map(without_zeros, chosen)), others)
    together = rows.outputs(*params, few)

    def single(example: PyTree) -> Array:
        return rows.outputs(*params, jax.tree.map(lambda x: x[None], example))[0]

    alone = jax.vmap(single)(few)
    least = jnp.sqrt(jnp.finfo(together.dtype).eps) * jnp.max(jnp.abs(alone))
    return jnp.all(jnp.abs(together - alone) <= least)


def without_zeros(x: Array) -> Array:
    """With small positive numbers in the place of zeros.

    No two of them are equal: equal ones cancel after a layer norm.
    """
    small = 0.01 * (1.5 + jnp.cos(jnp.arange(x.size, dtype=x.dtype))).reshape(x.shape)
    return jnp.where(x == 0, small, x)


def spectrum_of(
    problem: Problem, matrix: Array, apart: Array, lost: float, rank: int, vectors: int = 0
) -> tuple[Spectrum, Float[Array, "size k"]]:
    """The spectrum of a matrix of inner products, and the first eigenvectors of that.

    ``lost`` is the relative error of the rows, `lost_in` the model.
    """
    with problem.wide():
        values, basis = _solved(matrix, rank, vectors)
        floor = floor_of(values, len(matrix), lost)
        # What underflows in the dtype of the parameters is no more known than what is rounded.
        least = jnp.where(jnp.max(values) > 0, float(jnp.finfo(problem.dtype).tiny), 0)
        floor = jnp.maximum(floor, least)
        values, floor, basis = (x.astype(problem.dtype) for x in (values, floor, basis))
        exact = apart & jnp.all(jnp.isfinite(values))
        values = jnp.where(exact, values, jnp.nan)
    return Spectrum(values, floor, exact, None, rank, "kernel"), basis


def floor_of(values: Float[Array, " r"], size: int, lost: float) -> Float[Array, ""]:
    """Below it eigenvalues of a matrix of that size are rounding.

    Sums and eigensolver lose ``size eps`` of the largest one. Rows come with an error ``E`` of some
    roundings of the dtype that the model computes in, which moves singular values by up to ``|E|``
    and so hides eigenvalues below ``|E|^2``.
    """
    sums = size * jnp.finfo(values.dtype).eps * jnp.max(values)
    return sums + lost**2 * jnp.sum(values)


def lost_in(problem: Problem) -> float:
    """`LOST` times the coarsest ``eps`` on the way through the model, as of half activations."""
    rows = problem.rows

    def flows(params: Parts, inputs: PyTree) -> Any:
        found = taps(rows.model, rows.subset.rebuild(*params), inputs)
        return found.outputs, found.activations

    (inputs, _), _ = problem.piece(0, 1)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(flows, problem.params, inputs))}
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return LOST * max(float(jnp.finfo(dtype).eps) for dtype in floating)


def _solved(matrix: Array, rank: int, vectors: int) -> tuple[Array, Array]:
    """The largest eigenvalues, descending, and the eigenvectors of some."""
    if not vectors:
        return eigvalsh(matrix)[::-1][:rank], matrix[:, :0]
    values, basis = eigh(matrix)
    return values[::-1][:rank], basis[:, ::-1][:, :vectors]


def _mapped_back(
    problem: Problem, values: Float[Array, " k"], basis: Float[Array, "rows k"]
) -> Float[Array, "p k"]:
    """``J^T v / sqrt(value)``: for unit vectors of rows, those of parameters."""
    y = basis.T.reshape(len(values), *problem.shares.shape, -1)
    total = jnp.zeros((len(values), problem.sizes["parameter"]), problem.dtype)
    done = 0
    for data, shares in problem.pieces(bytes_of_example(problem)):
        here = y[:, done : done + len(shares)]
        done += len(shares)
        missing = len(shares) - here.shape[1]
        here = jnp.pad(here, [(0, 0), (0, missing)] + [(0, 0)] * (here.ndim - 2))
        total = total + _combined(problem.rows, problem.params, data, shares, here)
    return (total / jnp.sqrt(values[:, None])).T


@partial(jax.jit, static_argnames="rows")
def _combined(rows: Rows, params: Parts, data: Any, shares: Array, y: Array) -> Array:
    return rows.combinations(params, data, shares, y)
