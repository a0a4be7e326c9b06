"""Norms, ranks and exponents of a spectrum; and a table of them for the layers of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10, nan, prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from spectral_jax.laws import marchenko_pastur_quantile
from spectral_jax.linalg import svdvals
from spectral_jax.linalg.precision import working
from spectral_jax.tails.hill import hill_fit
from spectral_jax.tails.layers import farms_alphas
from spectral_jax.tails.null import NullAlpha, check_shape, null_alpha
from spectral_jax.tails.support import FitStatus, number, spectra, support
from spectral_jax.weights import WeightMatrix, map_by_shape, matrices

Conv = Literal["positions", "flattened", "channels"]

# A matrix with fewer entries is decomposed by LAPACK in less time than the faster route through
# Gram matrices takes to compile.
SMALL = 2**20


class SpectralMetrics(NamedTuple):
    """What a spectrum ``lam`` of squared singular values says; logs are to base 10.

    Zeros do not count, so that spectra may be padded with them. Of a zero matrix the norms are 0,
    their logs ``-inf``, the ranks 0 and the rest NaN.
    """

    alpha: Float[Array, "*batch"]
    norm: Float[Array, "*batch"]
    """``sum lam``, the squared Frobenius norm."""
    log_norm: Float[Array, "*batch"]
    spectral_norm: Float[Array, "*batch"]
    """``max lam``, the squared spectral norm (the field's name for it)."""
    log_spectral_norm: Float[Array, "*batch"]
    stable_rank: Float[Array, "*batch"]
    """``sum lam / max lam``."""
    entropy: Float[Array, "*batch"]
    """``-sum p ln p / ln rank`` with ``p = lam / sum lam``; 0 at rank one."""
    entropy_rank: Float[Array, "*batch"]
    """``exp(-sum p ln p)``, the number of equal eigenvalues of the same entropy."""
    matrix_rank: Int[Array, "*batch"]
    """Singular values above ``max(m, n) eps`` times the largest."""
    mp_softrank: Float[Array, "*batch"]
    """``lam_plus / max lam``: the upper edge of the Marchenko-Pastur law that has the median
    eigenvalue, which outliers and tails do not move, over the largest. About 1 for noise."""
    alpha_weighted: Float[Array, "*batch"]
    """``alpha log max lam``, also known as alpha-hat."""
    log_alpha_norm: Float[Array, "*batch"]
    """``log sum lam^alpha``."""
    status: Int[Array, "*batch"]
    """A ``FitStatus``: of the fit if it failed, else ``RANK_DEFICIENT`` or ``OK``."""


def spectral_metrics(
    eigenvalues: Float[Array, "*batch N"],
    shape: tuple[int, ...],
    *,
    alpha: Float[Array, "*batch"] | None = None,
) -> SpectralMetrics:
    """Metrics of spectra ``[..., N]``, in any order, of matrices of one ``shape``.

    ``shape`` is ``(m, n)``, or ``(p, m, n)`` where the spectra of the ``p`` positions of a
    convolution are pooled: there the norm is that of the kernel, and a stable rank counts the
    directions of all positions. Do not pool FARMS windows for norms and ranks, which would grow
    with their number: take the mean over ``farms_eigenvalues(..., pooled=False)``.
    ``alpha`` is the exponent to weight with, ``hill_alpha(eigenvalues)`` by default.

    Works under ``jit`` (shape static), ``vmap`` and ``grad``, and at any scale that the norms fit
    in; half precision and integers are read as float32. NaN or inf in a spectrum gives NaN for that
    spectrum, and ``NOT_FINITE``. Raises ``ValueError`` for an impossible shape and for complex
    numbers.
    Formulas: WeightWatcher 0.7.7, but for ``1e-10`` that it adds to every ``p``, and for the soft
    rank, whose bulk it fits.

    >>> metrics = spectral_metrics(jnp.array([1.0, 1.0, 2.0, 4.0]), (4, 4))
    >>> float(metrics.norm), float(metrics.stable_rank), int(metrics.matrix_rank)
    (8.0, 2.0, 4)
    """
    check_shape(shape)
    eigenvalues = spectra(eigenvalues)
    dtype = eigenvalues.dtype
    alpha = None if alpha is None else working(alpha, "alpha").astype(dtype)
    return _metrics(eigenvalues, np.asarray(_of_shape(shape), dtype), alpha)


def layer_metrics(
    layers: PyTree | Mapping[str, WeightMatrix],
    *,
    conv: Conv = "positions",
    window: int | None = None,
    cols_per_row: float = 1.0,
    samples: int | None = None,
) -> dict[str, list[Any]]:
    """A table with a row per layer, as a dict of columns.

    ``name``, ``kind``, ``shape``; the fields of ``spectral_metrics`` (positions of a convolution
    pooled), of which ``alpha`` is ``alpha_hill`` here, ``status`` by name; ``alpha_null``,
    ``alpha_deviation`` and ``alpha_z``, the exponent of noise of that shape, its spread, and how
    far ``alpha_hill`` is from it; ``alpha_debiased = alpha_hill - alpha_null``; and with a
    ``window``, ``alpha_farms``: the exponent of the pooled FARMS windows (a grid; ``cols_per_row``,
    ``samples`` as for ``farms_windows``).

    Every exponent is that of the eigenvalues above rounding, as WeightWatcher leaves out zeros: of
    a product of two factors (LoRA), of as many as its inner size. Noise of full rank is no baseline
    for such a product, and what chance makes of it is not known: those four columns are NaN there,
    and so is ``mp_softrank``.

    Args:
      layers: parameters, or what ``weights.matrices`` made of them; half precision is read as
        float32, at any scale.
      conv: how parameters are read (``weights.matrices``).

    Matrices of one shape are decomposed together, 2^24 entries at a time, and all spectra, padded
    to one length, are read by one program: compilations are bounded by the number of shapes.
    Not for use inside ``jit``: there, ``spectral_metrics``.
    Raises ``ValueError`` if there is no layer, and as ``weights.matrices`` and ``farms_windows``.

    >>> table = layer_metrics({"w": jax.random.normal(jax.random.key(0), (64, 128))})
    >>> table["name"], table["shape"], abs(table["alpha_z"][0]) < 4
    (['w'], [(64, 128)], True)
    """
    found = _named(layers, conv)
    arrays = [working(layer.matrix, layer.name) for layer in found]
    shapes = [array.shape for array in arrays]
    spectra = map_by_shape(dict(enumerate(arrays)), _singular_values)
    values, exponents = _to_unit_size(_padded([np.asarray(each) for each in spectra.values()]))
    of_shape = np.asarray([_of_shape(shape) for shape in shapes], values.dtype).T
    metrics = jax.device_get(_metrics(values**2, of_shape, None))
    table: dict[str, list[Any]] = {
        "name": [layer.name for layer in found],
        "kind": [layer.kind for layer in found],
        "shape": shapes,
        **_of_weights(metrics, exponents),
    }
    table["status"] = [FitStatus(code).name for code in table["status"]]
    # Of factors, only those that are full: of full rank a product is compared as a layer is.
    known = [
        layer.kind != "low_rank" or status != "RANK_DEFICIENT"
        for layer, status in zip(found, table["status"], strict=True)
    ]
    table |= _against_noise(table["alpha_hill"], shapes, known)
    softranks = zip(table["mp_softrank"], known, strict=True)
    table["mp_softrank"] = [softrank if its else nan for softrank, its in softranks]
    if window is not None:
        farms = farms_alphas(arrays, window=window, cols_per_row=cols_per_row, samples=samples)
        table["alpha_farms"] = farms.tolist()
    return table


def _of_shape(shape: tuple[int, ...]) -> tuple[float, float, float]:
    """What the metrics need to know of a shape: edge over median of noise, sides, full rank."""
    short, long = sorted(shape[-2:])
    q = short / long
    edge = (1 + q**0.5) ** 2 / marchenko_pastur_quantile(0.5, q)
    return edge, float(long), float(prod(shape[:-2]) * short)


@jax.jit
def _metrics(eigenvalues: Array, of_shape: Array, alpha: Array | None) -> SpectralMetrics:
    edge, side, full_rank = of_shape
    fit, found = hill_fit(eigenvalues), support(eigenvalues)
    keep = found.keep
    alpha = fit.alpha if alpha is None else alpha
    lam = jnp.where(found.finite[..., None], found.values, jnp.nan)
    total, largest = jnp.sum(lam, axis=-1), jnp.max(lam, axis=-1)
    exists = largest > 0
    relative = lam / jnp.where(exists, largest, 1)[..., None]
    # Numerical rank as in LAPACK and NumPy: max(m, n) eps of the largest singular value, squared.
    tolerance = (side * float(jnp.finfo(lam.dtype).eps)) ** 2
    rank = number(relative > tolerance[..., None], lam.dtype)
    logs = jnp.log(jnp.where(keep, relative, 1))
    stable = total / jnp.where(exists, largest, jnp.nan)
    # -sum p ln p, with p = relative / stable
    entropy = jnp.log(stable) - jnp.sum(relative * logs, axis=-1) / stable
    log_rank = jnp.log(jnp.maximum(rank, 2).astype(lam.dtype))
    # In units of the largest: lam^alpha itself overflows for large exponents.
    powers = jnp.sum(jnp.where(keep, jnp.exp(alpha[..., None] * logs), 0), axis=-1)
    log_unit = jnp.log10(found.unit)
    log_largest = jnp.log10(largest) + log_unit
    deficient = jnp.where(
        rank.astype(lam.dtype) < full_rank, int(FitStatus.RANK_DEFICIENT), int(FitStatus.OK)
    )
    return SpectralMetrics(
        alpha=alpha,
        norm=total * found.unit,
        log_norm=jnp.log10(total) + log_unit,
        spectral_norm=largest * found.unit,
        log_spectral_norm=log_largest,
        stable_rank=stable,
        entropy=jnp.where(rank == 1, 0, entropy / log_rank),
        entropy_rank=jnp.exp(entropy),
        matrix_rank=rank,
        mp_softrank=edge * _median(relative, keep),
        alpha_weighted=alpha * log_largest,
        log_alpha_norm=alpha * log_largest + jnp.log10(powers),
        status=jnp.where(fit.status < FitStatus.TOO_FEW, deficient, fit.status).astype(jnp.int32),
    )


def _median(values: Array, keep: Array) -> Array:
    """The median of what is kept; NaN of nothing."""
    count = number(keep, values.dtype)[..., None]
    place = jnp.arange(values.shape[-1], dtype=jnp.int32) - (values.shape[-1] - count)
    middle = [(place == at).astype(values.dtype) for at in ((count - 1) // 2, count // 2)]
    ascending = jnp.sort(jnp.where(keep, values, 0), axis=-1)
    return jnp.where(count[..., 0] > 0, jnp.sum(ascending * sum(middle), axis=-1) / 2, jnp.nan)


def _named(layers, conv: Conv) -> list[WeightMatrix]:
    if isinstance(layers, Mapping) and all(isinstance(v, WeightMatrix) for v in layers.values()):
        if not layers:
            raise ValueError("layers is empty: pass the parameters of a network")
        return list(layers.values())
    return list(matrices(layers, conv=conv).values())


def _singular_values(w: Array) -> Array:
    """Those of a matrix, or of all matrices of a stack."""
    return svdvals(w, method="lapack" if prod(w.shape[-2:]) < SMALL else "auto").ravel()


def _padded(spectra: Sequence[np.ndarray]) -> np.ndarray:
    padded = np.zeros((len(spectra), max(map(len, spectra))), np.result_type(*spectra))
    for row, spectrum in zip(padded, spectra, strict=True):
        row[: len(spectrum)] = spectrum
    return padded


def _to_unit_size(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row over the power of two next above its largest, and the exponent of that."""
    largest = values.max(axis=-1)
    _, exponents = np.frexp(np.where(np.isfinite(largest), largest, 0))
    return np.ldexp(values, -exponents[:, None]), exponents


def _of_weights(metrics: SpectralMetrics, exponents: np.ndarray) -> dict[str, list[Any]]:
    """Columns of the table, for the weights themselves.

    ``metrics`` are those of singular values divided by ``2^exponents``; norms and logarithms are
    put back into the unit of the weights in Python's float64, which holds what float32 would not.
    """
    named = {"alpha_hill": metrics.alpha} | metrics._asdict()
    columns = {name: values.tolist() for name, values in named.items() if name != "alpha"}
    for row, exponent in enumerate(exponents.tolist()):
        unit, log_unit = 4.0**exponent, exponent * log10(4)
        for name in "norm", "spectral_norm":
            columns[name][row] *= unit
        for name in "log_norm", "log_spectral_norm":
            columns[name][row] += log_unit
        for name in "alpha_weighted", "log_alpha_norm":
            columns[name][row] += columns["alpha_hill"][row] * log_unit
    return columns


def _against_noise(
    alphas: Sequence[float], shapes: Sequence[tuple[int, ...]], known: Sequence[bool]
) -> dict[str, list]:
    """Columns that compare with noise, NaN where its exponent is not known."""
    nothing = NullAlpha(nan, nan, nan)
    nulls = [null_alpha(s) if its else nothing for s, its in zip(shapes, known, strict=True)]
    return {
        "alpha_null": [null.mean for null in nulls],
        "alpha_deviation": [null.deviation for null in nulls],
        "alpha_z": [null.zscore(a) for a, null in zip(alphas, nulls, strict=True)],
        "alpha_debiased": [a - null.mean for a, null in zip(alphas, nulls, strict=True)],
    }
