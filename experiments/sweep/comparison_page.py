"""A comparison on one page, as the house writes them: what came out, figures, what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.page import Picture, Section, as_html, save_figures
from experiments.sweep.comparison import Comparison
from experiments.sweep.groups import Group
from experiments.sweep.outcome import TrialRow, is_number
from experiments.sweep.space import shown
from spectral_jax import plots
from spectral_jax.plots import page


def write(comparison: Comparison, folder: Path) -> None:
    """Write ``page.html``, and its figures as files."""
    found = sections(comparison)
    (folder / "page.html").write_text(_page(comparison, found), encoding="utf-8")
    save_figures(found, folder / "figures")


def sections(comparison: Comparison) -> list[Section]:
    """All of the page but its beginning: differences, tasks together, settings, what was chosen."""
    several = len(comparison.tasks) > 1
    found = [
        Section(
            f"Against {comparison.baseline}" + (f" on {task}" if several else ""),
            _stem(task),
            figures=_differences(comparison, task) | _effects(comparison, task),
        )
        for task in comparison.tasks
    ]
    if comparison.across:
        figures = {"profiles": _profiles(comparison)}
        found.append(Section("All tasks", "all", figures, [comparison.across_table]))
    return [*found, Section("Chosen settings", "chosen", tables=[comparison.chosen])]


def _page(comparison: Comparison, found: Sequence[Section]) -> str:
    learned, caveats = (
        "".join(f"<li>{escape(line)}</li>" for line in lines)
        for lines in (comparison.learned(), comparison.caveats())
    )
    parts = [
        f"<ul class='lead'>{learned}</ul>",
        comparison.table.html(),
        f"<ul>{caveats}</ul>" if caveats else "",
        *map(as_html, found),
        "<h2>Provenance</h2>",
        page.definitions(_facts(comparison)),
    ]
    title = f"{comparison.by} against {comparison.baseline}"
    return page.page(title, [part for part in parts if part])


def _facts(comparison: Comparison) -> dict[str, str]:
    groups = [group for groups in comparison.tasks.values() for group in groups.values()]
    sweeps = dict.fromkeys(str(group.sweep.directory) for group in groups)
    facts = {"sweeps": ", ".join(sweeps), "chosen by": groups[0].sweep.plan.objective}
    for task, directories in comparison.finals.items():
        seeds, told = comparison.seeds[task], ", ".join(map(str, directories))
        facts[f"finals on {task}"] = f"{told}, seeds {seeds[0]} to {seeds[-1]}"
    return facts


def _differences(comparison: Comparison, task: str) -> dict[str, Picture]:
    """Every pair of every group; nothing where all others were lost."""
    values = {
        group: np.where(np.isfinite(pairs), comparison.turned(pairs), np.nan)
        for (where, group), pairs in comparison.pairs.items()
        if where == task
    }
    if not values:
        return {}
    unit = " (percentage points)" if comparison.unit else ""
    less = "" if comparison.higher else "; less is better"
    figure = plots.paired_differences(
        values, xlabel=f"{comparison.metric} minus {comparison.baseline}'s{unit}{less}"
    )
    kind = "fresh seed" if comparison.finals else "tuning seed (nothing is claimed of them)"
    caption = (
        f"Differences to {comparison.baseline}, a point per {kind}, with their mean and 95 % "
        "interval: filled where it leaves out zero, before any correction for their number."
    )
    return {"differences": Picture(figure, caption)}


def _effects(comparison: Comparison, task: str) -> dict[str, Picture]:
    """The validation score over every searched key; nothing where there is none but the groups'."""
    groups = {name: comparison.tasks[task][name] for name in comparison.ordered(task)}
    keys = dict.fromkeys(key for group in groups.values() for key in group.sweep.plan.keys)
    panels: dict[str, dict[str, tuple[list[Any], np.ndarray]]] = {
        key: {name: _points(group, key, comparison.scale) for name, group in groups.items()}
        for key in keys
        if key != comparison.by
    }
    varied = {
        key: points
        for key, points in panels.items()
        if len({value for values, _ in points.values() for value in values}) > 1
    }
    if not varied:
        return {}
    objective = next(iter(groups.values())).sweep.plan.objective
    figure = plots.setting_effects(
        varied, ylabel=f"{objective} (%)" if comparison.unit else objective, arms=[*groups]
    )
    caption = (
        f"What each setting does to {objective}: a point per configuration, its mean over tuning "
        "seeds, and the median of those at a value, whatever their other settings are. A "
        "configuration that lost a seed has no point."
    )
    return {"settings": Picture(figure, caption)}


def _points(group: Group, key: str, scale: float) -> tuple[list[Any], np.ndarray]:
    """Of every configuration the value of the key and the mean score over seeds."""
    by_number: dict[int, list[TrialRow]] = {}
    for trial in group.trials:
        if key in trial.setting:
            by_number.setdefault(trial.number, []).append(trial)
    objective = group.sweep.plan.objective
    scores = [np.mean([one.metrics[objective] for one in rows]) for rows in by_number.values()]
    values = [rows[0].setting[key] for rows in by_number.values()]
    told = [value if is_number(value) else shown(value) for value in values]
    return told, scale * np.array(scores, float)


def _profiles(comparison: Comparison) -> Picture:
    found = comparison.across
    figure = plots.performance_profiles(
        next(iter(found.values())).taus,
        {group: one.above for group, one in found.items()},
        xlabel=f"deviations (over seeds) above {comparison.baseline}'s mean on the same task",
        arms=[*found],
    )
    caption = (
        "Performance profiles over all tasks: the share of runs that are better than what the "
        "axis says, with 95 % bootstrap intervals at every place of it."
    )
    return Picture(figure, caption)


def _stem(task: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in task).split())
