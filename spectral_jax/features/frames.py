"""The frames that class means collapse to, and how far a frame of vectors is from one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax._choices import check_choice
from spectral_jax.linalg.decompositions import eigh
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.subspace import mm

Target = Literal["etf", "orthogonal", "general_orthogonal", "seli"]
TARGETS = get_args(Target)
# A row of a target, of unit Frobenius norm: from its number and the diagonal of what was measured.
Row = Callable[[Array, Array], Array]

# Rows of a C x C matrix that are made at a time: all of them would not fit for a vocabulary.
BLOCK = 64


def target_rows(
    target: Target | Float[ArrayLike, "c c"], weight: Float[Array, " c"]
) -> tuple[Row, Row]:
    """Rows of the Gram matrix that ``target`` means for the class means, and with the head.

    Classes of no weight have rows and columns of zeros.
    """
    here = (weight > 0).astype(weight.dtype)
    if not isinstance(target, str):
        matrix = working(target, "target").astype(weight.dtype)
        if matrix.shape != (len(weight), len(weight)):
            raise ValueError(
                f"target has shape {matrix.shape}: pass a Gram matrix of the {len(weight)} classes"
            )
        both = _matrix_rows(jnp.where(jnp.outer(here, here) > 0, matrix, 0))
        return both, both
    check_choice(TARGETS, target=target)
    if target == "seli":
        return _matrix_rows(_seli(weight, here)), partial(_etf_row, here)
    by_name = {
        "etf": _etf_row,
        "orthogonal": _orthogonal_row,
        "general_orthogonal": _any_orthogonal_row,
    }
    row = partial(by_name[target], here)
    return row, row


def frame_error(a: Float[Array, "c p"], b: Float[Array, "c p"], row: Row) -> Float[Array, ""]:
    """``|| G / ||G|| - T ||`` in the Frobenius norm, ``G = A B^T``: 0 for the frame, at most 2.

    NaN if ``G`` is 0.
    """
    diagonal = jnp.sum(a * b, axis=-1)
    size = root(jnp.sum(by_rows(lambda i: jnp.sum(mm(b, a[i]) ** 2), len(a))))
    errors = by_rows(lambda i: jnp.sum((mm(b, a[i]) / size - row(i, diagonal)) ** 2), len(a))
    return root(jnp.sum(errors))


def by_rows(function: Callable[[Array], Any], rows: int) -> Any:
    """``function`` of each row's number, a block of rows at a time."""
    return jax.lax.map(function, jnp.arange(rows), batch_size=BLOCK)


def root(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root, with derivative 0 at 0: collapsed frames would make it infinite times 0."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def _etf_row(here: Float[Array, " c"], i: Array, diagonal: Array) -> Array:
    classes = jnp.sum(here)
    return here * here[i] * (_unit_row(here, i) - 1 / classes) / jnp.sqrt(classes - 1)


def _orthogonal_row(here: Float[Array, " c"], i: Array, diagonal: Array) -> Array:
    return here * _unit_row(here, i) / jnp.sqrt(jnp.sum(here))


def _any_orthogonal_row(here: Float[Array, " c"], i: Array, diagonal: Array) -> Array:
    """The nearest diagonal matrix: vectors at right angles, of whatever lengths they have."""
    lengths = here * jnp.maximum(diagonal, 0)
    return lengths * _unit_row(here, i) / root(jnp.sum(lengths**2))


def _unit_row(like: Float[Array, " c"], i: Array) -> Float[Array, " c"]:
    return (jnp.arange(len(like)) == i).astype(like.dtype)


def _matrix_rows(matrix: Float[Array, "c c"]) -> Row:
    matrix = matrix / unit_of(matrix)
    matrix = matrix / root(jnp.sum(matrix**2))
    return lambda i, _: matrix[i]


def _seli(weight: Float[Array, " c"], here: Float[Array, " c"]) -> Float[Array, "c c"]:
    """``((P N P)^+)^(1/2)``, with ``N`` the classes' weights and ``P`` the centring of classes.

    The labels less their mean over classes are ``Z = P Y = V s U^T``, a column an example, and
    ``U s U^T`` is the Gram matrix of the features (the SELI geometry, arXiv 2208.05512). Columns
    of ``U^T = V^T Z / s`` are alike for the examples of a class: ``V^T P / s``.
    """
    identity = jnp.eye(len(weight), dtype=weight.dtype)
    centring = jnp.diag(here) - jnp.outer(here, here) / jnp.sum(here)
    share = weight / jnp.max(weight)
    # The mean direction, and classes that are missing, get the value 1 in between and are taken out
    # by P: no threshold is needed, below which a rare class might fall.
    filled = mm(centring * share, centring) + identity - centring
    values, vectors = eigh(filled)
    return mm(mm(centring, mm(vectors / jnp.sqrt(values), vectors.T)), centring)
