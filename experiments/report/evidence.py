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

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from experiments.report.results import Need, Results
from experiments.report.selection import badness, require_validation

Samples = Float[np.ndarray, " seeds"]

Items = Float[np.ndarray, "seeds items"]
Needs = frozenset[Need]

ACCURACY = "test/accuracy"


class Evidence(ABC):
    """Anything that turns results into one number per seed."""

    @abstractmethod
    def of(self, results: Results) -> Samples | None:
        """One number per seed, NaN where a seed has none; None where it was not measured."""

    @abstractmethod
    def needs(self) -> Needs:
        """Everything that it looks at."""

    def items(self, results: Results) -> Items | None:
        """The same before the mean over test items, where that is known."""
        return None

    def remark(self, results: Results) -> str:
        """What the results decided about it: the arm that was the best of some."""
        return ""


@dataclass(frozen=True)
class Best:
    """Of some arms the one with the best validation score: a baseline nobody could call weak."""

    arms: tuple[str, ...]
    protocol: str
    by: str
    higher: bool

    def name(self, results: Results) -> str:
        """The arm it is; empty if none of them was run."""
        scores = {}
        for arm in self.arms:
            values = results.values(self.by, arm=arm, protocol=self.protocol)
            if values is not None and np.isfinite(values).any():
                scores[arm] = badness(values, higher=self.higher)
        return min(scores, key=lambda arm: scores[arm]) if scores else ""


Arm = str | Best


@dataclass(frozen=True)
class Final(Evidence):
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
        arm = self._arm(results)
        values = results.values(self.metric, arm=arm, protocol=self.protocol)
        if values is None:
            return None
        seeds = results.seeds(arm=arm, protocol=self.protocol)
        return dict(zip(seeds, (self.scale * values).tolist(), strict=True))

    def items(self, results: Results) -> Items | None:
        """The same before the mean over test items, where that is known."""
        found = results.items.get(Need(self.protocol, self._arm(results), self.metric))
        return None if found is None else self.scale * found

    def remark(self, results: Results) -> str:
        """The arm that was chosen, if one was."""
        if isinstance(self.arm, str) or not self._arm(results):
            return ""
        return f"best of {', '.join(self.arm.arms)} on validation data: {self._arm(results)}"

    def needs(self) -> Needs:
        """The arm, or all those of which one is chosen, and what they are chosen by."""
        if isinstance(self.arm, str):
            return frozenset([Need(self.protocol, self.arm, self.metric)])
        own = (Need(self.protocol, arm, self.metric) for arm in self.arm.arms)
        scores = (Need(self.arm.protocol, arm, self.arm.by) for arm in self.arm.arms)
        return frozenset([*own, *scores])

    def _arm(self, results: Results) -> str:
        return self.arm if isinstance(self.arm, str) else self.arm.name(results)


@dataclass(frozen=True)
class Paired(Evidence):
    """The first minus the second, seed by seed; NaN for a seed that only one of the two has."""

    first: Final
    second: Final

    def of(self, results: Results) -> Samples | None:
        """The differences."""
        return self._by_pairs(results, lambda one, other: one - other)

    def items(self, results: Results) -> Items | None:
        """The differences item by item, where both were tested on the same."""
        one, other = self.first.items(results), self.second.items(results)
        if one is None or other is None or one.shape != other.shape:
            return None
        seeds, others = self.first.by_seed(results), self.second.by_seed(results)
        return one - other if seeds and others and seeds.keys() == others.keys() else None

    def remark(self, results: Results) -> str:
        """Those of both."""
        both = self.first.remark(results), self.second.remark(results)
        return "; ".join(filter(None, both))

    def needs(self) -> Needs:
        """What both need."""
        return self.first.needs() | self.second.needs()

    def _by_pairs(
        self, results: Results, combine: Callable[[float, float], float]
    ) -> Samples | None:
        """A number without its partner says nothing of a difference: NaN."""
        ones, others = self.first.by_seed(results), self.second.by_seed(results)
        if ones is None or others is None:
            return None
        seeds = sorted({*ones, *others})
        return np.array([combine(ones.get(s, np.nan), others.get(s, np.nan)) for s in seeds])


@dataclass(frozen=True)
class Change(Paired):
    """By how many percent the first is above the second, seed by seed."""

    def of(self, results: Results) -> Samples | None:
        """The changes; NaN too where the second is 0."""
        return self._by_pairs(results, _percent)

    def items(self, results: Results) -> None:
        """None: a ratio of means is no mean over items."""
        return None


@dataclass(frozen=True)
class Slope(Evidence):
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
class FirstRun(Evidence):
    """The first of these that the preset runs: the small stand-in of a smoke test comes last."""

    choices: tuple[Evidence, ...]

    def of(self, results: Results) -> Samples | None:
        """The numbers of the first one that has any."""
        chosen = self._chosen(results)
        return None if chosen is None else chosen.of(results)

    def items(self, results: Results) -> Items | None:
        """Its items."""
        chosen = self._chosen(results)
        return None if chosen is None else chosen.items(results)

    def remark(self, results: Results) -> str:
        """Its remark."""
        chosen = self._chosen(results)
        return "" if chosen is None else chosen.remark(results)

    def needs(self) -> Needs:
        """What any of them needs."""
        return frozenset[Need]().union(*(choice.needs() for choice in self.choices))

    def _chosen(self, results: Results) -> Evidence | None:
        found = (choice for choice in self.choices if choice.of(results) is not None)
        return next(found, None)


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


def _percent(one: float, other: float) -> float:
    return 100 * (one / other - 1) if other else np.nan
