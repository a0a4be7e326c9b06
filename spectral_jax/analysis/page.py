"""The table as a page that stands alone: gist, figures, every column, what was skipped."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from spectral_jax import __version__
from spectral_jax._door.table import number, short_names
from spectral_jax._files import replacing
from spectral_jax.analysis import columns
from spectral_jax.analysis.comparison import IDENTITY, titles
from spectral_jax.analysis.engine import Analysis
from spectral_jax.analysis.layers import Layer
from spectral_jax.analysis.text import SHOWN
from spectral_jax.analysis.verdicts import DISTINCT, VERDICTS, against_chance, by_urgency
from spectral_jax.checkpoints import as_line
from spectral_jax.plots import page
from spectral_jax.plots.spectra import Tail, alphas_by_layer, tails
from spectral_jax.plots.style import to_svg

Row = Mapping[str, Any]

PANELS = 6
_COLUMN = "column-"
_MEANINGS = {column.name: column.meaning for column in columns.COLUMNS}


def write_page(
    target: Path,
    paths: Sequence[str],
    analyses: Sequence[Analysis],
    rows: Sequence[Row],
) -> None:
    """Write the page of one analysis, or of two side by side, all at once or not at all."""
    named = list(zip(titles(paths), analyses, strict=True))
    meanings = _meanings(analyses)
    parts = []
    for title, analysis in named:
        parts += [f"<h2>{page.breakable(title)}</h2>"] * (len(named) == 2)
        parts.append(f"<ul class='lead'>{''.join(map(_item, analysis.gist))}</ul>")
    if len(named) == 2:
        caption = "Most changed first. Columns that are equal in both are left out."
        parts += ["<h2>Side by side</h2>", _table(caption, rows, _changed(meanings, rows))]
    for title, analysis in named:
        parts += _sections(title, analysis)
    parts += ["<h2>Columns</h2>", page.definitions(meanings, anchor=_COLUMN)]
    parts += ["<h2>Verdicts</h2>", page.definitions({v.word: v.meaning for v in VERDICTS.values()})]
    parts += ["<h2>Provenance</h2>", page.definitions(_provenance(paths))]
    title = "Spectra of " + " and ".join(as_line(Path(path).name) for path in paths)
    text = page.page(title, parts, style=_BADGES)
    with replacing(target) as partial:
        partial.write_text(text, encoding="utf-8")


def _item(sentence: str) -> str:
    return f"<li>{page.breakable(sentence)}</li>"


def _sections(title: str, analysis: Analysis) -> list[str]:
    rows = by_urgency(analysis.rows)
    parts = [f"<h2>Layers: {page.breakable(title)}</h2>"]
    judged = against_chance(analysis.rows)
    if judged:
        figure, name = _alphas(judged), f"{title}-alphas"
        parts.append(page.picture(to_svg(figure), _ALPHAS, name=name, alternative=_where(judged)))
    parts.append(_table("What needs attention first.", rows, list(_meanings([analysis]))))
    if panels := _panels(analysis):
        figure, name = tails(panels), f"{title}-tails"
        words = ", ".join(f"{panel.name} (alpha_ks {number(panel.alpha)})" for panel in panels)
        alternative = f"{_TAILS} Drawn are {words}."
        parts.append(page.picture(to_svg(figure), _TAILS, name=name, alternative=alternative))
    if analysis.skipped:
        head = ("tensor", "shape", "why it was not analysed")
        cells = [
            (escape(each.name), "x".join(map(str, each.shape)) or "scalar", escape(each.reason))
            for each in analysis.skipped
        ]
        count = "1 tensor was" if len(cells) == 1 else f"{len(cells)} tensors were"
        listed = page.table("Left out, and why.", head, cells)
        parts.append(f"<details><summary>{count} not analysed</summary>{listed}</details>")
    return parts


def _where(judged: Sequence[Row]) -> str:
    """The figure of the exponents in words."""
    below = [row for row in judged if row["alpha_z"] < -DISTINCT]
    above = [row for row in judged if row["alpha_z"] > DISTINCT]
    within = len(judged) - len(below) - len(above)
    parts = [
        f"Hill exponents of {len(judged)} layers against random matrices of the same shape: "
        f"{len(below)} below the range of chance, {within} within, {len(above)} above it."
    ]
    for side, rows in (("below", below), ("above", above)):
        if rows:
            row = max(rows, key=lambda row: abs(row["alpha_z"]))
            where = f"{number(row['alpha_hill'])} against {number(row['alpha_null'])}"
            parts.append(f"Farthest {side}: {row['layer']}, {where}.")
    return " ".join(parts)


def _table(caption: str, rows: Sequence[Row], names: Sequence[str]) -> str:
    head = [
        f"<a href='#{_COLUMN}{escape(_base(name))}' title='{escape(_MEANINGS[_base(name)])}'>"
        f"{escape(name)}</a>"
        for name in names
    ]
    cells = [[_cell(name, row) for name in names] for row in rows]
    numeric = [
        i for i, name in enumerate(names) if not any(isinstance(row.get(name), str) for row in rows)
    ]
    return page.table(caption, head, cells, numeric=numeric)


def _cell(name: str, row: Row) -> str:
    if name == "layer":
        return page.breakable(str(row[name]))
    if name != "verdict":
        return escape(number(row.get(name)))
    verdict = str(row["verdict"])
    newest = verdict.rpartition(" -> ")[-1]
    urgency = VERDICTS[newest].urgency if newest in VERDICTS else 7
    return f"<span class='badge urgency-{urgency}'>{escape(verdict)}</span>"


def _alphas(judged: Sequence[Row]) -> Any:
    from spectral_jax.tails.null import null_alpha

    shapes = [(row["slices"], row["m"], row["n"])[row["slices"] == 1 :] for row in judged]
    nulls = [null_alpha(shape) for shape in shapes]
    low, high = (np.array([null.at(z) for null in nulls]) for z in (-DISTINCT, DISTINCT))
    names = short_names([row["layer"] for row in judged])
    alpha = np.array([row["alpha_hill"] for row in judged])
    return alphas_by_layer(names, alpha, np.array([null.mean for null in nulls]), low, high)


def _panels(analysis: Analysis) -> list[Tail]:
    """The most urgent layers whose spectrum can be drawn."""
    layers = {layer.view.name: layer for layer in analysis.layers}
    drawable = [
        row
        for row in by_urgency(analysis.rows)
        if row["finite"] and row["eigenvalues"] >= 8 and layers[row["layer"]].unit == 1
    ]
    chosen = [row for row in drawable if row["rank"]][:PANELS]
    names = short_names([row["layer"] for row in chosen])
    return [
        _panel(name, row, layers[row["layer"]]) for name, row in zip(names, chosen, strict=True)
    ]


def _panel(name: str, row: Row, layer: Layer) -> Tail:
    from spectral_jax.laws import marchenko_pastur_quantile

    q = min(row["m"], row["n"]) / max(row["m"], row["n"])
    quantiles = marchenko_pastur_quantile((np.arange(200) + 0.5) / 200, q)
    null = quantiles * layer.eigenvalues.mean() / quantiles.mean()
    alpha, xmin = (float(row.get(name) or np.nan) for name in ("alpha_ks", "xmin"))
    return Tail(name, layer.eigenvalues, null, alpha, xmin)


def _meanings(analyses: Sequence[Analysis]) -> dict[str, str]:
    """What the columns say that hold anything, in the order of the page."""
    rows = [row for analysis in analyses for row in analysis.rows]
    filled = [name for name in _MEANINGS if any(row.get(name) not in (None, "") for row in rows)]
    first = [name for name in ("layer", "verdict", *IDENTITY, *SHOWN) if name in filled]
    order = dict.fromkeys([*first, *(name for name in filled if name != "reason"), "reason"])
    return {name: _MEANINGS[name] for name in order}


def _changed(names: Iterable[str], rows: Sequence[Row]) -> list[str]:
    """The columns of a comparison that differ in any row, before, after and change together."""
    found = ["layer", "verdict", *(name for name in IDENTITY if name != "layer")]
    for name in names:
        # As text: of two numbers that are NaN, neither changed.
        if any(str(row.get(f"{name}_before")) != str(row.get(f"{name}_after")) for row in rows):
            triple = [f"{name}_{side}" for side in ("before", "after", "change")]
            found += [each for each in triple if any(each in row for row in rows)]
    return found


def _base(name: str) -> str:
    """The column that a column of a comparison is of."""
    return name if name in _MEANINGS else name.rpartition("_")[0]


def _provenance(paths: Sequence[str]) -> dict[str, str]:
    files = {f"file {i}": as_line(Path(path).name) for i, path in enumerate(paths, start=1)}
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return files | {"spectral_jax": __version__, "numpy": np.__version__, "made": now}


_ALPHAS = (
    "Hill exponent of each layer (dots) against that of random matrices of the same shape (bars: "
    "± 3 standard deviations). Smaller than its bar: a heavier tail than chance gives. Exponents "
    "of layers of different shape compare by their distance from the bar, not by their value. "
    "Layers that are too small to judge are not drawn."
)
_TAILS = (
    "Share of a layer's eigenvalues above a value, for the layers that need attention first: "
    "measured, of a random matrix of the same shape and norm, and the fitted power law."
)
_BADGES = """
.urgency-0, .urgency-1 { background: #a63a00; } .urgency-2, .urgency-4 { background: #7d4a72; }
.urgency-3 { background: #8a5a00; } .urgency-5 { background: #0b5a8a; }
.urgency-6 { background: #00694b; } td { white-space: nowrap; }
th { white-space: nowrap; } th a { color: inherit; text-decoration-style: dotted; }
@media (max-width: 40rem) {
  th[scope=row] { white-space: normal; overflow-wrap: break-word; max-width: 10rem; }
}
details { margin-top: 1rem; margin-bottom: 1rem; } summary { cursor: pointer; }
"""
