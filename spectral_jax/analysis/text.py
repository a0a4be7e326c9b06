"""A table of layers for a terminal: aligned, coloured by verdict, as wide as it has to be."""

import math
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from spectral_jax.analysis.verdicts import VERDICTS

Row = Mapping[str, Any]

# A reader of the terminal wants these, those of them there are; files have every column.
SHOWN = (
    "verdict", "layer", "kind", "shape",
    "alpha", "sigma", "alpha_farms", "alpha_hill", "alpha_null", "z", "stable_rank", "rank",
    "log_norm", "exponential_ratio", "truncated_ratio", "p_value",
    "z_before", "z_after", "z_change", "alpha_before", "alpha_after", "alpha_change",
    "alpha_farms_before", "alpha_farms_after", "alpha_farms_change",
    "log_norm_before", "log_norm_after", "log_norm_change", "rank_before", "rank_after",
)  # fmt: skip
_ANSI = {0: "1;31", 1: "31", 2: "35", 3: "33", 4: "35", 5: "36", 6: "32", 7: "2"}


def render(rows: Sequence[Row], *, colour: bool) -> str:
    """One line per row under a heading; numbers to the right, words to the left."""
    present = [name for name in SHOWN if name == "shape" or any(name in row for row in rows)]
    names = short_names([row["layer"] for row in rows])
    shown = [{**row, "layer": name} for row, name in zip(rows, names, strict=True)]
    cells = [[cell(row, name) for name in present] for row in shown]
    lines = align([present, *cells])
    if colour:
        lines = [f"\033[1m{lines[0]}\033[0m"] + [
            paint(line, row["verdict"]) for line, row in zip(lines[1:], rows, strict=True)
        ]
    return "\n".join(lines)


def align(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns two spaces apart; a column whose body is all numbers stands right."""
    columns = list(zip(*table, strict=True))
    padded = []
    for column in columns:
        width = max(map(len, column))
        numeric = all(_numeric(text) for text in column[1:])
        padded.append([text.rjust(width) if numeric else text.ljust(width) for text in column])
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


def paint(line: str, verdict: str) -> str:
    """The line with its leading verdict in the verdict's colour."""
    code = _ANSI[VERDICTS[verdict].urgency] if verdict in VERDICTS else "1"
    return f"\033[{code}m{line[: len(verdict)]}\033[0m{line[len(verdict) :]}"


def cell(row: Row, name: str) -> str:
    """One value as a person reads it."""
    if name == "shape":
        size = f"{row['m']}x{row['n']}"
        return size if row["slices"] == 1 else f"{row['slices']}x{size}"
    return number(row.get(name))


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
