"""Successive halving: train every setting a little, the better ones twice as long, and so on.

    halving = parse("2@5", epochs=40)       # rungs end after 5, 10, 20 and 40 epochs
    survivors({0: [.7, .8], 1: [.6, .9], 2: [.1, .2]}, halving.factor)      # [0, 1]

Synchronous: a rung ends when all its trials have (arXiv 1502.07943; no setting goes on because
others were late). All seeds of a setting go on, or none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.config import ExperimentConfig
from experiments.errors import UserError
from experiments.report.selection import VALIDATION, badness
from experiments.sweep.space import Space


@dataclass(frozen=True)
class Halving:
    """One in ``factor`` goes on: first after ``first`` epochs, then each time after ``factor``
    times as many, until ``epochs``."""

    factor: int
    first: int
    epochs: int

    @property
    def rungs(self) -> tuple[tuple[int, int], ...]:
        """``(start, end)`` of each, in epochs; the last one may be short."""
        ends = [0, self.first]
        while ends[-1] < self.epochs:
            ends.append(min(ends[-1] * self.factor, self.epochs))
        return tuple(zip(ends[:-1], ends[1:], strict=True))

    def __str__(self) -> str:
        return f"{self.factor}@{self.first}"


def survivors(
    scores: Mapping[int, Sequence[float]], factor: int, *, higher: bool = True
) -> list[int]:
    """The numbers of the settings that go on, ascending: one in ``factor``, rounded up.

    ``scores``: one per seed. Fewest lost seeds first, then the mean of the others, then the smaller
    number, so that whoever asks, in whatever order, gets the same answer.
    """
    ranked = sorted(scores, key=lambda number: (badness(scores[number], higher=higher), number))
    return sorted(ranked[: kept(len(ranked), factor)])


def kept(count: int, factor: int) -> int:
    """How many of so many settings go on."""
    return -(-count // factor)


def parse(text: str, *, epochs: int) -> Halving:
    """Read ``FACTOR@EPOCHS``, as in ``2@5``; ``UserError`` (2) for what halves nothing."""
    found = re.fullmatch(r"([1-9]\d{0,8})@([1-9]\d{0,8})", text)
    if found is None:
        raise UserError(f"halve={text!r}: write FACTOR@EPOCHS, as in 2@5")
    factor, first = int(found[1]), int(found[2])
    if factor < 2:
        raise UserError(f"halve={text!r}: a factor of 1 keeps every setting; write 2@{first}")
    if first >= epochs:
        raise UserError(
            f"halve={text!r}: training ends after train.epochs = {epochs}, so nothing would be "
            "left to save; halve earlier or train longer"
        )
    return Halving(factor, first, epochs)


def check(config: ExperimentConfig, space: Space, objective: str) -> None:
    """``UserError`` (2) where settings could not be told apart by validation data at a rung."""
    if not objective.startswith(VALIDATION):
        raise UserError(
            f"halve: objective={objective!r}: settings are dropped by validation data alone, by a "
            f"metric whose name begins with {VALIDATION!r}"
        )
    if not config.data.validation:
        raise UserError(
            "halve: data.validation = 0, so no setting can be judged; set data.validation=1000 or "
            "the like: so many training examples are kept for that"
        )
    if "train.epochs" in space:
        raise UserError(
            "halve: train.epochs cannot be searched, for all settings meet at each rung"
        )
