"""FARMS, from weights to exponents, beside a loop over windows and candidates."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.farms import networks, released
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
from spectral_jax.tails import farms_alphas
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
                rows += _rows(name, rule, matrices, size, target)
    if network is None:
        rows.append(row(f"{size.network}: no such file on this machine", NOTHING))
    note = (
        f"Windows of {size.window} rows and columns or less, {PER_AXIS} along either side, over "
        "each kernel position; one exponent per layer (`tails.farms_alphas`: windows of one size "
        "together, spectra padded with zeros to few lengths). The loop repeats the released rule "
        "on the same windows, one window and then one candidate at a time (NumPy). The released "
        f"code (PyTorch; {released.state()}) "
        "is its whole estimator: the same windows of a matrix but for its rounded steps, of a "
        "kernel disjoint blocks, which are fewer. All start from the weights and end with the "
        "exponents. Median: from Gram matrices. Where alphas differ, a layer has dead directions, "
        "whose rounding the loop fits and we leave out. Peak: the released rule (`peak_log10`), in "
        "which nearly every eigenvalue below the peak is a candidate."
    )
    return Table("FARMS, weights to exponents", note, rows)


def _rows(name: str, rule: str, matrices: Sequence[np.ndarray], size: Size, target: Target):
    on_device = [jnp.asarray(matrix) for matrix in matrices]
    calls: dict[str, Callable[[], Any]] = {
        "ours": partial(ours, on_device, rule, size.window),
        "loop": partial(looped, matrices, rule, size.window),
    }
    theirs = released.estimator(matrices, rule, size.window, PER_AXIS)
    if theirs is not None:
        calls["released code"] = theirs
    times = interleaved(calls, repeats=size.repeats)
    apart = np.max(np.abs(calls["ours"]() - calls["loop"]()))
    for peer in list(calls)[1:]:
        named = peer != "loop"
        what = peer if named else f"{len(matrices)} layers, alphas within {apart:.0e}"
        yield row(
            f"{name}, {rule} ({what})",
            with_first(times["ours"]),
            times[peer],
            ratio_text(times[peer], times["ours"]),
            target if named else None,
            ratio_of(times[peer], times["ours"]),
        )


def ours(matrices: Sequence[jax.Array], rule: Literal["peak", "median"], window: int) -> np.ndarray:
    compat: Literal["peak_log10"] | None = "peak_log10" if rule == "peak" else None
    return farms_alphas(matrices, window=window, samples=PER_AXIS, xmin=rule, paper_compat=compat)


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
