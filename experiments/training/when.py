"""At which steps something is done: the one schedule of evaluations, measures and surgery.

    log_spaced(20).steps(total=6000, steps_per_epoch=600)         # (0, 1, 2, 3, 5, ..., 6000)

The start and the end are always among them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.errors import UserError


@dataclass(frozen=True)
class When:
    """``within(total, steps_per_epoch)`` says at which steps between start and end."""

    within: Callable[[int, int], Sequence[int]]

    def steps(self, total: int, steps_per_epoch: int) -> tuple[int, ...]:
        """All of them, in order; 0 and ``total`` included."""
        between = (step for step in self.within(total, steps_per_epoch) if 0 < step < total)
        return tuple(sorted({0, *between, total}))


def every_epochs(count: int) -> When:
    """Every so many epochs."""
    return When(lambda total, epoch: range(0, total, count * epoch))


def every_steps(count: int) -> When:
    """Every so many steps."""
    return When(lambda total, _: range(0, total, count))


def log_spaced(count: int) -> When:
    """At so many steps at most, each about the same factor after the one before."""
    return When(lambda total, _: np.geomspace(1, total, count).round().astype(int).tolist())


def parse(key: str, value: int | str) -> When:
    """What a configuration says: ``2`` (epochs), ``50 steps``, ``20 log-spaced``.

    Raises ``UserError`` (2) that names the ``key`` for anything else.
    """
    found = re.fullmatch(r"([1-9]\d{0,8})( epochs?| steps?| log-spaced)?", str(value).strip())
    if found is None:
        raise UserError(
            f"{key} = {value!r}: expected a number of epochs, as in 2, or text as in "
            "'50 steps' or '20 log-spaced'"
        )
    makers = {"step": every_steps, "log-spaced": log_spaced}
    unit = (found[2] or "").strip().removesuffix("s")
    return makers.get(unit, every_epochs)(int(found[1]))
