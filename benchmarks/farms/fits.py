"""The full search for the start of a tail, beside a loop over all candidates."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

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
from spectral_jax.tails.power_law import power_law_fit


class Size(NamedTuple):
    compared: int
    alone: int
    repeats: int


FULL = Size(compared=12_800, alone=450_000, repeats=2)
SMOKE = Size(compared=200, alone=1000, repeats=1)
SPEEDUP, SECONDS, AGREEMENT = Target(">=", 10), Target("<=", 60), Target("<=", 1e-4)


def full_search(size: Size) -> Table:
    """12,800 eigenvalues against the loop, and 450,000, which a loop would take an hour for."""
    with one_core():
        compared = list(_compared(size))
    rows = compared + list(_alone(size))
    note = (
        "From unsorted eigenvalues to alpha, xmin and distance, float32; every eigenvalue is a "
        "candidate and none is thinned out. The loop is the search of WeightWatcher and of the "
        "FARMS code, one candidate at a time in vectorised NumPy, on one core as ours. Agreement: "
        "largest relative difference of the smallest distance. 450,000 is one LLaMA-7B layer "
        "(windows of 2000 rows, 15 each way), on all cores; the hardest case for pruning are "
        "samples from an exact power law, where all long tails fit equally well."
    )
    return Table("Full Kolmogorov-Smirnov search", note, rows)


def _compared(size: Size) -> Iterator[tuple[str, ...]]:
    for name, spectrum in spectra(size.compared):
        values = jnp.asarray(spectrum, jnp.float32)
        calls: dict[str, Callable[[], Any]] = {
            "ours": lambda values=values: power_law_fit(values),
            "loop": lambda spectrum=spectrum: np.asarray(loop(spectrum)),
        }
        times = interleaved(calls, repeats=size.repeats)
        ratio = ratio_of(times["loop"], times["ours"])
        yield row(
            f"{size.compared} values, {name}",
            with_first(times["ours"]),
            times["loop"],
            ratio_text(times["loop"], times["ours"]),
            SPEEDUP,
            ratio,
        )
        difference = abs(float(power_law_fit(values).ks) / loop(np.asarray(values, float)) - 1)
        what = f"{size.compared} values, {name}: agreement"
        yield row(what, f"{difference:.1e}", NOTHING, NOTHING, AGREEMENT, difference)


def _alone(size: Size) -> Iterator[tuple[str, ...]]:
    for name, spectrum in spectra(size.alone):
        values = jnp.asarray(spectrum, jnp.float32)
        time = interleaved({"ours": lambda values=values: power_law_fit(values)}, repeats=1)["ours"]
        what = f"{size.alone} values, {name}"
        yield row(what, with_first(time), NOTHING, NOTHING, SECONDS, time.median)


def spectra(n: int) -> Iterator[tuple[str, np.ndarray]]:
    """Pooled windows of noise, a broad bulk, a bulk with a heavy tail, and a power law itself."""
    rng = np.random.default_rng(0)
    side = min(100, n)
    windows = rng.standard_normal((-(-n // side), side, side), dtype=np.float32)
    yield "windows of noise", np.linalg.svd(windows, compute_uv=False).ravel()[:n] ** 2
    yield "lognormal", rng.lognormal(0, 2, n)
    yield "mixture", np.append(rng.lognormal(0, 1, n // 2), 1 + rng.pareto(1, n - n // 2))
    yield "Pareto", 1 + rng.pareto(1.5, n)


def loop(spectrum: np.ndarray) -> float:
    """The smallest distance, one candidate after another."""
    x = np.sort(spectrum)
    logs, least = np.log(x), np.inf
    for i in range(len(x) - 1):
        n = len(x) - i
        alpha = 1 + n / (logs[i:].sum() - n * logs[i])
        least = min(least, np.max(np.abs(1 - (x[i:] / x[i]) ** (1 - alpha) - np.arange(n) / n)))
    return float(least)
