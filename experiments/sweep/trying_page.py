"""What became of a regulariser, on one page: words first, then differences, figures, its source."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.report.page import as_html, save_figures
from experiments.runs.files import cannot_write_is_one_line, make_directory
from experiments.sweep import comparison_page
from spectral_jax.plots import page

if TYPE_CHECKING:
    from experiments.sweep.trying import Tried


def write(tried: Tried, folder: Path) -> None:
    """Write ``page.html``, the table (.csv, .md) and ``figures/``."""
    sections = comparison_page.sections(tried.comparison)
    parts = [
        *comparison_page.beginning(tried.comparison, learned(tried)),
        *map(as_html, sections),
        "<h2>The regulariser</h2>",
        f"<p>{escape(_held(tried))}</p>",
        f"<div class='wide' tabindex='0'><pre>{escape(tried.source)}</pre></div>",
        "<h2>Provenance</h2>",
        page.definitions(dict(_facts(tried))),
    ]
    with cannot_write_is_one_line(folder):
        make_directory(folder)
        text = page.page(f"{tried.name} beside {_names(tried)}", parts)
        (folder / "page.html").write_text(text, encoding="utf-8")
        tried.comparison.page(folder, formats=["csv", "md"])
        save_figures(sections, folder / "figures")


def learned(tried: Tried) -> list[str]:
    """What came out in sentences, and how it was made fair."""
    plan = tried.sweeps[0].plan
    tuned = f"{plan.count} settings of {len(plan.seeds)} seeds, by {plan.objective}"
    again = "; what was best was trained again on fresh seeds, and only these count"
    again = again if tried.comparison.finals else ""
    return [*tried.comparison.learned(), f"Every arm was tuned with {tuned}{again}."]


def _names(tried: Tried) -> str:
    return ", ".join(arm.name for arm in tried.arms[:-1])


def _held(tried: Tried) -> str:
    clauses = dict.fromkeys(held.clause for held in tried.held)
    inputs = dict.fromkeys(held.input for held in tried.held)
    return f"Its contract holds: {', '.join(clauses)}; on {'; on '.join(inputs)}."


def _facts(tried: Tried) -> Iterator[tuple[str, str]]:
    for arm, sweep in zip(tried.arms, tried.sweeps, strict=True):
        space = ", ".join(f"{key} in {values}" for key, values in arm.space.items())
        yield arm.name, f"{space}: {sweep.directory}"
    for directories in tried.comparison.finals.values():
        yield "fresh seeds", ", ".join(map(str, directories))
