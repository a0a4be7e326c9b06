"""``spectral-jax analyze``: a checkpoint in, a table out."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral_jax._door.arguments import add_reading_options, glob_and_kind
from spectral_jax._door.table import align, or_null, wrapped
from spectral_jax._door.target import check_target
from spectral_jax._files import replacing
from spectral_jax.analysis import columns
from spectral_jax.analysis.comparison import IDENTITY, compare, titles
from spectral_jax.analysis.engine import Analysis, analyze_layers, check_groups
from spectral_jax.analysis.text import render
from spectral_jax.analysis.verdicts import by_urgency

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    option = parser.add_argument
    option("path", nargs="?", metavar="PATH", help="a checkpoint: file or folder")
    option("--compare", metavar="LATER", help="a second one: PATH is before, LATER is after")
    option(
        "--metrics",
        default=",".join(columns.DEFAULT),
        metavar="GROUPS",
        help=f"of {', '.join(columns.OPTIONAL)}, or all (default: %(default)s)",
    )
    option(
        "--conv",
        default="positions",
        choices=("positions", "flattened", "channels"),
        help="a convolution as a matrix per kernel position, as one, or as its channel graph",
    )
    add_reading_options(parser)
    stdout = parser.add_mutually_exclusive_group()
    stdout.add_argument("--json", action="store_true", help="one JSON object on stdout")
    stdout.add_argument("--csv", action="store_true", help="every column as CSV on stdout")
    option("--parquet", metavar="FILE", help="every column as a Parquet file")
    option("--report", metavar="FILE", help="a page with figures, for example out.html")
    option("--force", action="store_true", help="overwrite these files")
    option("--skipped", action="store_true", help="list what was not analysed, and why")
    option("--columns", action="store_true", help="say what each column means")


def run(options: argparse.Namespace) -> int:
    """Do as asked; what is wrong with the input is raised, and said by `cli.main`."""
    if options.columns:
        print("\n".join(align([(each.name, each.group, each.meaning) for each in columns.COLUMNS])))
        return 0
    if options.path is None:
        raise ValueError("analyze needs the PATH of a checkpoint; see spectral-jax analyze --help")
    groups = check_groups(options.metrics.split(","))
    paths = [path for path in (options.path, options.compare) if path is not None]
    for target in (options.parquet, options.report):
        if target is not None:
            check_target(target, inputs=paths, force=options.force)
    analyses = [_open_and_analyse(path, groups, options) for path in paths]
    rows, names = _table(analyses, groups)
    if options.parquet:
        _write_parquet(options.parquet, rows, names)
    if options.report:
        from spectral_jax.analysis.page import write_page

        write_page(Path(options.report), paths, analyses, rows)
        print(f"report: {options.report}", file=sys.stderr)
    _print(rows, names, paths, analyses, options)
    return 0


def _open_and_analyse(path: str, groups: Sequence[str], options: argparse.Namespace) -> Analysis:
    from spectral_jax.checkpoints import open_checkpoint

    with open_checkpoint(path, step=options.step) as checkpoint:
        return analyze_layers(
            checkpoint,
            metrics=groups,
            layers=options.layers,
            conv=options.conv,
            framework=options.framework,
            kinds=dict(map(glob_and_kind, options.kind)),
            label=Path(path).name,
        )


def _table(
    analyses: Sequence[Analysis], groups: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows to show and the names of all their columns."""
    names = columns.names(groups)
    if len(analyses) == 1:
        return by_urgency(analyses[0].rows), names
    compared = [name for name in names if name not in (*IDENTITY, "verdict", "reason")]
    rows = compare(analyses[0].rows, analyses[1].rows, compared)
    return rows, list(dict.fromkeys(name for row in rows for name in row))


def _print(
    rows: Sequence[dict[str, Any]],
    names: Sequence[str],
    paths: Sequence[str],
    analyses: Sequence[Analysis],
    options: argparse.Namespace,
) -> None:
    if options.json:
        print(json.dumps(_document(rows, names, analyses), indent=2, allow_nan=False))
    elif options.csv:
        writer = csv.DictWriter(sys.stdout, names, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows({name: _as_text(value) for name, value in row.items()} for row in rows)
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(render(rows, colour=colour))
        for title, analysis in zip(titles(paths), analyses, strict=True):
            named = f"{title}: " if options.compare else ""
            print("", wrapped(named + analysis.summary), sep="\n")
        if options.skipped:
            print("", *_skipped_lines(analyses), sep="\n")


def _as_text(value: Any) -> Any:
    """The cell of a CSV; text that a spreadsheet would run as a formula gets an apostrophe.

    https://owasp.org/www-community/attacks/CSV_Injection
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _document(
    rows: Sequence[dict[str, Any]], names: Sequence[str], analyses: Sequence[Analysis]
) -> dict[str, Any]:
    return {
        "layers": [{name: or_null(row[name]) for name in names if name in row} for row in rows],
        "summary": [analysis.summary for analysis in analyses],
        "skipped": [[each._asdict() for each in analysis.skipped] for analysis in analyses],
    }


def _skipped_lines(analyses: Sequence[Analysis]) -> list[str]:
    lines = [
        (each.name, "x".join(map(str, each.shape)) or "scalar", each.reason)
        for analysis in analyses
        for each in analysis.skipped
    ]
    return align([("not analysed", "shape", "why"), *lines])


def _write_parquet(path: str, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("--parquet needs pyarrow: pip install 'spectral-jax[tables]'") from error
    table = {name: [row.get(name) for row in rows] for name in names}
    with replacing(Path(path)) as partial:
        parquet.write_table(pyarrow.table(table), partial)
