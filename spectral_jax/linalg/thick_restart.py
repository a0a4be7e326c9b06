"""Thick-restart Lanczos (Wu & Simon 2000), and a look at what one Krylov space cannot hold."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array

from spectral_jax.linalg.operators import SymmetricOperator
from spectral_jax.linalg.scale import seen
from spectral_jax.linalg.subspace import (
    EigResult,
    Search,
    best_pairs,
    generic_vectors,
    mm,
    off_rows,
    off_rows_checked,
    restored,
    unit_rows,
)

# Basis vectors beyond the wanted pairs: as many as the memory holds, between these.
EXTRA_LEAST, BASIS_MOST = 20, 64
BASIS_BYTES = 2**26
# Products before the first check, and between two at most. A check costs about as much as one.
STRIDE, STRIDE_MOST = 16, 32
# Products after which the rate of convergence is half forgotten.
MEMORY = 8
# How much of the start is generic: what the given start lacks must be there to grow.
GENERIC_PART = 0.1
# Shares of the error allowed: what the recurrence must promise, and by how much it may be off.
PROMISED, DRIFT = 0.9, 0.1
# The chance of overlooking another copy of an eigenvalue, wherever in the spectrum it lies.
OVERLOOKED = 1e-4


class _Krylov(NamedTuple):
    """Vectors are rows; the first ``filled`` of the basis have met the operator.

    ``factor`` is one over the operator's magnitude, and 0 before the first product.
    """

    basis: Array
    projected: Array
    filled: Array
    scale: Array
    factor: Array
    matvecs: Array


class _Pairs(NamedTuple):
    """What the basis says: ``A v_i = values_i v_i + couplings_i (the vector after the basis)``.

    ``excess`` is the worst residual, over the error that is allowed.
    """

    values: Array
    coordinates: Array
    couplings: Array
    excess: Array


class _Hunt(NamedTuple):
    """Lanczos at a check: how fast residuals fall, and the products planned until the next."""

    krylov: _Krylov
    pairs: _Pairs
    rate: Array
    steps: Array


class _Answer(NamedTuple):
    """The pairs so far; ``beyond`` is the vector after the basis.

    ``told`` says that the couplings tell all, those of a basis that began with earlier pairs not.
    """

    values: Array
    vectors: Array
    couplings: Array
    beyond: Array
    told: Array
    done: Array
    promising: Array


class _Look(NamedTuple):
    """A bare Lanczos recurrence from ``q``, and what its tridiagonal matrix says of one point.

    ``pivot``, of its factorisation there, is negative as soon as it has an eigenvalue below.
    ``growth`` is the orthonormal polynomial that belongs to ``q``; ``total`` its squares so far,
    ``towards`` their sum over the vectors, where what is below comes to the fore.
    """

    q: Array
    before: Array
    beta: Array
    pivot: Array
    growth: Array
    total: Array
    towards: Array
    matvecs: Array


def thick_restart(search: Search, start: Array) -> EigResult:
    """Solve from the sum of the columns of ``start``, restarting with the best Ritz vectors.

    One Krylov space holds a single vector of a repeated eigenvalue, so several converged pairs get
    a look at what is orthogonal to it. Where that shows a better value, the search goes on from
    there, beside the pairs found.
    """
    return _Solver(search).solve(start)


class _Solver:
    """The parts of the solver; everything static is decided here."""

    def __init__(self, search: Search) -> None:
        self.search, self.fixed = search, search.fixed.T
        self.op: SymmetricOperator = search.op
        k, free, self.dtype = search.k, search.free_dimension, search.op.dtype
        row = search.op.size * jnp.dtype(self.dtype).itemsize
        self.size = min(free, max(2 * k + EXTRA_LEAST, min(BASIS_MOST, BASIS_BYTES // row)))
        self.keep = min(k + (self.size - k) // 3, self.size - 1)

    def solve(self, start: Array) -> EigResult:
        generic = GENERIC_PART * unit_rows(self.fresh(0)[None])[0]
        mixed = unit_rows(jnp.sum(unit_rows(start.T), axis=0)[None])[0] + generic
        first = jnp.zeros((self.size + 1, self.op.size), self.dtype)
        zero, scale = jnp.zeros((), jnp.int32), jnp.zeros((), self.dtype)
        projected = jnp.zeros((self.size + 1, self.size), self.dtype)
        first = first.at[0].set(self.outside(mixed, self.fixed))
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
        """Find pairs, and look beyond them. If that finds more, the next round begins there."""
        k, sign = self.search.k, self.search.sign
        told, unknown = krylov.filled == 0, jnp.zeros((), self.dtype)
        unchecked = self.pairs_of(krylov)._replace(excess=unknown + jnp.inf)
        hunt = _Hunt(krylov, unchecked, unknown, jnp.asarray(STRIDE, jnp.int32))
        krylov, pairs, *_ = jax.lax.while_loop(self.unsettled, self.hunt, hunt)
        found, values = pairs.excess <= 1, pairs.values[:k]
        vectors = mm(pairs.coordinates[:, :k].T, krylov.basis[: self.size])
        allowed = self.search.allowed(values[-1], krylov.scale)
        # Another copy of the last value would be no better: below those to find it must lie.
        copied = jnp.max(jnp.where(values < values[-1] - 2 * allowed, values, -jnp.inf))
        unique = (k == 1) | (krylov.filled == self.search.free_dimension) | jnp.isinf(copied)
        look = self.look(krylov, copied + allowed / 2, found & ~unique)
        better = look.pivot < 0
        done = found & (unique | (~better & (look.total >= self.enough)))
        answer = _Answer(
            sign * values,
            vectors,
            pairs.couplings,
            krylov.basis[krylov.filled],
            told,
            done,
            found & better,
        )
        onward = self.outside(look.towards, jnp.concatenate([self.fixed, vectors]))
        krylov = self.beginning(krylov, vectors, sign * values, onward)
        return krylov._replace(matvecs=look.matvecs), answer

    # The search

    def unsettled(self, hunt: _Hunt):
        krylov, pairs, *_ = hunt
        open_ = (pairs.excess > 1) & (krylov.filled < self.search.free_dimension)
        return (open_ & self.affordable(krylov)) | (krylov.matvecs == 0)

    def hunt(self, hunt: _Hunt) -> _Hunt:
        """Restart where the basis is full, extend it, check the pairs, plan the next check."""
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
        # Convergence speeds up in the end: not all that the rate asks for.
        planned = jnp.ceil(0.6 * jnp.log(pairs.excess) / jnp.maximum(rate, fall / taken))
        planned = jnp.where(planned > 0, jnp.minimum(planned, STRIDE_MOST), STRIDE_MOST)
        return _Hunt(krylov, pairs, rate, planned.astype(jnp.int32))

    def extended(self, krylov: _Krylov) -> _Krylov:
        """One more vector meets the operator; what is new comes next."""
        basis, projected, j, scale, factor, matvecs = krylov
        q = basis[j]
        image, factor = seen(self.op, factor, q)
        image = off_rows(factor * image, self.fixed)
        alpha = jnp.vdot(q, image, precision=Precision.HIGHEST)
        beta = projected[j, j - 1]
        # Beyond these two there is rounding, and after a restart what the kept vectors couple to.
        rest = image - alpha * q - beta * basis[j - 1]
        rest, coordinates = off_rows_checked(rest, basis)
        # Near a breakdown the rounding of the image is large beside what is left.
        rest = off_rows(rest, self.fixed)
        scale, length = jnp.maximum(scale, jnp.linalg.norm(image)), jnp.linalg.norm(rest)
        # An invariant subspace is complete: go on in a fresh direction, coupled to nothing.
        broken = self.vanishes(length, scale)
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
        projected, filled, k = krylov.projected, krylov.filled, self.search.k
        square, met = self.square(krylov)
        values, y = best_pairs(self.search.sign * square, met, max(self.keep, k))
        couplings = projected[filled, filled - 1] * y[filled - 1, :k]
        allowed = PROMISED * self.search.allowed(values[:k], krylov.scale)
        excess = jnp.abs(couplings) / jnp.maximum(allowed, jnp.finfo(self.dtype).tiny)
        return _Pairs(values, y, couplings, jnp.where(filled < k, jnp.inf, jnp.max(excess)))

    def square(self, krylov: _Krylov) -> tuple[Array, Array]:
        """The operator on the basis, and which vectors it knows."""
        # Kept vectors were not multiplied again: what couples them is in the upper triangle.
        projected = krylov.projected[: self.size]
        met = jnp.arange(self.size, dtype=jnp.int32) < krylov.filled
        square = jnp.triu(projected) + jnp.triu(projected, 1).T
        return jnp.where(met & met[:, None], square, 0), met

    def restarted(self, krylov: _Krylov, pairs: _Pairs) -> _Krylov:
        ritz = mm(pairs.coordinates[:, : self.keep].T, krylov.basis[: self.size])
        values = self.search.sign * pairs.values[: self.keep]
        return self.beginning(krylov, ritz, values, krylov.basis[self.size])

    def beginning(self, krylov: _Krylov, ritz: Array, values: Array, following: Array) -> _Krylov:
        """A basis of Ritz vectors; what couples them to the next shows when that is multiplied."""
        count = len(values)
        basis = jnp.zeros_like(krylov.basis).at[:count].set(ritz)
        projected = jnp.zeros_like(krylov.projected).at[:count, :count].set(jnp.diag(values))
        basis = basis.at[count].set(following)
        return krylov._replace(
            basis=basis, projected=projected, filled=jnp.asarray(count, jnp.int32)
        )

    # The look

    @property
    def enough(self) -> float:
        """The growth in all at which a look may stop."""
        return 2 * self.op.size / (math.pi * OVERLOOKED**2)

    def look(self, krylov: _Krylov, point: Array, wanted: Array) -> _Look:
        """Has the operator more eigenvalues below ``point`` than its basis shows?

        By Haynsworth's inertia formula it has as many more as the Schur complement ``S`` of the
        basis in ``A - point``, which is ``A - point`` off the basis, less a multiple of ``q q^T``
        where ``q`` is the vector that comes next. Lanczos from a generic vector ``g`` looks for
        an eigenvalue of ``S`` below 0. While it sees none, the squares of its polynomials at
        ``point`` add up to at most ``1 / (u^T g)^2`` for every eigenvector ``u`` of one: in the
        end ``u^T g`` would have to be improbably small.
        """
        op, sign = krylov.factor * self.op, self.search.sign
        krylov_next = krylov.filled
        following = krylov.basis[krylov_next]
        known = jnp.concatenate([self.fixed, krylov.basis.at[krylov_next].set(0)])
        drop = self.eliminated(krylov, point)

        def step(look: _Look) -> _Look:
            q = look.q
            image = sign * (op @ q) - drop * jnp.vdot(following, q) * following
            alpha = jnp.vdot(q, image, precision=Precision.HIGHEST)
            rest, _ = off_rows_checked(image - alpha * q - look.beta * look.before, known)
            beta = jnp.linalg.norm(rest)
            pivot = alpha - point - look.beta**2 / look.pivot
            # An invariant subspace has a part in every eigenvalue there is.
            growth = jnp.where(self.vanishes(beta, krylov.scale), jnp.inf, -pivot / beta)
            growth = growth * look.growth
            return _Look(
                q=rest / beta,
                before=q,
                beta=beta,
                pivot=pivot,
                growth=growth,
                total=look.total + growth**2,
                towards=look.towards + look.growth * q,
                matvecs=look.matvecs + 1,
            )

        def open_(look: _Look):
            undecided = (look.pivot >= 0) & (look.total < self.enough)
            return wanted & undecided & self.affordable(look)

        start = self.outside(self.fresh(krylov.matvecs + 1), known)
        one, zero = jnp.ones((), self.dtype), jnp.zeros((), self.dtype)
        zeros = jnp.zeros_like(start)
        look = _Look(start, zeros, zero, one, one, one, zeros, krylov.matvecs)
        return jax.lax.while_loop(open_, step, look)

    def eliminated(self, krylov: _Krylov, point: Array) -> Array:
        """``b^T (T - point)^-1 b``, ``b`` what couples the basis to the next vector."""
        square, met = self.square(krylov)
        last = jnp.arange(self.size, dtype=jnp.int32) == krylov.filled - 1
        coupling = krylov.projected[krylov.filled, krylov.filled - 1]
        shifted = self.search.sign * square + jnp.diag(jnp.where(met, 0.0, 1.0) - point)
        solution = jnp.linalg.solve(shifted, last.astype(self.dtype))
        return coupling**2 * solution[krylov.filled - 1]

    # What both need

    def affordable(self, state):
        """Whether one more product leaves what certifying the answer may take."""
        first = state.matvecs == 0
        return first | (state.matvecs + self.search.k + 1 < self.search.max_matvecs)

    def vanishes(self, length, scale):
        return length <= 10 * jnp.finfo(self.dtype).eps * scale

    def fresh(self, number) -> Array:
        return generic_vectors(self.op.size, 1, self.dtype, stream=number + 2)[:, 0]

    def outside(self, vector: Array, known: Array) -> Array:
        return unit_rows(off_rows(vector, known)[None])[0]


def _certify(search: Search, answer: _Answer, krylov: _Krylov) -> EigResult:
    """The residuals of the recurrence, if a product with a mixture of all vectors confirms them."""
    if search.k == 1:
        result = search.certify(answer.vectors.T, krylov.scale, krylov.matvecs)
        return result._replace(converged=result.converged & answer.done)
    values, vectors, couplings = answer.values, answer.vectors, answer.couplings
    signs = jnp.copysign(jnp.ones_like(values), generic_vectors(search.k, 1, values.dtype)[:, 0])
    expected = mm(signs * values, vectors) + jnp.sum(signs * couplings) * answer.beyond
    # With random signs its square is that of all errors together, in the mean; of one, exactly.
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
