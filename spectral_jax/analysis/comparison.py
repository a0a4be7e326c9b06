"""Two checkpoints, or two steps of one training, side by side."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectral_jax.checkpoints import as_line

Row = Mapping[str, Any]

IDENTITY = ("layer", "kind", "m", "n", "slices")
_SIDES = ("before", "after")


def titles(paths: Sequence[str]) -> list[str]:
    """What to call each checkpoint: its file, and which of two it is.

    >>> titles(["runs/1/model.npz", "runs/9/model.npz"])
    ['Before (model.npz)', 'After (model.npz)']
    """
    files = [as_line(Path(path).name) for path in paths]
    if len(files) == 1:
        return files
    return [f"{side.capitalize()} ({file})" for side, file in zip(_SIDES, files, strict=True)]


def compare(before: Sequence[Row], after: Sequence[Row], columns: Sequence[str]) -> list[dict]:
    """A row per layer of either: ``column_before``, ``column_after``, ``column_change``.

    Layers are matched by name; one that only one side has keeps its half, and ``verdict`` says so.
    Sorted by how far z moved, then the squared norm; layers that came, went or lost z first.
    """
    sides = [{row["layer"]: row for row in rows} for rows in (before, after)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    if not set(sides[0]) & set(sides[1]):
        first = [next(iter(side), "none") for side in sides]
        raise ValueError(
            f"compare: no layer of one is in the other ({first[0]!r} here, {first[1]!r} there); "
            "pass two checkpoints of the same network"
        )
    rows = [_row(name, [side.get(name) for side in sides], columns) for name in names]
    return sorted(rows, key=_movement)


def _row(name: str, pair: Sequence[Row | None], columns: Sequence[str]) -> dict[str, Any]:
    known = next(row for row in pair if row is not None)
    row: dict[str, Any] = {column: known[column] for column in IDENTITY}
    words = [each["verdict"] if each else "no layer" for each in pair]
    row["verdict"] = words[0] if words[0] == words[1] else " -> ".join(words)
    for column in columns:
        values = [None if each is None else each.get(column) for each in pair]
        for side, value in zip(_SIDES, values, strict=True):
            row[f"{column}_{side}"] = value
        first, second = values
        if isinstance(first, int | float) and isinstance(second, int | float):
            row[f"{column}_change"] = second - first
    return row


def _movement(row: Row) -> tuple[float, float]:
    z, norm = (_distance(row, column) for column in ("z", "log_norm"))
    return -z, -norm


def _distance(row: Row, column: str) -> float:
    known = [
        value
        for value in (row.get(f"{column}_{side}") for side in _SIDES)
        if value is not None and math.isfinite(value)
    ]
    return abs(known[1] - known[0]) if len(known) == 2 else math.inf if known else 0.0
