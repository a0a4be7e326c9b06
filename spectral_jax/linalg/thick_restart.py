"""Thick-restart Lanczos (Wu & Simon 2000), and a look for copies of repeated eigenvalues.

Lanczos builds an orthonormal basis of the Krylov space ``v, A v, A^2 v, ...`` and reads eigenpairs
off the operator's projection on it (Ritz pairs). When the basis has reached the memory set aside
for it, it is replaced by its best Ritz vectors and the search continues from those: a thick
restart.

A Krylov space holds a single vector of each eigenspace. Of an eigenvalue that repeats it therefore
finds one copy, with a residual that says nothing of the others, and the second of the ``k``
smallest would be reported as the third. `_Solver.look` counts what is missing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array

from spectral_jax.linalg.look import Look, look, repeated, vanishes
from spectral_jax.linalg.operators import SymmetricOperator
from spectral_jax.linalg.scale import seen
from spectral_jax.linalg.subspace import (
    EigResult,
    Search,
    best_pairs,
    generic_vectors,
    mixed_start,
    mm,
    off_rows,
    off_rows_checked,
    restored,
    unit_rows,
)

# The basis has at least 20 vectors beyond 2 k, and otherwise as many as 64 MiB hold, up to 64: more
# make restarts rarer, but every product is orthogonalised against all of them.
EXTRA_LEAST, BASIS_MOST = 20, 64
BASIS_BYTES = 2**26
# Products before the first check for convergence, and between two checks at most. A check solves
# the projected problem, which takes about as long as one product.
STRIDE, STRIDE_MOST = 16, 32
# The rate of convergence is an average over past checks; after 8 more products the old average
# counts one half.
MEMORY = 8
# Shares of the residual that is allowed: what the recurrence must predict, and how far the measured
# one may be from that prediction.
PROMISED, DRIFT = 0.9, 0.1


class _Krylov(NamedTuple):
    """The basis and the operator's projection on it.

    Vectors are rows. The first ``filled`` of ``basis`` have been multiplied by the operator; the
    next row is the one to multiply next. Column ``j`` of ``projected`` holds the coordinates of the
    image of row ``j``. ``scale`` is the longest image so far; ``factor`` is one over the operator's
    magnitude (``scale.py``), and 0 before the first product.
    """

    basis: Array
    projected: Array
    filled: Array
    scale: Array
    factor: Array
    matvecs: Array


class _Pairs(NamedTuple):
    """Ritz pairs: ``A v_i = values_i v_i + couplings_i (the vector after the basis)``.

    The ``k`` wanted ones first, then those kept besides at a restart.

    ``coordinates`` are those of ``v_i`` in the basis. The length of a coupling is the residual of
    its pair; ``excess`` is the largest over the residual allowed, so that 1 has converged.
    """

    values: Array
    coordinates: Array
    couplings: Array
    excess: Array


class _Hunt(NamedTuple):
    """The search at a check for convergence.

    ``rate`` is the fall of ``log(excess)`` per product, ``steps`` the products planned until the
    next check.
    """

    krylov: _Krylov
    pairs: _Pairs
    rate: Array
    steps: Array


class _Answer(NamedTuple):
    """The pairs so far; ``beyond`` is the vector after the basis.

    ``told``: the couplings are the whole residual. They are not where the basis began with pairs of
    an earlier round, whose own residuals were dropped. ``done``: nothing is left to look for;
    ``promising``: a better value is known to exist, so that another round pays.
    """

    values: Array
    vectors: Array
    couplings: Array
    beyond: Array
    told: Array
    done: Array
    promising: Array


def least_vectors(k: int, free: int) -> int:
    """How many vectors this takes at least: the smallest basis, and the vector after it."""
    return min(free, 2 * k + EXTRA_LEAST) + 1


def thick_restart(search: Search, start: Array, memory: int | None = None) -> EigResult:
    """Solve from the sum of the columns of ``start``, restarting with the best Ritz vectors.

    The basis takes at most ``memory`` bytes, which must be enough for `least_vectors`.

    When several pairs have converged, a look at the complement of the basis counts copies of
    repeated eigenvalues. If it shows a better value, the search continues from there, beside the
    pairs found.
    """
    return _Solver(search, memory).solve(start)


class _Solver:
    """The parts of the solver; sizes that are static under ``jit`` are decided on construction."""

    def __init__(self, search: Search, memory: int | None) -> None:
        self.search, self.fixed = search, search.fixed.T
        self.op: SymmetricOperator = search.op
        k, free, self.dtype = search.k, search.free_dimension, search.op.dtype
        row = search.op.size * jnp.dtype(self.dtype).itemsize
        # `keep` Ritz vectors survive a restart: the wanted ones, and a third of the room beyond
        # them, since the pairs next to the wanted ones decide how fast those converge.
        most = (BASIS_BYTES if memory is None else memory - row) // row
        self.size = min(free, max(2 * k + EXTRA_LEAST, min(BASIS_MOST, most)))
        self.keep = min(k + (self.size - k) // 3, self.size - 1)
        self.signs, self.places = _places(search.ends, self.keep - k)

    def solve(self, start: Array) -> EigResult:
        """Rounds of searching and looking until nothing better is known or products are spent."""
        first = jnp.zeros((self.size + 1, self.op.size), self.dtype)
        zero, scale = jnp.zeros((), jnp.int32), jnp.zeros((), self.dtype)
        projected = jnp.zeros((self.size + 1, self.size), self.dtype)
        first = first.at[0].set(mixed_start(start, self.fixed))
        krylov = _Krylov(first, projected, zero, scale, scale, zero)
        nothing, no = jnp.zeros(self.search.k, self.dtype), jnp.array(False)
        answer = _Answer(nothing, first[: self.search.k], nothing, first[0], no, no, ~no)
        krylov, answer = jax.lax.while_loop(
            lambda state: state[1].promising & self.affordable(state[0]),
            lambda state: self.one_round(state[0]),
            (krylov, answer),
        )
        search = self.search._replace(op=krylov.factor * self.op)
        return restored(_certify(search, answer, krylov), krylov.factor)

    def one_round(self, krylov: _Krylov) -> tuple[_Krylov, _Answer]:
        """Find pairs, then look for better ones; the state returned begins where that led."""
        k = self.search.k
        told, unknown = krylov.filled == 0, jnp.zeros((), self.dtype)
        unchecked = self.pairs_of(krylov)._replace(excess=unknown + jnp.inf)
        hunt = _Hunt(krylov, unchecked, unknown, jnp.asarray(STRIDE, jnp.int32))
        krylov, pairs, *_ = jax.lax.while_loop(self.unsettled, self.hunt, hunt)
        found, values = pairs.excess <= 1, pairs.values[:k]
        vectors = mm(pairs.coordinates[:, :k].T, krylov.basis[: self.size])
        done, better, towards, matvecs = self.looked(krylov, values, found)
        answer = _Answer(
            values,
            vectors,
            pairs.couplings,
            krylov.basis[krylov.filled],
            told,
            found & done,
            found & better,
        )
        onward = self.outside(towards, jnp.concatenate([self.fixed, vectors]))
        krylov = self.beginning(krylov, vectors, values, onward)
        return krylov._replace(matvecs=matvecs), answer

    def looked(self, krylov: _Krylov, values: Array, found: Array):
        """Look for copies at every end, until one is found: whether no end can have one, whether
        one is known to exist, a start for it, and the products made so far."""
        done, better, towards = jnp.array(True), jnp.array(False), krylov.basis[0]
        for sign, of in self.search.by_end(values):
            # No copy can displace the best.
            if len(of) == 1 or not self.search.copies:
                continue
            allowed = self.search.allowed(of[-1], krylov.scale)
            copied = repeated(of, allowed)
            complete = krylov.filled == self.search.free_dimension
            unique = complete | jnp.isinf(copied)
            view = self.look(krylov, sign, copied + allowed / 2, found & ~unique & ~better)
            towards = jnp.where(view.better, view.towards, towards)
            done &= unique | view.nothing
            better |= view.better
            krylov = krylov._replace(matvecs=krylov.matvecs + view.steps)
        return done, better, towards, krylov.matvecs

    # The search

    def unsettled(self, hunt: _Hunt):
        krylov, pairs, *_ = hunt
        open_ = (pairs.excess > 1) & (krylov.filled < self.search.free_dimension)
        return (open_ & self.affordable(krylov)) | (krylov.matvecs == 0)

    def hunt(self, hunt: _Hunt) -> _Hunt:
        """Restart if the basis is full, extend it by the planned products, check the pairs, and
        plan when to check again from how fast the residuals fell."""
        full = hunt.krylov.filled == self.size
        krylov = jax.lax.cond(full, self.restarted, lambda krylov, _: krylov, *hunt[:2])
        steps = jnp.minimum(hunt.steps, self.size - krylov.filled)
        steps = jnp.clip(steps, 1, self.search.max_matvecs - self.search.k - 1 - krylov.matvecs)
        krylov = jax.lax.fori_loop(0, steps, lambda _, krylov: self.extended(krylov), krylov)
        pairs = self.pairs_of(krylov)
        fall = jnp.log(hunt.pairs.excess / pairs.excess)
        fall = jnp.where(jnp.isfinite(fall), fall, 0)
        taken = steps.astype(self.dtype)
        rate = (MEMORY * hunt.rate + fall) / (MEMORY + taken)
        # 0.6 of what the rate predicts: convergence accelerates in the end, and a product too many
        # costs as much as a check too many.
        planned = jnp.ceil(0.6 * jnp.log(pairs.excess) / jnp.maximum(rate, fall / taken))
        planned = jnp.where(planned > 0, jnp.minimum(planned, STRIDE_MOST), STRIDE_MOST)
        return _Hunt(krylov, pairs, rate, planned.astype(jnp.int32))

    def extended(self, krylov: _Krylov) -> _Krylov:
        """One Lanczos step: multiply the next basis vector, and append what is new in its image."""
        basis, projected, j, scale, factor, matvecs = krylov
        q = basis[j]
        image, factor = seen(self.op, factor, q)
        image = off_rows(factor * image, self.fixed)
        alpha = jnp.vdot(q, image, precision=Precision.HIGHEST)
        beta = projected[j, j - 1]
        # In exact arithmetic nothing is left along older vectors. There is rounding, which grows
        # if it is not removed, and right after a restart the parts along the kept Ritz vectors.
        rest = image - alpha * q - beta * basis[j - 1]
        rest, coordinates = off_rows_checked(rest, basis)
        # If little is left (near a breakdown), rounding errors of the image along the fixed vectors
        # are large beside it: remove them once more.
        rest = off_rows(rest, self.fixed)
        scale, length = jnp.maximum(scale, jnp.linalg.norm(image)), jnp.linalg.norm(rest)
        # Breakdown: the basis spans an invariant subspace, and what is left is rounding. Go on with
        # a fresh pseudo-random vector orthogonal to it, which nothing in the basis couples to.
        broken = vanishes(length, scale)
        following = jax.lax.cond(
            broken,
            lambda: self.outside(self.fresh(matvecs + 1), jnp.concatenate([self.fixed, basis])),
            lambda: rest / length,
        )
        exists = j + 1 < self.search.free_dimension
        column = coordinates.at[j - 1].add(beta).at[j].add(alpha)
        column = column.at[j + 1].set(jnp.where(broken, 0, length))
        return _Krylov(
            basis.at[j + 1].set(jnp.where(exists, following, 0)),
            projected.at[:, j].set(column),
            j + 1,
            scale,
            factor,
            matvecs + 1,
        )

    def pairs_of(self, krylov: _Krylov) -> _Pairs:
        """Ritz pairs of the basis. Their residuals need no product: only the last basis vector has
        an image that leaves the basis, so a residual is its coupling times the pair's last entry
        (Golub & Van Loan, section 10.1)."""
        projected, filled, k = krylov.projected, krylov.filled, self.search.k
        values, y = best_pairs(*self.square(krylov), self.size)
        # Ascending, those of rows that are not filled yet at the end.
        index = jnp.where(self.signs > 0, self.places, filled - 1 - self.places)
        values, y = (jnp.take(x, index, axis=-1, mode="clip") for x in (values, y))
        couplings = projected[filled, filled - 1] * y[filled - 1, :k]
        allowed = PROMISED * self.search.allowed(values[:k], krylov.scale)
        excess = jnp.abs(couplings) / jnp.maximum(allowed, jnp.finfo(self.dtype).tiny)
        return _Pairs(values, y, couplings, jnp.where(filled < k, jnp.inf, jnp.max(excess)))

    def square(self, krylov: _Krylov) -> tuple[Array, Array]:
        """The operator's projection on the basis, and which basis vectors were multiplied."""
        # Ritz vectors kept at a restart are not multiplied again. What couples them to the vector
        # after them was found when that one was multiplied: in its column, the upper triangle.
        projected = krylov.projected[: self.size]
        met = jnp.arange(self.size, dtype=jnp.int32) < krylov.filled
        square = jnp.triu(projected) + jnp.triu(projected, 1).T
        return jnp.where(met & met[:, None], square, 0), met

    def restarted(self, krylov: _Krylov, pairs: _Pairs) -> _Krylov:
        """The best Ritz vectors as a new basis, followed by the vector after the old one."""
        ritz = mm(pairs.coordinates[:, : self.keep].T, krylov.basis[: self.size])
        return self.beginning(krylov, ritz, pairs.values[: self.keep], krylov.basis[self.size])

    def beginning(self, krylov: _Krylov, ritz: Array, values: Array, following: Array) -> _Krylov:
        """A basis of Ritz vectors, with their values as its projection, and the next vector.

        The couplings of both are not needed: they appear in the next vector's image.
        """
        count = len(values)
        basis = jnp.zeros_like(krylov.basis).at[:count].set(ritz)
        projected = jnp.zeros_like(krylov.projected).at[:count, :count].set(jnp.diag(values))
        basis = basis.at[count].set(following)
        return krylov._replace(
            basis=basis, projected=projected, filled=jnp.asarray(count, jnp.int32)
        )

    # The look

    def look(self, krylov: _Krylov, sign: int, point: Array, wanted: Array) -> Look:
        """Has ``sign * A`` more eigenvalues below ``point`` than its basis shows? See `Look`.

        The block of the basis is coupled to the vector ``q`` after it alone: the Schur complement
        is ``A - point`` on the complement, less a multiple of ``q q^T``.
        """
        op = krylov.factor * self.op
        following = krylov.basis[krylov.filled]
        known = jnp.concatenate([self.fixed, krylov.basis.at[krylov.filled].set(0)])
        drop = self.eliminated(krylov, sign, point)

        def image(q: Array) -> Array:
            return sign * (op @ q) - drop * jnp.vdot(following, q) * following

        start = self.outside(self.fresh(krylov.matvecs + 1), known)
        steps = self.search.max_matvecs - self.search.k - 1 - krylov.matvecs
        return look(image, start, known, point, krylov.scale, jnp.where(wanted, steps, 0))

    def eliminated(self, krylov: _Krylov, sign: int, point: Array) -> Array:
        """``b^T (sign T - point)^-1 b``, ``b`` the coupling of the basis to the vector ``q`` after
        it: the factor of ``q q^T`` in the Schur complement."""
        square, met = self.square(krylov)
        last = jnp.arange(self.size, dtype=jnp.int32) == krylov.filled - 1
        coupling = krylov.projected[krylov.filled, krylov.filled - 1]
        shifted = sign * square + jnp.diag(jnp.where(met, 0.0, 1.0) - point)
        solution = jnp.linalg.solve(shifted, last.astype(self.dtype))
        return coupling**2 * solution[krylov.filled - 1]

    # What both need

    def affordable(self, state):
        """Whether one more product leaves the ``k + 1`` that certifying the answer may take."""
        first = state.matvecs == 0
        return first | (state.matvecs + self.search.k + 1 < self.search.max_matvecs)

    def fresh(self, number) -> Array:
        """A pseudo-random vector, another for every ``number``."""
        return generic_vectors(self.op.size, 1, self.dtype, stream=number + 2)[:, 0]

    def outside(self, vector: Array, known: Array) -> Array:
        """The part of a vector outside orthonormal rows, at unit length."""
        return unit_rows(off_rows(vector, known)[None])[0]


