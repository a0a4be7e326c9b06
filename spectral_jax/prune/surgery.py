"""Operations on the singular values of one matrix, and its split into two thinner ones.

All but `split` return a matrix of the same shape, so the rank may be traced: a compiled program has
static shapes. `split` returns factors whose shapes depend on the rank, which must be a Python int.

``edge`` is the largest singular value that noise alone would give: values up to it are noise, those
above it signal. `spectral_jax.rmt.fit_marchenko_pastur` estimates it from the eigenvalues
``s^2 / max(m, n)``, so that ``edge = sqrt(max(m, n) * fit.edge)``. Where it is NaN, as of a fit
that failed, nothing is known to be noise, and all values count as signal.

Leading axes are a batch, with one edge, rank or threshold for all or one for each. Half precision
is computed in float32 and returned in the dtype of the matrix; complex matrices are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from spectral_jax import rmt
from spectral_jax._factors import split_refusal
from spectral_jax._transforms.leaves import like
from spectral_jax.linalg.arguments import check_key
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.subspace import mm

Factored = Mapping[str, "Array | Factored"]
"""A kernel as ``{"u": first, "v": second}``, each an array or factored in turn."""


class Spectrum(NamedTuple):
    """Half of a singular value decomposition: enough to change the values of a matrix.

    values: singular values, descending.
    vectors: singular vectors of the shorter side, as columns: ``V`` of ``U S V^T`` where
      ``m >= n``, else ``U``. Those of the longer side follow from a product with the matrix.
    """

    values: Float[Array, "*batch p"]
    vectors: Float[Array, "*batch p p"]


def spectrum(w: Float[Array, "*batch m n"]) -> Spectrum:
    """Singular values and vectors of the shorter side, from the eigenvalues of the Gram matrix.

    That is ``W^T W`` or ``W W^T``, whichever is the smaller, ``p = min(m, n)``; it takes a third of
    the time of an SVD. Squaring costs accuracy: the absolute error of ``s`` is about
    ``eps max(s)^2 / s``, so values below ``sqrt(eps) max(s)`` are rounding errors. The edge of a
    trained layer lies far above that.
    Holds under ``jit`` and ``vmap``; NaN or inf in a matrix gives NaN for that matrix only.
    Source: Golub & Van Loan, Matrix Computations, section 8.6.
    """
    w = _matrices(w)
    scale = unit_of(w, axis=(-2, -1), keepdims=True)
    squares, vectors = jnp.linalg.eigh(_gram(w / scale))
    values = jnp.sqrt(jnp.maximum(squares, 0)) * scale[..., 0]
    return Spectrum(values[..., ::-1], vectors[..., ::-1])


def rescaled(
    w: Float[Array, "*batch m n"], spectral: Spectrum, gains: Float[Array, "*batch p"]
) -> Float[Array, "*batch m n"]:
    """``sum_i gains_i s_i u_i v_i^T``: the matrix with every singular value times its gain.

    As ``W V diag(gains) V^T`` (or the same from the left), which needs no vectors of the longer
    side and divides by no singular value.
    """
    scaled = spectral.vectors * gains[..., None, :]
    transposed = jnp.swapaxes(spectral.vectors, -2, -1)
    if _tall(w):
        return mm(mm(w, scaled), transposed)
    return mm(scaled, mm(transposed, w))


def truncate(
    w: Float[Array, "*batch m n"], rank: int | Int[Array, "*batch"]
) -> Float[Array, "*batch m n"]:
    """The best approximation of that rank: the ``rank`` largest singular values, the rest at 0.

    ``rank`` may be traced. The squared Frobenius error is the sum of the dropped squares
    (Eckart-Young). Holds under ``jit`` and ``vmap``. Raises ``ValueError`` for a rank that is
    known to be negative, or no integer.

    >>> truncate(jnp.diag(jnp.array([3.0, 2.0, 1.0])), 2).diagonal().round(5)
    Array([3., 2., 0.], dtype=float32)
    """
    _check_rank(rank, least=0)
    return _with_gains(w, lambda values: first(values, rank))


def halve(
    w: Float[Array, "*batch m n"], edge: float | Float[Array, "*batch"]
) -> Float[Array, "*batch m n"]:
    """Halve the singular values up to ``edge``; keep those above.

    Holds under ``jit`` and ``vmap``. Source: variant 2 of the released code of arXiv 2303.08986.
    """
    return _with_gains(w, lambda values: jnp.where(_above(values, edge), 1, 0.5))


def random_subset(
    key: PRNGKeyArray,
    w: Float[Array, "*batch m n"],
    edge: float | Float[Array, "*batch"],
    keep_below: float | Float[Array, ""],
) -> Float[Array, "*batch m n"]:
    """Keep every singular value above ``edge`` and a random share ``keep_below`` of the others.

    Of ``count`` values up to the edge it keeps ``floor(keep_below count)``, as many as the rule
    that keeps the largest of them: a control for whether it matters which ones stay.
    Holds under ``jit`` and ``vmap``. Source: variant 3 of the code of arXiv 2303.08986.
    """

    check_key(key, draws="a random subset is drawn")

    def kept(values):
        return random_choice(key, values, edge, kept_rank(values, edge, keep_below))

    return _with_gains(w, kept)


def shrink(
    w: Float[Array, "*batch m n"], noise: float | Float[Array, "*batch"]
) -> Float[Array, "*batch m n"]:
    """Undo what noise of standard deviation ``noise`` per entry did to the singular values.

    Noise makes each singular value of a signal larger, by a known amount, which
    `spectral_jax.rmt.optimal_shrinkage` takes off again; it sets to 0 what cannot be told from
    noise. Holds under ``jit`` and ``vmap``.
    Raises ``ValueError`` for ``noise`` not above 0. Source: Gavish & Donoho, arXiv 1405.7511.
    """
    m, n = _matrices(w).shape[-2:]
    return _with_gains(w, lambda values: shrinkage(values, (m, n), noise))


def sparsify(
    w: Float[Array, "*batch m n"],
    edge: float | Float[Array, "*batch"],
    threshold: float | Float[Array, "*batch"],
) -> Float[Array, "*batch m n"]:
    """Set the small entries of the noise to zero, and leave the signal as it is.

    ``w = signal + r``, of the singular values above ``edge`` and of those up to it; the entries
    ``|r_ij| <= threshold`` become 0. The result has full rank in general.
    Holds under ``jit`` and ``vmap``.
    Sources: arXiv 2310.03165 for the threshold, 2606.02608 for sparing the signal.
    """
    x = _matrices(w)
    return like(w, sparsified(x, spectrum(x), edge, threshold))


def sparsify_vectors(
    w: Float[Array, "*batch m n"],
    edge: float | Float[Array, "*batch"],
    theta: float | Float[Array, "*batch"],
    *,
    floor: float = 1 / 750,
    power: int = 30,
) -> Float[Array, "*batch m n"]:
    """Set small entries of the singular vectors to zero, more of them where ``s_i`` is smaller.

    An entry of ``u_i`` or ``v_i`` becomes 0 if its magnitude is at most
    ``theta max(floor, max(0, 1 - s_i / edge)^power)``.

    Args:
      theta: the limit for a vector whose singular value is 0.
      floor: the least share of ``theta``: the limit of all vectors above the edge.
      power: how fast the limit falls from there towards the edge.

    Holds under ``jit`` and ``vmap``. Source: the code of arXiv 2503.01922.
    """
    x = _matrices(w)
    return like(w, with_sparse_vectors(x, spectrum(x), edge, theta, floor=floor, power=power))


def split(kernel: Float[Array, "*window m n"], rank: int) -> dict[str, Array]:
    """Two layers in place of one: ``{"u": [m, rank], "v": [rank, n]}``, the best of that rank.

    ``u v = U_k S_k V_k^T``, the truncated matrix, with ``sqrt(S_k)`` in each factor. A convolution
    ``[h, w, i, o]`` is read as ``[h w i, o]`` and becomes two: ``u [h, w, i, rank]`` with its
    window, then ``v [1, 1, rank, o]``. Holds under ``jit`` (``rank`` is static).
    Raises ``ValueError`` with the reason where two factors would not save parameters, and for a
    rank that is no integer.
    Source: arXiv 2303.08986.

    >>> {name: factor.shape for name, factor in split(jnp.ones((8, 6)), 2).items()}
    {'u': (8, 2), 'v': (2, 6)}
    """
    _check_rank(rank)
    refused = split_refusal(kernel.shape, rank)
    if refused:
        raise ValueError(f"rank={rank}: {refused}")
    *window, m, n = kernel.shape
    w = working(kernel, "kernel").reshape(-1, n)
    found = spectrum(w)
    vectors = found.vectors[:, :rank]
    roots = jnp.sqrt(found.values[:rank])
    inverse = jnp.where(roots > 0, 1 / jnp.where(roots > 0, roots, 1), 0)
    if _tall(w):
        u, v = mm(w, vectors * inverse), (vectors * roots).T
    else:
        u, v = vectors * roots, mm((vectors * inverse).T, w)
    u, v = u.reshape(*window, m, rank), v.reshape(*[1] * len(window), rank, n)
    return {"u": like(kernel, u), "v": like(kernel, v)}


def recombine(kernel: "Array | Factored") -> Array:
    """The product of a kernel's factors; a kernel that is not factored stays as it is.

    Undoes `split`, also of factors that were split again. Holds under ``jit``, ``vmap``, ``grad``.
    """
    if not isinstance(kernel, Mapping):
        return kernel
    u, v = recombine(kernel["u"]), recombine(kernel["v"])
    product = mm(u.reshape(-1, u.shape[-1]), v.reshape(-1, v.shape[-1]))
    return product.reshape(*u.shape[:-1], v.shape[-1])


# Which singular values to keep, and what to multiply them with: shared by the functions above and
# by `prune_spectra`, which computes the spectrum once for the fit and the edit.


def kept_rank(
    values: Float[Array, "*batch p"],
    edge: float | Float[Array, "*batch"],
    keep_below: float | Float[Array, ""],
    *,
    keep_offset: int = 0,
) -> Int[Array, "*batch"]:
    """How many values to keep: all above ``edge``, and a share ``keep_below`` of the others.

    The share is rounded down. ``keep_offset`` is the number of values next below the edge that
    count as above it: the released code of arXiv 2303.08986 has 1.

    >>> int(kept_rank(jnp.linspace(0.9, 0.1, 784), 1.0, 0.45, keep_offset=1))
    353
    """
    above = jnp.sum(_above(values, edge), axis=-1, dtype=jnp.int32)
    below = values.shape[-1] - above
    offset = jnp.minimum(keep_offset, below)
    return above + offset + share(keep_below, below - offset)


def share(fraction: float | Float[Array, ""], count: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
    """``floor(fraction count)``.

    In float32 a product that should be a whole number may come out just below it (0.84 * 75 is
    62.999996), and the floor would lose one: it is raised by a relative 1e-6 first.
    """
    size = count.astype(jnp.float32)
    product = jnp.asarray(fraction).astype(jnp.float32) * size
    return jnp.floor(product + 1e-6 * size + 1e-6).astype(count.dtype)


def random_choice(
    key: PRNGKeyArray,
    values: Float[Array, "*batch p"],
    edge: float | Float[Array, "*batch"],
    rank: Int[Array, "*batch"],
) -> Bool[Array, "*batch p"]:
    """Flags of ``rank`` values: those above ``edge`` first, then any of the others."""
    above = _above(values, edge)
    lottery = jnp.where(above, 2.0, jax.random.uniform(key, values.shape, values.dtype))
    # Sorting the order once more gives each value its place in it.
    places = jnp.argsort(jnp.argsort(-lottery, axis=-1), axis=-1)
    return places.astype(jnp.int32) < rank[..., None]


def shrinkage(
    values: Float[Array, "*batch p"], shape: tuple[int, int], noise: float | Float[Array, "*batch"]
) -> Float[Array, "*batch p"]:
    """The factor by which `shrink` multiplies each singular value."""
    nonzero = values > 0
    shrunk = rmt.optimal_shrinkage(values, shape, noise=noise)
    return jnp.where(nonzero, shrunk / jnp.where(nonzero, values, 1), 0)


def sparsified(
    w: Float[Array, "*batch m n"],
    spectral: Spectrum,
    edge: float | Float[Array, "*batch"],
    threshold: float | Float[Array, "*batch"],
) -> Float[Array, "*batch m n"]:
    """`sparsify`, given the spectrum."""
    signal = rescaled(w, spectral, _flags(_above(spectral.values, edge), w))
    return signal + _without_small(w - signal, jnp.asarray(threshold, w.dtype)[..., None, None])


def with_sparse_vectors(
    w: Float[Array, "*batch m n"],
    spectral: Spectrum,
    edge: float | Float[Array, "*batch"],
    theta: float | Float[Array, "*batch"],
    *,
    floor: float = 1 / 750,
    power: int = 30,
) -> Float[Array, "*batch m n"]:
    """`sparsify_vectors`, given the spectrum."""
    values, vectors = spectral
    depth = (1 - values / jnp.asarray(edge, w.dtype)[..., None]) ** power
    depth = jnp.where(_above(values, edge), 0, depth)
    limits = jnp.asarray(theta, w.dtype)[..., None] * jnp.maximum(depth, floor)
    short = _without_small(vectors, limits[..., None, :])
    tall = w if _tall(w) else jnp.swapaxes(w, -2, -1)
    scaled = mm(tall, vectors)  # s_i u_i: the vectors of the long side would need a division
    long = _without_small(scaled, (limits * values)[..., None, :])
    product = mm(long, jnp.swapaxes(short, -2, -1))
    return product if _tall(w) else jnp.swapaxes(product, -2, -1)


def first(values: Float[Array, "*batch p"], rank: int | Int[Array, "*batch"]) -> Array:
    """Flags of the ``rank`` largest values."""
    places = jnp.arange(values.shape[-1], dtype=jnp.int32)
    return places < jnp.asarray(rank, jnp.int32)[..., None]


def _with_gains(w: Array, gains: Callable[[Array], Array]) -> Array:
    """The matrix with each singular value times its gain."""
    x = _matrices(w)
    found = spectrum(x)
    return like(w, rescaled(x, found, gains(found.values).astype(x.dtype)))


def _check_rank(rank: int | Array, *, least: int = 1) -> None:
    if isinstance(rank, jax.core.Tracer):
        return
    known = np.asarray(rank)
    if not np.issubdtype(known.dtype, np.integer) or np.any(known < least):
        raise ValueError(f"rank={rank}: choose an integer, at least {least}")


def _above(values: Array, edge: float | Array) -> Array:
    """Not up to the edge: everything, if there is none (NaN)."""
    return ~(values <= jnp.asarray(edge, values.dtype)[..., None])


def _flags(kept: Array, w: Array) -> Array:
    return kept.astype(w.dtype)


def _without_small(x: Array, limit: Array) -> Array:
    return jnp.where(jnp.abs(x) <= limit.astype(x.dtype), 0, x)  # NaN stays NaN


def _gram(w: Array) -> Array:
    transposed = jnp.swapaxes(w, -2, -1)
    return mm(transposed, w) if _tall(w) else mm(w, transposed)


def _matrices(w: Array) -> Array:
    w = working(w, "w")
    if w.ndim < 2:
        raise ValueError(f"w has shape {w.shape}: pass a matrix, or matrices [..., m, n]")
    return w


def _tall(w: Array) -> bool:
    return w.shape[-2] >= w.shape[-1]
