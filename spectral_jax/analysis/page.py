"""The table as a page that stands alone: gist, figures, every column, what was skipped."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from spectral_jax import __version__
from spectral_jax.analysis import columns
from spectral_jax.analysis.engine import Analysis
from spectral_jax.analysis.layers import Layer
from spectral_jax.analysis.text import SHOWN, number, short_names
from spectral_jax.analysis.verdicts import VERDICTS, by_urgency
from spectral_jax.plots import page
from spectral_jax.plots.spectra import Tail, alphas_by_layer, tails

Row = Mapping[str, Any]

PANELS = 6


def write_page(
    target: Path,
    paths: Sequence[str],
    analyses: Sequence[Analysis],
    rows: Sequence[Row],
    names: Sequence[str],
) -> None:
    """Write the page of one analysis, or of two side by side, all at once or not at all."""
    parts = [f"<p class='lead'>{escape(analysis.summary)}</p>" for analysis in analyses]
    if len(analyses) == 2:
        parts += ["<h2>Side by side</h2>", _table("Most changed first.", rows, names)]
    for path, analysis in zip(paths, analyses, strict=True):
        parts += _sections(Path(path).name, analysis)
    parts += ["<h2>Columns</h2>", page.definitions(_meanings(names))]
    parts += ["<h2>Verdicts</h2>", page.definitions({v.word: v.meaning for v in VERDICTS.values()})]
    parts += ["<h2>Provenance</h2>", page.definitions(_provenance(paths))]
    title = "Spectra of " + " and ".join(Path(path).name for path in paths)
    text = page.page(title, parts, style=_BADGES)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _sections(name: str, analysis: Analysis) -> list[str]:
    rows = by_urgency(analysis.rows)
    known = [column.name for column in columns.COLUMNS if any(row.get(column.name) for row in rows)]
    first = [name for name in SHOWN if name in known]
    present = [*first, *(name for name in known if name not in (*first, "reason"))]
    parts = [f"<h2>Layers of {escape(name)}</h2>"]
    if "z" in present:
        parts.append(page.picture(_alphas(analysis.rows), _ALPHAS, name=f"{name}-alphas"))
    parts.append(_table("What needs attention first.", rows, present))
    if panels := _panels(analysis):
        parts.append(page.picture(tails(panels), _TAILS, name=f"{name}-tails"))
    if analysis.skipped:
        head = ("tensor", "shape", "why it was not analysed")
        cells = [
            (escape(each.name), "x".join(map(str, each.shape)) or "scalar", escape(each.reason))
            for each in analysis.skipped
        ]
        count = f"{len(cells)} tensors were not analysed."
        parts.append(f"<details><summary>{count}</summary>{page.table('', head, cells)}</details>")
    return parts


def _table(caption: str, rows: Sequence[Row], names: Sequence[str]) -> str:
    meanings = _meanings(names)
    head = [f"<abbr title='{escape(meanings.get(n, ''))}'>{escape(n)}</abbr>" for n in names]
    cells = [[_cell(name, row) for name in names] for row in rows]
    return page.table(caption, head, cells)


def _cell(name: str, row: Row) -> str:
    value = row.get(name)
    if name != "verdict":
        return escape(number(value))
    urgency = VERDICTS[value].urgency if value in VERDICTS else 7
    title = escape(row.get("reason", ""))
    return f"<span class='badge urgency-{urgency}' title='{title}'>{escape(str(value))}</span>"


def _alphas(rows: Sequence[Row]) -> Any:
    judged = [row for row in rows if np.isfinite(row["z"])]
    alpha, null, z = (
        np.array([row[name] for row in judged], float) for name in ("alpha_hill", "alpha_null", "z")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = np.where(z == 0, 0.0, (alpha - null) / z)
    names = short_names([row["layer"] for row in judged])
    return alphas_by_layer(names, alpha, null, deviation)


def _panels(analysis: Analysis) -> list[Tail]:
    """The most urgent layers whose spectrum can be drawn."""
    layers = {layer.view.name: layer for layer in analysis.layers}
    drawable = [
        row for row in by_urgency(analysis.rows) if row["finite"] and row["eigenvalues"] >= 8
    ]
    chosen = [row for row in drawable if row["rank"]][:PANELS]
    names = short_names([row["layer"] for row in chosen])
    return [
        _panel(name, row, layers[row["layer"]]) for name, row in zip(names, chosen, strict=True)
    ]


def _panel(name: str, row: Row, layer: Layer) -> Tail:
    from spectral_jax.tails.null import marchenko_pastur_quantile

    q = min(row["m"], row["n"]) / max(row["m"], row["n"])
    shares = (np.arange(200) + 0.5) / 200
    quantiles = np.array([marchenko_pastur_quantile(q, share) for share in shares])
    null = quantiles * layer.eigenvalues.mean() / quantiles.mean()
    alpha, xmin = (float(row.get(name) or np.nan) for name in ("alpha", "xmin"))
    return Tail(name, layer.eigenvalues, null, alpha, xmin)


def _meanings(names: Sequence[str]) -> dict[str, str]:
    known = {column.name: column.meaning for column in columns.COLUMNS}
    return {name: known.get(name, _compared(name, known)) for name in names}


def _compared(name: str, known: Mapping[str, str]) -> str:
    base, _, side = name.rpartition("_")
    if base not in known:
        return ""
    return f"{known[base]} ({'after minus before' if side == 'change' else side})"


def _provenance(paths: Sequence[str]) -> dict[str, str]:
    files = {f"file {i}": Path(path).name for i, path in enumerate(paths, start=1)}
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return files | {"spectral_jax": __version__, "numpy": np.__version__, "made": now}


_ALPHAS = (
    "Hill exponent of each layer (dots) against that of random matrices of the same shape (bars: "
    "± 3 standard deviations). Left of the bar: a heavier tail than chance gives. Exponents of "
    "layers of different shape compare by their distance from the bar, not by their value."
)
_TAILS = (
    "Share of a layer's eigenvalues above a value, for the layers that need attention first: "
    "measured, of a random matrix of the same shape and norm, and the fitted power law."
)
_BADGES = """
.urgency-0, .urgency-1 { background: #a63a00; } .urgency-2, .urgency-4 { background: #7d4a72; }
.urgency-3 { background: #8a5a00; } .urgency-5 { background: #0b5a8a; }
.urgency-6 { background: #00694b; } td { white-space: nowrap; }
abbr { text-decoration: none; cursor: help; }
details { margin: 1rem 0; } summary { cursor: pointer; }
"""
