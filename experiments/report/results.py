"""The one encoding of what was measured: a number per protocol, arm, seed and metric.

    results = of_run(run, "mnist", "fiedler", first_seed=0)
    results.values("test/accuracy", arm="fiedler", protocol="mnist")   # [seeds], ascending

A *seed* numbers the replications of an arm: trainings, draws of a matrix, blocks of test images.
A number that a seed does not have is NaN, here and in everything that is computed from it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.errors import FAILED, UserError

if TYPE_CHECKING:
    from experiments.runs import Run


class Row(NamedTuple):
    """All metrics of one seed of an arm."""

    protocol: str
    arm: str
    seed: int
    metrics: Mapping[str, float]


class Need(NamedTuple):
    """A metric of an arm: what some evidence looks at."""

    protocol: str
    arm: str
    metric: str


class Absent(NamedTuple):
    """Why an arm, or a whole protocol (``arm`` empty), has no rows."""

    protocol: str
    arm: str
    reason: str


@dataclass(frozen=True)
class Results:
    """Rows that may come in any order, but none twice.

    Arms and protocols are told in the order in which they first come up, seeds ascending.
    ``items`` holds, where the test set is small, what a metric is the mean of: ``[seeds, items]``.
    """

    rows: tuple[Row, ...] = ()
    absent: tuple[Absent, ...] = ()
    items: Mapping[Need, np.ndarray] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for (protocol, arm, seed), count in Counter(row[:3] for row in self.rows).items():
            if count > 1:
                raise UserError(
                    f"results hold seed {seed} of {protocol}/{arm} {count} times: the same run or "
                    "study was merged into them again"
                )

    def protocols(self) -> tuple[str, ...]:
        """Every protocol that has rows."""
        return tuple(dict.fromkeys(protocol for protocol, _ in self._by_arm))

    def arms(self, protocol: str) -> tuple[str, ...]:
        """Every arm that has rows in the protocol."""
        return tuple(arm for found, arm in self._by_arm if found == protocol)

    def metrics(self, *, arm: str, protocol: str) -> tuple[str, ...]:
        """Every metric that a seed of the arm has, in the order in which they were measured."""
        rows = self._by_arm.get((protocol, arm), ())
        return tuple(dict.fromkeys(name for row in rows for name in row.metrics))

    def seeds(self, *, arm: str, protocol: str) -> tuple[int, ...]:
        """The arm's seeds, ascending."""
        return tuple(row.seed for row in self._by_arm.get((protocol, arm), ()))

    def values(self, metric: str, *, arm: str, protocol: str) -> Float[np.ndarray, " seeds"] | None:
        """The arm's numbers by ascending seed, NaN where a seed has none.

        None if the arm was not run, or no seed of it was asked for this metric.
        """
        if metric not in self.metrics(arm=arm, protocol=protocol):
            return None
        rows = self._by_arm[protocol, arm]
        return np.array([row.metrics.get(metric, math.nan) for row in rows], float)

    def known(self, metric: str, *, arm: str, protocol: str) -> Float[np.ndarray, " seeds"]:
        """The arm's numbers, where they must be there: for a figure of what was measured."""
        values = self.values(metric, arm=arm, protocol=protocol)
        assert values is not None, f"{protocol}/{arm} has no {metric}"
        return values

    def reason(self, *, arm: str, protocol: str) -> str:
        """Why the arm has no rows, as far as it is known."""
        told = {(one.protocol, one.arm): one.reason for one in self.absent}
        return told.get((protocol, arm)) or told.get((protocol, ""), "")

    def select(self, *protocols: str) -> Results:
        """What belongs to these protocols."""
        return Results(
            tuple(row for row in self.rows if row.protocol in protocols),
            tuple(one for one in self.absent if one.protocol in protocols),
            {need: values for need, values in self.items.items() if need.protocol in protocols},
        )

    def without(self, protocol: str, arm: str, reason: str) -> Results:
        """The same, and the reason why an arm (or, with ``arm`` empty, a protocol) is missing."""
        return replace(self, absent=(*self.absent, Absent(protocol, arm, reason)))

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back, without items; NaN is null."""
        rows = [
            [*row[:3], {name: value if math.isfinite(value) else None
                        for name, value in row.metrics.items()}]
            for row in self.rows
        ]  # fmt: skip
        return {"rows": rows, "absent": [list(one) for one in self.absent]}

    @cached_property
    def _by_arm(self) -> dict[tuple[str, str], list[Row]]:
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.protocol, row.arm), []).append(row)
        return {arm: sorted(rows, key=lambda row: row.seed) for arm, rows in found.items()}


def merge(parts: Iterable[Results]) -> Results:
    """All rows of all parts; no row may stand in two of them."""
    parts = list(parts)
    return Results(
        tuple(row for part in parts for row in part.rows),
        tuple(one for part in parts for one in part.absent),
        {need: values for part in parts for need, values in part.items.items()},
    )


def of_arrays(
    protocol: str, arm: str, metrics: Mapping[str, Iterable[float]], *, first_seed: int = 0
) -> Results:
    """Rows from one array ``[seeds]`` per metric, as a study has them."""
    columns = {name: np.asarray(values, float) for name, values in metrics.items()}
    counts = {name: values.shape for name, values in columns.items()}
    if len(set(counts.values())) > 1 or any(len(shape) != 1 for shape in counts.values()):
        raise UserError(f"{protocol}/{arm}: expected one number per seed and metric, got {counts}")
    count = next(iter(counts.values()), (0,))[0]
    return Results(
        tuple(
            Row(protocol, arm, first_seed + place,
                {name: float(values[place]) for name, values in columns.items()})
            for place in range(count)
        )
    )  # fmt: skip


def of_run(run: Run, protocol: str, arm: str, *, first_seed: int = 0) -> Results:
    """The final numbers of a training run, in the units in which they are stored.

    ``diverged`` and ``collapsed`` are 1 for the seeds of which the run says so, and 0 for others.
    Arrays called ``test_items`` are taken in as items.
    """
    summary = run.summary
    fates = {"diverged": summary["diverged_seeds"], "collapsed": summary["collapsed_seeds"]}
    numbers = {
        name: [math.nan if value is None else value for value in values]
        for name, values in summary.items()
        if "/" in name and isinstance(values, list)
    }
    count = len(next(iter(numbers.values())))
    seeds = range(first_seed, first_seed + count)
    numbers |= {fate: [float(seed in found) for seed in seeds] for fate, found in fates.items()}
    items = run.load_array("test_items") or {}
    return replace(
        of_arrays(protocol, arm, numbers, first_seed=first_seed),
        items={Need(protocol, arm, metric): values for metric, values in items.items()},
    )


def study_results(run: Run) -> Results:
    """What a finished study measured; `UserError` (1) if that is no `Results`."""
    summary = run.summary
    if "results" not in summary:
        raise UserError(
            f"the study of {run.path} returned no results: let its `measure` return what "
            "`of_arrays` or `merge` makes",
            FAILED,
        )
    return from_json(summary["results"])


def from_json(stored: Mapping[str, Any]) -> Results:
    """What `Results.to_json` made."""
    rows = (
        Row(protocol, arm, seed, {n: math.nan if v is None else v for n, v in metrics.items()})
        for protocol, arm, seed, metrics in stored["rows"]
    )
    return Results(tuple(rows), tuple(Absent(*one) for one in stored["absent"]))
