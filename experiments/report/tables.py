"""One table, five forms: for a terminal, Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
import math
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float

from experiments.report.evidence import paired
from experiments.report.results import Results


@dataclass(frozen=True)
class Table:
    """Rows of texts by column; a row may leave columns out.

    ``styles`` says how a terminal shows a cell that holds just that text ("bold red"); ``bold``
    has the cells, by place of their row and by column, that stand out in every form that can.
    """

    caption: str
    rows: Sequence[Mapping[str, str]]
    styles: Mapping[str, str] = field(default_factory=dict)
    bold: Collection[tuple[int, str]] = ()

    @property
    def columns(self) -> list[str]:
        """Every column of any row, in the order in which they come up."""
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def lines(self) -> list[list[str]]:
        """The cells, row by row, without the head."""
        columns = self.columns
        return [[str(row.get(column, "")) for column in columns] for row in self.rows]

    def terminal(self) -> str:
        """Wrapped to the window for a person at a terminal, aligned text for a pipe."""
        if not sys.stdout.isatty():
            return self.text()
        from rich.console import Console
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(*self.columns, box=None, pad_edge=False)
        for line in self.lines():
            grid.add_row(*(Text(cell, style=self.styles.get(cell, "")) for cell in line))
        console = Console(width=shutil.get_terminal_size().columns, highlight=False)
        with console.capture() as shown:
            console.print(grid)
        return shown.get()

    def text(self) -> str:
        """Aligned columns, for a pipe."""
        lines = [self.columns, *self.lines()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        told = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        return "".join(f"{line}\n" for line in told)

    def markdown(self) -> str:
        """A table of GitHub's Markdown."""
        head = [[*map(_markdown, self.columns)], ["---"] * len(self.columns)]
        lines = [*head, *self._formed(_markdown, "**{}**")]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)

    def csv(self) -> str:
        """Comma-separated values with a head."""
        stream = io.StringIO()
        csv.writer(stream).writerows([self.columns, *self.lines()])
        return stream.getvalue()

    def latex(self) -> str:
        """A table of booktabs, ready for ``\\input``."""
        cells = [[*map(_latex, self.columns)], *self._formed(_latex, r"\textbf{{{}}}")]
        lines = [" & ".join(line) + r" \\" for line in cells]
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_latex(self.caption)}}}",
                rf"\begin{{tabular}}{{{'l' * len(self.columns)}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def html(self) -> str:
        """A table of the page; empty without rows."""
        if not self.rows:
            return ""
        from spectral_jax.plots import page  # imports matplotlib, which a listing does without

        cells = self._formed(escape, "<strong>{}</strong>")
        return page.table(self.caption, list(map(escape, self.columns)), cells)

    def write(self, stem: str | Path, *, suffixes: Collection[str] = ("csv", "md", "tex")) -> None:
        """Write ``stem.csv``, ``stem.md`` and ``stem.tex``; nothing for no rows."""
        forms = {"csv": self.csv, "md": self.markdown, "tex": self.latex} if self.rows else {}
        for suffix, form in forms.items():
            if suffix in suffixes:
                Path(f"{stem}.{suffix}").write_text(form(), encoding="utf-8", newline="")

    def _formed(self, form: Callable[[str], str], bold: str) -> list[list[str]]:
        """The cells as text of a form; ``bold`` is what it puts around those that stand out."""
        columns = self.columns
        return [
            [
                bold.format(form(cell)) if (place, column) in self.bold else form(cell)
                for column, cell in zip(columns, line, strict=True)
            ]
            for place, line in enumerate(self.lines())
        ]


def cell(values: Float[np.ndarray, " seeds"] | None, *, scale: float = 1.0) -> str:
    """Mean and half width of the 95 % interval; empty where there is no number."""
    from experiments.report import statistics  # imports scipy, which a listing does without

    if values is None:
        return ""
    found = statistics.estimate(scale * np.asarray(values, float))
    if not found.n:
        return ""
    low, high = statistics.interval(found, 0.95)
    return number(found.mean, (high - low) / 2)


def number(mean: float, half: float) -> str:
    """``mean ± half`` with as many digits as two of the interval's are worth."""
    if not half > 0 or not math.isfinite(half):
        return f"{mean:.0f}" if mean == round(mean) else f"{mean:.4g}"
    decimals = int(1 - math.floor(math.log10(half)))
    if half < 1000 and abs(mean) < 1e5:  # whole numbers need no power of ten yet
        decimals = max(decimals, 0)
    if 0 <= decimals <= 6:
        return f"{round(mean, decimals) + 0.0:.{decimals}f} ± {half:.{decimals}f}"  # no -0.0
    return f"{mean:.4g} ± {half:.2g}"


def of_results(
    results: Results,
    columns: Mapping[str, tuple[str, float]],
    *,
    caption: str = "Mean and 95 % interval over seeds",
    protocols: Iterable[str] | None = None,
    arms: Sequence[str] | None = None,
    against: str = "",
) -> Table:
    """One row per arm; a column is a metric and the factor that brings it to the column's unit.

    against: an arm; a column then says by how many points the others test better, paired by seed.
    """
    rows = []
    for protocol in results.protocols() if protocols is None else protocols:
        for arm in results.arms(protocol):
            if arms is not None and arm not in arms:
                continue
            told = {
                name: cell(results.values(metric, arm=arm, protocol=protocol), scale=scale)
                for name, (metric, scale) in columns.items()
            }
            if against and arm != against:
                gain = paired(arm, against, protocol=protocol).of(results)
                told[f"minus {against} (points)"] = cell(gain)
            told["seeds"] = str(len(results.seeds(arm=arm, protocol=protocol)))
            rows.append({"protocol": protocol, "arm": arm, **told})
    measured = {column for row in rows for column, text in row.items() if text}
    return Table(caption, [{c: row[c] for c in row if c in measured} for row in rows])


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "\n": " ",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
