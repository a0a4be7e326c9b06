"""Lanczos without a basis: one pass for the coefficients, a second one for the vectors.

The recurrence needs two vectors at a time. From its coefficients alone follow the Ritz values and
the coordinates of their vectors in the basis; a second run of the same recurrence makes the basis
again and adds the vectors up. That takes twice the products, and memory for the ``k`` vectors that
are wanted and some five more, whatever the number of steps.

The price is orthogonality: nothing removes the parts along older basis vectors that rounding brings
in, and once a pair has converged the recurrence finds it again, as if the operator had it several
times (Paige 1976). Such copies are told from pairs by three signs: their values agree to rounding,
and then count as one; a copy on its way to its value has hardly a part in the start, and its value
is within its residual of another; and should two vectors come out along one direction all the same,
the second is not converged.

Real copies, of an eigenvalue that repeats, are found once too. So at the end a look outside of the
vectors (``look.py``) tells whether one was missed: then only the best pair of its end, which no
copy displaces, is converged.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Bool

from spectral_jax.linalg.look import look, repeated
from spectral_jax.linalg.scale import seen
from spectral_jax.linalg.subspace import (
    EigResult,
    Search,
    best_pairs,
    generic_vectors,
    inner_rows,
    mixed_start,
    off_rows,
    restored,
    unit_rows,
)
from spectral_jax.linalg.thick_restart import PROMISED

# Vectors in memory beside the k wanted ones: the last two of the recurrence, an image and its rest,
# and the start.
BESIDES = 5
# Steps at most, for the projected problem is solved as a dense one; and from check to check.
STEPS_MOST, STRIDE = 1000, 32
# Values of T closer than so many rounding errors of the operator are copies of one.
COPY = 30
# A part of the start whose square is this much smaller than a neighbour's is that of a copy.
LIGHT = 1e-3
# Two vectors with a larger cosine than this are one.
ALIKE = 0.5


class _Pass(NamedTuple):
    """The recurrence after ``step`` steps, and the Ritz vectors ``[k, n]`` added up so far.

    ``q`` is multiplied next; ``alphas`` and ``betas`` ``[m]`` are the coefficients, ``betas[j]``
    the coupling of row ``j`` to the next. ``scale`` is the longest image, ``factor`` one over the
    operator's magnitude (``scale.py``). ``ended``: nothing is left, or all that is wanted is good.
    """

    q: Array
    before: Array
    alphas: Array
    betas: Array
    vectors: Array
    step: Array
    scale: Array
    factor: Array
    ended: Bool[Array, ""]


def two_pass(search: Search, start: Array) -> EigResult:
    """Solve from the sum of the columns of ``start``; see the head of this module.

    The residuals are measured, by one product each: they, not the recurrence, say what is good.
    """
    first, k = mixed_start(start, search.fixed.T), search.k
    most = min((search.max_matvecs - k) // 2, STEPS_MOST, search.free_dimension)
    nothing = jnp.zeros((most, k), first.dtype)

    def run(_, state: tuple[Array, _Pass]) -> tuple[Array, _Pass]:
        # One loop serves both passes, so that the second repeats the first to the last bit.
        coordinates, last = state
        done = jax.lax.while_loop(
            lambda now: ~now.ended,
            lambda now: _strode(search, coordinates, now),
            _beginning(first, coordinates, last.factor),
        )
        return _wanted(search, done)[0], done

    ended = _beginning(first, nothing, jnp.zeros((), first.dtype))
    _, done = jax.lax.fori_loop(0, 2, run, (nothing, ended))
    search = search._replace(op=done.factor * search.op)
    measured = _measured(search, done)
    return restored(_looked(search, measured, done.scale), done.factor)


def _beginning(first: Array, coordinates: Array, factor: Array) -> _Pass:
    most, k = coordinates.shape
    zero, none = jnp.zeros((), first.dtype), jnp.zeros(most, first.dtype)
    vectors, count = jnp.zeros((k, len(first)), first.dtype), jnp.zeros((), jnp.int32)
    no = jnp.array(False)
    return _Pass(first, jnp.zeros_like(first), none, none, vectors, count, zero, factor, no)


def _strode(search: Search, coordinates: Array, now: _Pass) -> _Pass:
    """Some steps on, and whether that is far enough."""
    most = len(coordinates)
    stop = jnp.minimum(now.step + STRIDE, most)
    now = jax.lax.while_loop(
        lambda now: (now.step < stop) & ~now.ended,
        lambda now: _stepped(search, coordinates, now),
        now,
    )
    good = _wanted(search, now)[1]
    return now._replace(ended=now.ended | good | (now.step == most))


def _stepped(search: Search, coordinates: Array, now: _Pass) -> _Pass:
    """One step of the recurrence, and the share of its vector in the wanted ones."""
    q, j, fixed = now.q, now.step, search.fixed.T
    image, factor = seen(search.op, now.factor, q)
    image = off_rows(factor * image, fixed)
    alpha = jnp.vdot(q, image, precision=Precision.HIGHEST)
    beta = jnp.where(j > 0, now.betas[j - 1], 0)
    rest = off_rows(image - alpha * q - beta * now.before, fixed)
    scale, length = jnp.maximum(now.scale, jnp.linalg.norm(image)), jnp.linalg.norm(rest)
    # Not `length >`: NaN must end the loop.
    goes_on = length > 10 * float(jnp.finfo(q.dtype).eps) * scale
    return _Pass(
        rest / jnp.where(goes_on, length, 1),
        q,
        now.alphas.at[j].set(alpha),
        now.betas.at[j].set(jnp.where(goes_on, length, 0)),
        now.vectors + coordinates[j][:, None] * q,
        j + 1,
        scale,
        factor,
        ~goes_on,
    )


def _wanted(search: Search, now: _Pass) -> tuple[Array, Bool[Array, ""]]:
    """Coordinates ``[m, k]`` of the wanted Ritz vectors, and whether all should be good enough."""
    most = len(now.alphas)
    met = jnp.arange(most) < now.step
    last = jnp.arange(most) == now.step - 1
    off = jnp.where(last, 0, now.betas)[:-1]
    matrix = jnp.diag(now.alphas) + jnp.diag(off, 1) + jnp.diag(off, -1)
    eps = float(jnp.finfo(matrix.dtype).eps)
    values, y, weights = _merged(*best_pairs(matrix, met, most), COPY * eps * now.scale)
    couplings = jnp.sum(jnp.where(last, now.betas, 0)) * jnp.abs(y[:, now.step - 1])
    there = (weights > (10 * eps) ** 2) & ~_copies(values, weights, couplings)
    chosen = jnp.concatenate(
        [
            jnp.argsort(jnp.where(there, sign * values, jnp.inf))[:count]
            for sign, count in search.ends
        ]
    )
    good = couplings[chosen] <= PROMISED * search.allowed(values[chosen], now.scale)
    return y[chosen].T, jnp.all(good) & (jnp.sum(there) >= search.k)


def _merged(values: Array, y: Array, floor: Array) -> tuple[Array, Array, Array]:
    """One pair for each group of values within ``floor`` of the next: its vectors are along one
    direction, and that part of the start stands for all. In rows, with the squares of the parts.
    """
    most, part = len(values), y[0]
    group = jnp.cumsum(jnp.diff(values, prepend=values[:1]) > floor)
    weights = jax.ops.segment_sum(part**2, group, most)
    size = jnp.where(weights > 0, weights, 1)
    values = jax.ops.segment_sum(part**2 * values, group, most) / size
    rows = jax.ops.segment_sum((part * y).T, group, most) / jnp.sqrt(size)[:, None]
    return values, rows, weights


def _copies(values: Array, weights: Array, couplings: Array) -> Bool[Array, " m"]:
    """Values on their way to a neighbour: it is within their residual, and has all of the start."""
    gaps = jnp.diff(values)
    below = (gaps <= couplings[:-1]) & (weights[:-1] < LIGHT * weights[1:])
    above = (gaps <= couplings[1:]) & (weights[1:] < LIGHT * weights[:-1])
    return jnp.pad(below, (0, 1)) | jnp.pad(above, (1, 0))


def _measured(search: Search, done: _Pass) -> EigResult:
    """Rayleigh quotients and residuals, a vector at a time."""
    vectors = unit_rows(done.vectors)

    def one(vector: Array) -> tuple[Array, Array]:
        image = search.op @ vector
        value = jnp.sum(vector * image)
        return value, jnp.linalg.norm(image - value * vector)

    values, residuals = jax.lax.map(one, vectors)
    cosines = jnp.tril(jnp.abs(inner_rows(vectors, vectors)), -1)
    pairs = (jnp.sum(vectors**2, axis=1) > ALIKE) & ~jnp.any(cosines > ALIKE, axis=1)
    converged = pairs & search.converged(values, residuals, done.scale)
    return EigResult(values, vectors.T, residuals, converged, 2 * done.step + search.k)


def _looked(search: Search, found: EigResult, scale: Array) -> EigResult:
    """The pairs, converged only where no copy that was missed can have displaced them."""
    if not search.copies:
        return found
    known = jnp.concatenate([search.fixed.T, found.vectors.T])
    spent, verdicts = found.matvecs, []
    for sign, values in search.by_end(found.values):
        allowed = search.allowed(values[-1], scale)
        # Nothing displaces the best value, or what is the same to within its error.
        best = values <= values[0] + 2 * allowed
        if len(values) == 1:
            verdicts.append(best)
            continue
        generic = generic_vectors(search.op.size, 1, known.dtype, stream=spent + 2).T
        view = look(
            (sign * search.op).__matmul__,
            unit_rows(off_rows(unit_rows(generic), known))[0],
            known,
            # The coupling of the pairs to the complement, at most `allowed`, moves no eigenvalue
            # across a point so far above the value: it may be left out.
            repeated(values, allowed) + allowed,
            scale,
            jnp.where(jnp.all(found.converged) & ~best[-1], search.max_matvecs - spent, 0),
        )
        verdicts.append(best | view.nothing)
        spent += view.steps
    converged = found.converged & jnp.concatenate(verdicts)
    return found._replace(converged=converged, matvecs=spent)
