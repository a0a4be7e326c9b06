"""Choosing a method's setting on validation data; its test numbers come from other seeds.

An arm of a tuned protocol is called ``method@setting``. The rows that the choice is made on stand
in the results under ``<protocol>/tuning``, those of the chosen settings, trained again on fresh
seeds, under ``<protocol>`` with the method's name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.errors import UserError
from experiments.names import did_you_mean
from experiments.report.results import Results

TUNING = "/tuning"
VALIDATION = "validation/"
# Final runs take this many seeds further on: none of them was tuned on.
FRESH = 100


@dataclass(frozen=True)
class Choice:
    """The setting that a method is held to.

    Attributes:
        arm: ``method@setting``, or the method itself where it has nothing to choose.
        at_edge: it is the least or the greatest number of its grid: a better one may lie outside.
        tied: the settings that are within a standard error of the best, itself left out.
    """

    method: str
    arm: str
    at_edge: bool = False
    tied: tuple[str, ...] = ()


def choose(
    results: Results,
    protocol: str,
    *,
    method: str,
    by: str = "validation/accuracy",
    higher: bool = True,
    default: str = "",
) -> Choice | None:
    """The setting of ``method`` with the best mean validation score.

    A seed without a number is worse than any score: fewest lost seeds first, then the mean of the
    rest. Settings whose paired difference to the best is within its standard error over seeds are
    tied with it, and the ``default`` setting wins a tie.

    Returns:
        None if no setting of the method has a number.

    Raises:
        UserError: if ``by`` is not a metric of the validation split.
    """
    require_validation(by)
    grid = [arm for arm in _tried(results, protocol) if arm.partition("@")[0] == method]
    wanted = f"{method}@{default}" if default else ""
    if wanted and wanted not in grid:
        close = did_you_mean(wanted, grid)
        raise UserError(f"default={default!r}: {protocol!r} has no arm {wanted!r}{close}")
    scores = {arm: found for arm in grid if (found := _scores(results, protocol, arm, by))}
    if not scores:
        return None
    best = min(scores, key=lambda arm: badness([*scores[arm].values()], higher=higher))
    tied = [arm for arm in scores if arm != best and _within_an_error(scores[arm], scores[best])]
    chosen = wanted if wanted in tied else best
    return Choice(method, chosen, at_edge=_at_edge(chosen, grid), tied=tuple(tied))


def badness(scores: Sequence[float] | np.ndarray, *, higher: bool) -> tuple[int, float]:
    """What the best arm has least of: first lost seeds, then the mean of the others, signed."""
    scores = np.asarray(scores)
    finite = np.isfinite(scores)
    mean = float(np.mean(scores[finite])) if finite.any() else 0.0
    return int(np.count_nonzero(~finite)), -mean if higher else mean


def require_validation(metric: str) -> None:
    """Refuse to choose by anything that was not measured on the validation split."""
    if not metric.startswith(VALIDATION):
        raise UserError(
            f"by={metric!r}: settings are chosen on validation data alone, by a metric whose name "
            f"begins with {VALIDATION!r}"
        )


def require_fresh_seeds(results: Results) -> None:
    """Refuse final rows on a seed that the same protocol was tuned on."""
    for tuning in results.protocols():
        protocol = tuning.removesuffix(TUNING)
        shared = _seeds(results, tuning) & _seeds(results, protocol) if protocol != tuning else None
        if shared:
            raise UserError(
                f"protocol {protocol!r} was tuned on seed {min(shared)}, and its final numbers "
                "hold that seed too: train the winners on fresh seeds"
            )


def fresh_seed(tuned: Collection[int]) -> int:
    """The first seed of the final runs of settings that were chosen on the ``tuned`` seeds.

    >>> fresh_seed(range(8)), fresh_seed(range(200))
    (100, 200)
    """
    return max(min(tuned) + FRESH, max(tuned) + 1)


def _seeds(results: Results, protocol: str) -> set[int]:
    arms = results.arms(protocol)
    return {seed for arm in arms for seed in results.seeds(arm=arm, protocol=protocol)}


def _tried(results: Results, protocol: str) -> list[str]:
    """Every arm of the protocol, those that came to nothing too, by number where there is one."""
    failed = {one.arm for one in results.absent if one.protocol == protocol and one.arm}
    return sorted({*results.arms(protocol), *failed}, key=_place)


def _scores(results: Results, protocol: str, arm: str, by: str) -> dict[int, float]:
    """The arm's score by seed; empty if no seed has one."""
    values = results.values(by, arm=arm, protocol=protocol)
    if values is None or not np.isfinite(values).any():
        return {}
    seeds = results.seeds(arm=arm, protocol=protocol)
    return dict(zip(seeds, values.tolist(), strict=True))


def _within_an_error(one: Mapping[int, float], best: Mapping[int, float]) -> bool:
    """Whether the mean difference, paired by seed, is no larger than its standard error."""
    if one.keys() != best.keys():
        return False
    difference = np.array([one[seed] - best[seed] for seed in best])
    if len(difference) < 2 or not np.isfinite(difference).all():
        return False
    error = np.std(difference, ddof=1) / np.sqrt(len(difference))
    return bool(abs(np.mean(difference)) <= error)


def _at_edge(arm: str, arms: list[str]) -> bool:
    """Whether any number of the setting is the least or the greatest of those that were tried."""
    tried = zip(*map(_numbers, arms), strict=False)  # none where an arm has no numbers
    return any(
        number in (min(numbers), max(numbers))
        for number, numbers in zip(_numbers(arm), tried, strict=False)
        if min(numbers) < max(numbers)
    )


def _place(arm: str) -> tuple[tuple[float, ...], str]:
    """By number where there is one: of equal scores the least setting is taken."""
    return _numbers(arm) or (np.inf,), arm


def _numbers(arm: str) -> tuple[float, ...]:
    """The numbers of a setting, as in ``l2@1e-3`` and ``farms@0.1-0.5``; empty for other text."""
    try:
        return tuple(map(float, re.split(r"(?<=\d)-", arm.partition("@")[2])))
    except ValueError:
        return ()
