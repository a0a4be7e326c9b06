"""Choosing one number of a grid by its score, and telling whether the grid ended too soon."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def chosen(scores: Sequence[float] | np.ndarray) -> int:
    """The place of the best score; of equals the one nearest to the middle of the grid.

    What has no number, as of a network that diverged, is worse than all others.

    >>> chosen([0.9, 0.9, 0.9, 0.5, 0.9]), chosen([np.nan, 0.5])
    (2, 1)
    """
    known = np.nan_to_num(np.asarray(scores, float), nan=-np.inf)
    middle = (len(known) - 1) / 2
    return max(range(len(known)), key=lambda place: (known[place], -abs(place - middle)))


def of_choice(name: str, grid: Sequence[float], place: int) -> dict[str, float]:
    """What was chosen, and whether a better one may lie outside of the grid."""
    at_edge = len(grid) > 1 and grid[place] in (min(grid), max(grid))
    return {name: grid[place], f"{name}/at edge": float(at_edge)}
