"""FARMS, from weights to exponents, beside a loop over windows and candidates."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.farms import networks
from benchmarks.harness import (
    NOTHING,
    Table,
    Target,
    interleaved,
    one_core,
    ratio_of,
    ratio_text,
    row,
    with_first,
)
from spectral_jax.tails import farms_eigenvalues, hill_alpha, power_law_fit
from spectral_jax.weights import plan

PER_AXIS = 9
TARGETS = {"peak": Target(">=", 10), "median": Target(">=", 2)}


class Size(NamedTuple):
    shape: tuple[int, int]
    window: int
    network: str
    repeats: int


FULL = Size((512, 4096), 100, "resnet32", 5)
SMOKE = Size((32, 64), 16, "random", 1)


def windows(size: Size) -> Table:
    """One wide matrix, and all convolutions of a network."""
    matrix = np.random.default_rng(0).standard_normal(size.shape).astype(np.float32)
    cases = {f"{size.shape[0]} x {size.shape[1]}": [matrix]}
    network = networks.load(size.network)
    if network is not None:
        cases[size.network] = _kernels(networks.torch_layout(network))
    rows = []
    with one_core():
        for name, matrices in cases.items():
            for rule, target in TARGETS.items():
                rows.append(_row(name, rule, matrices, size, target))
    if network is None:
        rows.append(row(f"{size.network}: no such file on this machine", NOTHING))
    note = (
        f"Windows of {size.window} rows and columns or less, {PER_AXIS} along either side, over "
        "each kernel position; one pooled exponent per layer. The loop cuts and decomposes one "
        "window at a time (NumPy) and then tries one candidate at a time, as the released code "
        "does; both sides start from the weights and end with the exponents. Ours: one program "
        "per shape, equal shapes together, spectra padded with zeros to few lengths. Median: "
        "from Gram matrices. Where alphas differ, a layer has dead directions, whose rounding the "
        "loop fits and we leave out. Peak: the released rule "
        "(`peak_log10`), in which nearly every eigenvalue below the peak is a candidate."
    )
    return Table("FARMS, weights to exponents", note, rows)


def _row(name: str, rule: str, matrices: Sequence[np.ndarray], size: Size, target: Target):
    on_device = [jnp.asarray(matrix) for matrix in matrices]
    calls: dict[str, Callable[[], Any]] = {
        "ours": partial(ours, on_device, rule, size.window),
        "loop": partial(looped, matrices, rule, size.window),
    }
    times = interleaved(calls, repeats=size.repeats)
    apart = np.max(np.abs(np.asarray(calls["ours"]()) - calls["loop"]()))
    return row(
        f"{name}, {rule} ({len(matrices)} layers, alphas within {apart:.0e})",
        with_first(times["ours"]),
        times["loop"],
        ratio_text(times["loop"], times["ours"]),
        target,
        ratio_of(times["loop"], times["ours"]),
    )


def ours(matrices: Sequence[jax.Array], rule: str, window: int) -> jax.Array:
    spectra: list[Any] = [None] * len(matrices)
    # A program per shape: several batched LAPACK calls in one program can wait for each other for
    # ever on jaxlib's CPU thread pool (seen with 0.10.2; cf. jax#36927).
    for shape in {matrix.shape for matrix in matrices}:
        same = [i for i, matrix in enumerate(matrices) if matrix.shape == shape]
        pooled = np.asarray(_pooled(tuple(matrices[i] for i in same), rule, window))
        for i, spectrum in zip(same, pooled, strict=True):
            spectra[i] = spectrum
    alphas = np.zeros(len(matrices))
    # Few lengths, so that no layer is padded to more than twice its size.
    for length in {_length(spectrum) for spectrum in spectra}:
        group = [i for i, spectrum in enumerate(spectra) if _length(spectrum) == length]
        padded = np.stack([np.pad(spectra[i], (length - len(spectra[i]), 0)) for i in group])
        alphas[group] = _exponents(padded, rule)
    return jnp.asarray(alphas)


@partial(jax.jit, static_argnums=(1, 2))
def _pooled(matrices: Sequence[jax.Array], rule: str, window: int) -> jax.Array:
    # The peak's histogram reaches down to the smallest eigenvalue, which a Gram matrix loses.
    method: Literal["svd", "gram"] = "gram" if rule == "median" else "svd"
    cut = partial(farms_eigenvalues, window=window, samples=PER_AXIS, method=method)
    return jax.vmap(cut)(jnp.stack(matrices))


def _length(spectrum: np.ndarray) -> int:
    return 1 << (len(spectrum) - 1).bit_length()


@partial(jax.jit, static_argnums=1)
def _exponents(spectra: jax.Array, rule: str) -> jax.Array:
    if rule == "median":
        return hill_alpha(spectra)
    # One after another: together, each search would be as long as the longest.
    peak = partial(power_law_fit, xmin="peak", paper_compat="peak_log10")
    return jax.lax.map(lambda spectrum: peak(spectrum).alpha, spectra)


def looped(matrices: Sequence[np.ndarray], rule: str, window: int) -> np.ndarray:
    return np.array([_looped_one(matrix, rule, window) for matrix in matrices])


def _looped_one(matrix: np.ndarray, rule: str, window: int) -> float:
    values = []
    for slice_ in matrix.reshape(-1, *matrix.shape[-2:]):
        side = min(window, *slice_.shape)
        for top in _starts(slice_.shape[0] - side):
            for left in _starts(slice_.shape[1] - side):
                block = slice_[top : top + side, left : left + side]
                values.append(np.linalg.svd(block, compute_uv=False) ** 2)
    spectrum = np.sort(np.concatenate(values).astype(float))
    return _median(spectrum) if rule == "median" else _peak(spectrum)


def _starts(room: int) -> Sequence[int]:
    if room <= PER_AXIS - 1:
        return range(room + 1)
    return [i * room // (PER_AXIS - 1) for i in range(PER_AXIS)]


def _median(x: np.ndarray) -> float:
    tail = x[len(x) // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


def _peak(x: np.ndarray) -> float:
    counts, edges = np.histogram(np.log10(x), 100)
    mode = 10 ** edges[np.argmax(counts)]
    logs, best, least = np.log(x), math.nan, np.inf
    for i in np.flatnonzero((x >= np.log10(0.95 * mode)) & (x <= 1.5 * mode)):
        n = len(x) - i
        if n < 2:
            continue
        alpha = 1 + n / (logs[i:].sum() - n * logs[i])
        distance = np.max(np.abs(1 - (x[i:] / x[i]) ** (1 - alpha) - np.arange(n) / n))
        if distance < least:
            best, least = alpha, distance
    return best


def _kernels(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    shapes = {name: array.shape for name, array in arrays.items()}
    views = plan(shapes, framework="torch").views
    return [np.ascontiguousarray(v.read(arrays[v.sources[0]])) for v in views if v.kind == "conv"]
