"""The Moore-Penrose inverse, with a derivative that holds where singular values repeat."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectral_jax.linalg.decompositions import eigh
from spectral_jax.linalg.subspace import mm


@jax.custom_jvp
def pseudo_inverse(a: Float[Array, "m n"], noise: Float[Array, ""]) -> Float[Array, "n m"]:
    """``A^+``, in which singular values up to ``max(noise, sqrt(max(m, n) eps) ||A||)`` count as 0.

    By the Gram matrix of the short side: a singular value of ``A`` comes with a relative error of
    ``eps (||A|| / s)^2``. The rank is ``tr(A A^+)``. The derivative is that at constant rank (Golub
    & Pereyra 1973, equation 4.12), which has no differences of singular values in it: it is right
    for the frames of a collapsed network, all of whose singular values are alike, and a derivative
    through singular vectors is not. NaN in ``A`` is NaN in all of the result.
    """
    wide = a.shape[0] <= a.shape[1]
    values, vectors = eigh(mm(a, a.T) if wide else mm(a.T, a))
    floor = jnp.maximum(noise**2, max(a.shape) * float(jnp.finfo(a.dtype).eps) * values[-1])
    lost = values <= floor  # False for NaN
    inverse = mm(vectors * jnp.where(lost, 0, 1 / jnp.where(lost, 1, values)), vectors.T)
    return mm(a.T, inverse) if wide else mm(inverse, a.T)


@pseudo_inverse.defjvp
def _at_constant_rank(primals, tangents):
    a, _ = primals
    da, _ = tangents
    inverse = pseudo_inverse(*primals)
    inside = -mm(mm(inverse, da), inverse)
    # What leaves the column space of A, and what leaves its row space.
    columns = mm(mm(inverse, inverse.T), da.T - mm(da.T, mm(a, inverse)))
    rows = mm(da.T - mm(mm(inverse, a), da.T), mm(inverse.T, inverse))
    return inverse, inside + columns + rows
