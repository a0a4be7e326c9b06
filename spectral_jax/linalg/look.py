"""Does an operator have eigenvalues that an eigensolver has missed?

One Krylov space holds one vector of a repeated eigenvalue, however long it grows: a further copy
leaves no trace in values and residuals. Only a new start outside the vectors found shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Bool

from spectral_jax.linalg.subspace import off_rows_checked

# The chance, over generic vectors, of overlooking another copy of an eigenvalue.
OVERLOOKED = 1e-4


class Look(NamedTuple):
    """A three-term Lanczos recurrence, and what its tridiagonal matrix ``T`` says of one point.

    Write ``A - point`` in blocks: the vectors known, and their complement. By Haynsworth's inertia
    formula (1968) it has as many negative eigenvalues as the block of the known vectors, where they
    are known, and the Schur complement ``S`` together. So look for a negative eigenvalue of ``S``,
    by Lanczos from a generic vector ``g`` of the complement.

    ``pivot`` is the last one of the factorisation ``T - point = L D L^T``: a negative one means
    that ``T``, and so the operator, has an eigenvalue below ``point`` (Sylvester's inertia).
    ``growth`` is the value at ``point`` of the orthonormal polynomial that belongs to ``q`` (its
    Lanczos vector is that polynomial of the operator, times the start), ``total`` the sum of the
    squares so far. While no pivot is negative, it is at most ``1 / (u^T g)^2`` for the eigenvector
    ``u`` of any negative eigenvalue of ``S``. It grows from step to step, until such a ``u`` would
    have to be improbably orthogonal to ``g``. ``towards`` is the sum of ``growth * q``: parts below
    ``point`` add up in it, so that it is a start for the missing vector.
    """

    q: Array
    before: Array
    beta: Array
    pivot: Array
    growth: Array
    total: Array
    towards: Array
    steps: Array

    @property
    def better(self) -> Bool[Array, ""]:
        """Whether there is an eigenvalue below the point."""
        return self.pivot < 0

    @property
    def nothing(self) -> Bool[Array, ""]:
        """Whether there is none.

        A generic vector has a part ``u^T g`` of about ``n^-1/2`` in a unit vector ``u``, and one
        below ``c n^-1/2`` with the chance ``sqrt(2 / pi) c`` (a normal density near 0). With ``c``
        chosen for the chance ``OVERLOOKED``, ``1 / (u^T g)^2`` is what ``total`` must reach.
        """
        enough = 2 * self.q.size / (math.pi * OVERLOOKED**2)
        return (self.pivot >= 0) & (self.total >= enough)


def look(
    image_of: Callable[[Array], Array],
    start: Array,
    known: Array,
    point: Array,
    scale: Array,
    steps: Array,
) -> Look:
    """Look below ``point`` outside of the rows ``known``, in at most so many ``steps``.

    ``image_of`` is the product with ``S + point``, up to parts along the rows known; ``start`` a
    generic unit vector outside of them; ``scale`` is the longest image so far.
    """

    def step(now: Look) -> Look:
        image = image_of(now.q)
        alpha = jnp.vdot(now.q, image, precision=Precision.HIGHEST)
        rest, _ = off_rows_checked(image - alpha * now.q - now.beta * now.before, known)
        beta = jnp.linalg.norm(rest)
        pivot = alpha - point - now.beta**2 / now.pivot
        # Breakdown: the vectors span an invariant subspace, in which a generic start has a part of
        # every eigenvalue. None was below, so there is none.
        growth = jnp.where(vanishes(beta, scale), jnp.inf, -pivot / beta) * now.growth
        return Look(
            q=rest / beta,
            before=now.q,
            beta=beta,
            pivot=pivot,
            growth=growth,
            total=now.total + growth**2,
            towards=now.towards + now.growth * now.q,
            steps=now.steps + 1,
        )

    def is_open(now: Look) -> Array:
        return (now.pivot >= 0) & ~now.nothing & (now.steps < steps)

    one, zeros = jnp.ones((), start.dtype), jnp.zeros_like(start)
    count = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(
        is_open, step, Look(start, zeros, 0 * one, one, one, one, zeros, count)
    )


def repeated(values: Array, allowed: Array) -> Array:
    """The largest of ascending values of which another copy would displace one; else ``-inf``.

    Another copy of the last value is as good as the one found. So it is the largest that is less
    than the last by more than the error ``allowed`` to both.
    """
    return jnp.max(jnp.where(values < values[-1] - 2 * allowed, values, -jnp.inf))


def vanishes(length: Array, scale: Array) -> Bool[Array, ""]:
    """Whether what is left of an image is nothing but its rounding error."""
    return length <= 10 * float(jnp.finfo(length.dtype).eps) * scale
