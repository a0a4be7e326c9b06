"""Two checkpoints, or two steps of one training, side by side."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectral_jax._door.table import shared_words
from spectral_jax.checkpoints import as_line

Row = Mapping[str, Any]

IDENTITY = ("layer", "kind", "m", "n", "slices")
_SIDES = ("before", "after")
# A word that a wrapper puts into every name: torch.compile, DataParallel, FSDP, DeepSpeed.
_WRAPPERS = (
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
# By what rows are sorted, most telling first; the table shows how each has changed.
MOVEMENT = ("alpha_z", "alpha_ks", "alpha_farms", "log_norm")


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

    Layers are matched by name, if need be without the words of wrappers such as ``_orig_mod.``
    or those that all names of a side begin with; one that only one side has keeps its half, and
    ``verdict`` says so. Sorted by how far the first of ``MOVEMENT`` moved, then the next; layers
    that came, went or lost that number first.
    """
    sides = _paired([{row["layer"]: row for row in rows} for rows in (before, after)])
    names = dict.fromkeys([*sides[0], *sides[1]])
    if not set(sides[0]) & set(sides[1]):
        first = [next(iter(side), "none") for side in sides]
        raise ValueError(
            f"compare: no layer of one is in the other ({first[0]!r} here, {first[1]!r} there); "
            "pass two checkpoints of the same network"
        )
    rows = [_row(name, [side.get(name) for side in sides], columns) for name in names]
    return sorted(rows, key=_movement)


def _paired(sides: Sequence[dict[str, Row]]) -> list[dict[str, Row]]:
    """Both sides by names that they share, where wrapping is all that tells their names apart.

    A wrapper adds words of its own anywhere, or one word or more before all names of a side.
    """
    bare = [{_unwrapped(name): row for name, row in side.items()} for side in sides]
    told_apart = all(len(new) == len(old) for new, old in zip(bare, sides, strict=True))
    best = bare if told_apart and _common(bare) > _common(sides) else list(sides)
    for i, side in enumerate(best):
        paths = [re.split(r"([./])", name) for name in side]
        for cut in range(2, shared_words(paths) + 1, 2):
            shorter = {
                "".join(path[cut:]): row for path, row in zip(paths, side.values(), strict=True)
            }
            candidate = [shorter, best[1]] if i == 0 else [best[0], shorter]
            if _common(candidate) > _common(best):
                return candidate
    return best


def _common(sides: Sequence[dict[str, Row]]) -> int:
    return len(sides[0].keys() & sides[1].keys())


def _unwrapped(name: str) -> str:
    """The name without the words of wrappers.

    >>> _unwrapped("_orig_mod.module.fc.weight")
    'fc.weight'
    """
    words = "|".join(_WRAPPERS)
    return re.sub(rf"(?<![^./])(?:{words})[./]", "", name)


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


def _movement(row: Row) -> tuple[float, ...]:
    return tuple(-_distance(row, column) for column in MOVEMENT)


def _distance(row: Row, column: str) -> float:
    known = [
        value
        for value in (row.get(f"{column}_{side}") for side in _SIDES)
        if value is not None and math.isfinite(value)
    ]
    return abs(known[1] - known[0]) if len(known) == 2 else math.inf if known else 0.0
