"""``spectral-jax data``: a table of numbers in, its spectrum as text and as a picture out."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spectral_jax._door.table import align, number, or_null, wrapped
from spectral_jax._door.target import check_target
from spectral_jax._files import replacing

if TYPE_CHECKING:  # --help does not wait for jax
    from spectral_jax.capacity import DataDimension, InputSpectrum, Sloppiness

EMPTY = {"", "na", "n/a", "nan", "null", "none", "?"}  # cells that say nothing
FEW_COLUMNS = 2  # whose numbers may well be 0 and 1 in the first row
PICTURES = (".png", ".svg", ".pdf")


class Table(NamedTuple):
    """The numbers of a file, and the names of columns that hold words or number the rows."""

    values: np.ndarray
    left_out: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    option = parser.add_argument
    option("path", metavar="TABLE", help="rows are examples: .csv, .tsv or .npy")
    option("--uncentred", action="store_true", help="leave the mean of each column in")
    option("--standardise", action="store_true", help="divide columns by their deviation")
    option(
        "--missing",
        default="refuse",
        choices=("refuse", "rows", "pairwise"),
        help="what to do about empty cells: leave out their rows, or use pairs of columns",
    )
    option("--figure", metavar="FILE", help="draw the spectrum: .png, .svg or .pdf")
    option("--force", action="store_true", help="overwrite this file")
    option("--json", action="store_true", help="one JSON object on stdout")


def run(options: argparse.Namespace) -> int:
    """Do as asked; what is wrong with the input is raised, and said by `cli.main`."""
    if options.figure:
        if Path(options.figure).suffix not in PICTURES:
            raise ValueError(f"--figure {options.figure}: end it in .png, .svg or .pdf")
        check_target(options.figure, inputs=[options.path], force=options.force)
    table = read_table(Path(options.path))
    from spectral_jax import capacity

    spectrum = capacity.input_spectrum(
        table.values,
        centred=not options.uncentred,
        standardise=options.standardise,
        missing=options.missing,
    )
    fall, size = capacity.sloppiness(spectrum), capacity.data_dimension(spectrum)
    if options.figure:
        _draw(Path(options.figure), spectrum, fall)
    if options.json:
        print(json.dumps(_document(table, spectrum, fall, size), indent=2, allow_nan=False))
        return 0
    if table.left_out:
        print(
            f"left out, for they hold words or number the rows: {', '.join(table.left_out)}",
            file=sys.stderr,
        )
    print("\n".join(align(_lines(spectrum, fall))))
    print("", wrapped(size.says), "", wrapped(size.cannot_know), sep="\n")
    return 0


def read_table(path: Path) -> Table:
    """The numbers of a ``.npy`` file, or of text with commas, semicolons or tabs.

    The first line is a header if none of its cells is a number, if it names a column of numbers
    (``id,2019,2020``), or if it counts the columns (``0,1,2``, as pandas names those of an array;
    of two columns or one, over numbers that are not whole). Empty cells are NaN. Left out are
    columns of words, and those that a header leaves unnamed: rows numbered by the program that
    wrote them. Raises ``ValueError`` for rows of unequal length, or if no column holds numbers.
    """
    if path.suffix == ".npy":
        return Table(np.load(path, allow_pickle=False), ())
    rows = _cells(path)
    columns = [[*map(_number, column)] for column in zip(*rows, strict=True)]
    named = _has_header(columns) or _counts(rows[0], columns)
    names = [
        cell.strip() if named and cell.strip() else f"column {place}"
        for place, cell in enumerate(rows[0], 1)
    ]
    unnamed = [named and not cell.strip() for cell in rows[0]]
    columns = [column[named:] for column in columns]
    left_out = [nameless or None in c for nameless, c in zip(unnamed, columns, strict=True)]
    held = [column for column, out in zip(columns, left_out, strict=True) if not out]
    if not held or not held[0]:
        raise ValueError(f"{path} has no column of numbers below its first line")
    words = (name for name, out in zip(names, left_out, strict=True) if out)
    return Table(np.array(held, float).T, tuple(words))


def _cells(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        start = file.readline()
        file.seek(0)
        mark = max("\t;,", key=start.count)
        rows = [row for row in csv.reader(file, delimiter=mark) if row]
    if not rows:
        raise ValueError(f"{path} is empty")
    for place, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise ValueError(f"{path}: row {place} has {len(row)} cells, the first {len(rows[0])}")
    return rows


def _has_header(columns: Sequence[Sequence[float | None]]) -> bool:
    """Whether the first line names columns, which may have numbers for names, as years."""
    first = [column[0] for column in columns]
    names_numbers = any(c[0] is None and _holds_numbers(c[1:]) for c in columns)
    # An empty corner (NaN) over rows that count from 0 or 1, and names that are numbers.
    counted = bool(np.isnan(first[0] or 0)) and columns[0][1:] in _countings(len(columns[0]) - 1)
    only_words = None in first and all(x is None or np.isnan(x) for x in first)
    return names_numbers or only_words or counted


def _counts(first: Sequence[str], columns: Sequence[Sequence[float | None]]) -> bool:
    """Whether the first line is 0, 1, 2, ...: written as whole numbers are, 0.0 is none."""
    counting = [cell.strip() for cell in first] == [*map(str, range(len(first)))]
    return counting and (len(columns) > FEW_COLUMNS or not all(map(_is_whole, columns)))


def _is_whole(column: Sequence[float | None]) -> bool:
    return all(x is not None and x == round(x) for x in column if x is None or np.isfinite(x))


def _holds_numbers(column: Sequence[float | None]) -> bool:
    return None not in column and not np.isnan(np.array(column, float)).all()


def _countings(rows: int) -> list[list[float]]:
    return [[*map(float, range(start, start + rows))] for start in (0, 1)] if rows else []


def _number(cell: str) -> float | None:
    if cell.strip().lower() in EMPTY:
        return np.nan
    try:
        return float(cell)
    except ValueError:
        return None


def _draw(path: Path, spectrum: InputSpectrum, fall: Sloppiness) -> None:
    from spectral_jax import plots

    with replacing(path) as partial:
        plots.data_spectrum(spectrum, fall=fall).savefig(partial, format=path.suffix[1:], dpi=200)
    print(f"figure: {path}", file=sys.stderr)


def _lines(spectrum: InputSpectrum, fall: Sloppiness) -> list[Sequence[str]]:
    from spectral_jax.capacity import jackknife, sloppiness

    slope = jackknife(spectrum, lambda s: sloppiness(s).slope)
    told = {
        "rows": str(spectrum.n),
        "columns": f"{spectrum.p}, of which {spectrum.constant} constant",
        "empty cells": f"{spectrum.missing:.1%}",
        "rank": f"{spectrum.rank}, above a floor of {number(float(spectrum.floor))}",
        "largest value": number(float(spectrum.values[0])),
        "decades": f"{float(fall.decades):.2f}",
        "fall": f"{slope.value:.3f} decades a rank, {slope.low:.3f} to {slope.high:.3f}",
        "R^2 of the line": f"{float(fall.r_squared):.2f}",
        "effective rank": number(float(fall.effective_rank)),
    }
    if spectrum.indefinite > 1e-9:
        told["indefinite"] = f"{spectrum.indefinite:.1%} of the sum is negative: too many holes"
    return list(told.items())


def _document(
    table: Table, spectrum: InputSpectrum, fall: Sloppiness, size: DataDimension
) -> dict[str, Any]:
    plain = spectrum._asdict()
    values = [float(x) for x in plain.pop("values")]
    del plain["replicates"]
    return {
        **{name: or_null(_plain(value)) for name, value in plain.items()},
        "values": [or_null(x) for x in values],
        "left_out": list(table.left_out),
        "sloppiness": {name: or_null(_plain(x)) for name, x in fall._asdict().items()},
        "dimension": {
            "determined": size.determined._asdict(),
            "ninety": size.ninety._asdict(),
            "says": size.says,
            "cannot_know": size.cannot_know,
        },
    }


def _plain(value: Any) -> Any:
    """A Python number of an array without axes."""
    return value.item() if hasattr(value, "item") else value