def _places(ends: tuple[tuple[int, int], ...], more: int) -> tuple[np.ndarray, np.ndarray]:
    """The sign of the end and the place from there of the wanted pairs, and of ``more`` besides,
    which the ends share evenly."""
    taken = [(sign, place) for sign, count in ends for place in range(count)]
    for extra in range(more):
        sign, count = ends[extra % len(ends)]
        taken.append((sign, count + extra // len(ends)))
    signs, places = np.array(taken, np.int32).T
    return signs, places


def _certify(search: Search, answer: _Answer, krylov: _Krylov) -> EigResult:
    """The answer with residuals that are known to hold.

    The couplings predict residuals for nothing, but after many steps rounding may have made them
    wrong. One product, with the sum of all vectors under random signs, checks the prediction for
    all pairs at once. If it fails, every vector gets a product of its own. A single pair is always
    measured: that is one product as well.
    """
    if search.k == 1:
        result = search.certify(answer.vectors.T, krylov.scale, krylov.matvecs)
        return result._replace(converged=result.converged & answer.done)
    values, vectors, couplings = answer.values, answer.vectors, answer.couplings
    signs = jnp.copysign(jnp.ones_like(values), generic_vectors(search.k, 1, values.dtype)[:, 0])
    expected = mm(signs * values, vectors) + jnp.sum(signs * couplings) * answer.beyond
    # The length of the sum of all prediction errors under the signs. For independent random signs
    # the mean of its square is the sum of the squared errors, so that errors hardly cancel.
    drift = jnp.linalg.norm(search.op @ mm(signs, vectors) - expected)
    small = drift <= DRIFT * jnp.min(search.allowed(values, krylov.scale))

    def confirmed():
        residuals = jnp.hypot(couplings, drift)
        converged = jnp.ones(search.k, bool)
        return EigResult(values, vectors.T, residuals, converged, krylov.matvecs + 1)

    def measured():
        result = search.certify(vectors.T, krylov.scale, krylov.matvecs + 1)
        return result._replace(converged=result.converged & answer.done)

    return jax.lax.cond(answer.told & answer.done & small, confirmed, measured)
