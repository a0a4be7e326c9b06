"""A table of layers for a terminal: aligned, coloured by verdict, as wide as it has to be."""

from collections.abc import Mapping, Sequence
from typing import Any

from spectral_jax._door.table import align, number, short_names
from spectral_jax.analysis.verdicts import VERDICTS

Row = Mapping[str, Any]

# A reader of the terminal wants these, those of them there are; files have every column.
SHOWN = (
    "verdict", "layer", "kind", "shape",
    "alpha_ks", "sigma", "alpha_farms", "alpha_hill", "alpha_null", "alpha_z",
    "stable_rank", "rank",
    "log_norm", "exponential_ratio", "truncated_ratio", "p_value",
    "alpha_z_before", "alpha_z_after", "alpha_z_change",
    "alpha_ks_before", "alpha_ks_after", "alpha_ks_change",
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
