"""Tables and paragraphs as text: aligned columns, rounded numbers, names without what all share."""

import math
import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any


def align(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns two spaces apart; a column whose body is all numbers stands right."""
    columns = list(zip(*table, strict=True))
    padded = []
    for column in columns:
        width = max(map(len, column))
        numeric = all(_numeric(text) for text in column[1:])
        padded.append([text.rjust(width) if numeric else text.ljust(width) for text in column])
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


def number(value: Any) -> str:
    """Three significant digits, a dash where there is no number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or not math.isfinite(value) or not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    text = f"{value:#.3g}"  # rounded first: 9.996 is 10.0, not 10.00
    return f"{value:.0f}" if "e" in text else text.rstrip(".")


def or_null(value: Any) -> Any:
    """JSON has no NaN: what cannot be said is null, and a status or a reason says why."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def wrapped(paragraph: str) -> str:
    """Lines as long as the terminal is wide, or as can be read."""
    return textwrap.fill(paragraph, min(100, shutil.get_terminal_size().columns))


def short_names(names: Sequence[str]) -> list[str]:
    """The names without the first and last words that all of them share.

    >>> short_names(["net.conv1.weight", "net.block.conv2.weight"])
    ['conv1', 'block.conv2']
    """
    paths = [re.split(r"([./])", name) for name in names]
    start = shared_words(paths)
    end = shared_words([path[start:][::-1] for path in paths])
    return ["".join(path[start : len(path) - end]) for path in paths]


def shared_words(paths: Sequence[Sequence[str]]) -> int:
    """How many words, with their separators, all paths begin with; each keeps one at least."""
    columns = list(zip(*paths, strict=False))
    same = 0
    while len(paths) > 1 and same < len(columns) and len(set(columns[same])) == 1:
        same += 1
    return min(same // 2 * 2, len(columns) - 1)


def _numeric(text: str) -> bool:
    return text == "-" or text.lstrip("+-").replace(".", "", 1)[:1].isdigit() and "x" not in text
