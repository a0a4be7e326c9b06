"""How long calls take, in turn, so that a busy machine hits all alike."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Seconds of each repetition, and of the first call, which compiles."""

    wall: np.ndarray
    cpu: np.ndarray
    first: float

    @property
    def median(self) -> float:
        return float(np.median(self.wall))

    def __str__(self) -> str:
        low, high = np.percentile(self.wall, [25, 75])
        unit, name = (1, "s") if self.median >= 1 else (1e-3, "ms")
        return f"{self.median / unit:.3g} {name} [{low / unit:.3g}, {high / unit:.3g}]"


def interleaved(calls: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, Timing]:
    """Time all calls in turn, ``repeats`` times over, after a first round that is kept apart."""
    first = {name: _seconds(call)[0] for name, call in calls.items()}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            samples[name].append(_seconds(call))
    columns = {name: np.transpose(pairs) for name, pairs in samples.items()}
    return {name: Timing(wall, cpu, first[name]) for name, (wall, cpu) in columns.items()}


def latency(
    predict: Callable[[Any, Any], Any], before: Any, after: Any, x: Any, *, repeats: int = 20
) -> tuple[float, float]:
    """Median seconds of ``predict(params, x)``, compiled, with either network's parameters.

    What `spectral_jax.prune.pruning_report` takes as ``latency``.
    """
    run = jax.jit(predict)
    calls = {"before": partial(run, before, x), "after": partial(run, after, x)}
    times = interleaved(calls, repeats=repeats)
    return times["before"].median, times["after"].median


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - wall, time.process_time() - cpu
