"""What a claim needs of the results, as data: which number of which arm, against which other.

    final("spectra/lambda_2", arm="fiedler", protocol="mnist")
    paired("fiedler", "none", protocol="mnist")                # test accuracy, percentage points
    ratio("farms", "hill", metric="test/error", protocol="operators")      # change in percent
    paired("fiedler", best_of("l2", "l1", protocol="fair"), protocol="fair")

Each is a frozen dataclass with two methods: ``of(results)`` is one number per seed, or None where
this preset did not run what it needs; ``needs()`` names what it looks at, so that a name that does
not exist is found when the claim is declared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from experiments.report.results import Results
from experiments.report.selection import badness, require_validation

Samples = Float[np.ndarray, " seeds"]


class Need(NamedTuple):
    """A metric of an arm that some evidence looks at."""

    protocol: str
    arm: str
    metric: str


Needs = frozenset[Need]

ACCURACY = "test/accuracy"


class Evidence(Protocol):
    """Anything that turns results into one number per seed."""

    def of(self, results: Results) -> Samples | None:
        """One number per seed, NaN where a seed has none; None where it was not measured."""

    def needs(self) -> Needs:
        """Everything that it looks at."""


@dataclass(frozen=True)
class Best:
    """Of some arms the one with the best validation score: a baseline nobody could call weak."""

    arms: tuple[str, ...]
    protocol: str
    by: str
    higher: bool

    def name(self, results: Results) -> str | None:
        """The arm it is; None if none of them was run."""
        scores = {}
        for arm in self.arms:
            values = results.values(self.by, arm=arm, protocol=self.protocol)
            if values is not None and np.isfinite(values).any():
                scores[arm] = badness(values, higher=self.higher)
        return min(scores, key=lambda arm: scores[arm]) if scores else None


Arm = str | Best


@dataclass(frozen=True)
class Final:
    """A metric of an arm in the end."""

    metric: str
    arm: Arm
    protocol: str
    scale: float

    def of(self, results: Results) -> Samples | None:
        """The numbers by seed, times ``scale``."""
        found = self.by_seed(results)
        return None if found is None else np.array(list(found.values()))

    def by_seed(self, results: Results) -> dict[int, float] | None:
        """The same with the seed that each number belongs to, ascending."""
        arm = self.arm.name(results) if isinstance(self.arm, Best) else self.arm
        if arm is None:
            return None
        values = results.values(self.metric, arm=arm, protocol=self.protocol)
        if values is None:
            return None
        seeds = results.seeds(arm=arm, protocol=self.protocol)
        return dict(zip(seeds, (self.scale * values).tolist(), strict=True))

    def needs(self) -> Needs:
        """The arm, or all those of which one is chosen."""
        arms = self.arm.arms if isinstance(self.arm, Best) else (self.arm,)
        return frozenset(Need(self.protocol, arm, self.metric) for arm in arms)


@dataclass(frozen=True)
class Paired:
    """The first minus the second, seed by seed."""

    first: Final
    second: Final

    def of(self, results: Results) -> Samples | None:
        """The differences; NaN for a seed that only one of the two has."""
        return _by_pairs(self.first, self.second, results, lambda one, other: one - other)

    def needs(self) -> Needs:
        """What both need."""
        return self.first.needs() | self.second.needs()


@dataclass(frozen=True)
class Change:
    """By how many percent the first is above the second, seed by seed."""

    first: Final
    second: Final

    def of(self, results: Results) -> Samples | None:
        """The changes; NaN for a seed that only one of the two has."""
        return _by_pairs(self.first, self.second, results, _percent)

    def needs(self) -> Needs:
        """What both need."""
        return self.first.needs() | self.second.needs()


@dataclass(frozen=True)
class Slope:
    """How much ``y`` rises with ``x`` over the seeds of an arm: one number per arm.

    The unit of replication is the arm: an arm whose seeds all have the same ``x`` says nothing.
    """

    y: str
    x: str
    arms: tuple[str, ...]
    protocol: str
    scale: float

    def of(self, results: Results) -> Samples | None:
        """The least-squares slopes of those arms that have one."""
        found = []
        for arm in self.arms:
            x, y = (results.values(m, arm=arm, protocol=self.protocol) for m in (self.x, self.y))
            if x is not None and y is not None:
                both = np.isfinite(x) & np.isfinite(y)
                if both.any() and np.ptp(x[both]) > 0:
                    found.append(self.scale * np.polyfit(x[both], y[both], 1)[0])
        return np.array(found) if found else None

    def needs(self) -> Needs:
        """Both metrics of all arms."""
        return frozenset(
            Need(self.protocol, arm, metric) for arm in self.arms for metric in (self.x, self.y)
        )


@dataclass(frozen=True)
class FirstRun:
    """The first of these that the preset runs: the small stand-in of a smoke test comes last."""

    choices: tuple[Evidence, ...]

    def of(self, results: Results) -> Samples | None:
        """The numbers of the first one that has any."""
        found = (choice.of(results) for choice in self.choices)
        return next((samples for samples in found if samples is not None), None)

    def needs(self) -> Needs:
        """What any of them needs."""
        return frozenset[Need]().union(*(choice.needs() for choice in self.choices))


def final(metric: str, *, arm: Arm, protocol: str, scale: float = 1.0) -> Final:
    """A metric of an arm in the end, per seed; ``scale`` is 100 for a share told in percent."""
    return Final(metric, arm, protocol, scale)


def paired(
    arm: Arm,
    other: Arm,
    *,
    protocol: str,
    metric: str = ACCURACY,
    other_metric: str = "",
    other_protocol: str = "",
    scale: float = 100.0,
) -> Paired:
    """An arm minus another, seed by seed: test accuracy in percentage points unless told.

    What is not said of the other is the same as for the first.
    """
    return Paired(*_two(arm, other, protocol, metric, other_metric, other_protocol, scale))


def ratio(
    arm: Arm,
    other: Arm,
    *,
    protocol: str,
    metric: str,
    other_metric: str = "",
    other_protocol: str = "",
) -> Change:
    """By how many percent an arm is above another, seed by seed."""
    return Change(*_two(arm, other, protocol, metric, other_metric, other_protocol, 1.0))


def best_of(
    *arms: str, protocol: str, by: str = "validation/accuracy", higher: bool = True
) -> Best:
    """The arm with the best mean validation score; a lost seed is worse than any score."""
    require_validation(by)
    return Best(arms, protocol, by, higher)


def slope(y: str, x: str, *, arms: tuple[str, ...], protocol: str, scale: float = 1.0) -> Slope:
    """How much ``y`` rises with ``x`` over the seeds of an arm; one number per arm."""
    return Slope(y, x, arms, protocol, scale)


def first_run(*choices: Evidence) -> FirstRun:
    """The first of several that the preset runs."""
    return FirstRun(choices)


def _two(
    arm: Arm,
    other: Arm,
    protocol: str,
    metric: str,
    other_metric: str,
    other_protocol: str,
    scale: float,
) -> tuple[Final, Final]:
    second = Final(other_metric or metric, other, other_protocol or protocol, scale)
    return Final(metric, arm, protocol, scale), second


def _by_pairs(
    first: Final, second: Final, results: Results, combine: Callable[[float, float], float]
) -> Samples | None:
    """One number per seed of either; a number without its partner says nothing of a difference."""
    ones, others = first.by_seed(results), second.by_seed(results)
    if ones is None or others is None:
        return None
    seeds = sorted({*ones, *others})
    return np.array([combine(ones.get(s, np.nan), others.get(s, np.nan)) for s in seeds])


def _percent(one: float, other: float) -> float:
    return 100 * (one / other - 1) if other else np.nan
