"""A comparison on one page, as the house writes them: what came out, figures, what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.page import Picture, Section, as_html, save_figures
from experiments.sweep.comparison import Comparison, scale_of
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
    parts = [
        *beginning(comparison, comparison.learned()),
        *map(as_html, found),
        "<h2>Provenance</h2>",
        page.definitions(_facts(comparison)),
    ]
    title = f"{comparison.by} against {comparison.baseline}"
    return page.page(title, parts)


def beginning(comparison: Comparison, learned: Sequence[str]) -> list[str]:
    """What was learned, the table, and what limits it, as HTML."""
    parts = [_list(learned, "lead"), comparison.table.html(), _list(comparison.caveats())]
    return [part for part in parts if part]


def _list(sentences: Sequence[str], style: str = "") -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul class='{style}'>{items}</ul>" if items else ""


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
    objective = next(iter(groups.values())).sweep.plan.objective
    scale = scale_of(objective)
    panels: dict[str, dict[str, tuple[list[Any], np.ndarray]]] = {
        key: {name: _points(group, key, scale) for name, group in groups.items()}
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
    figure = plots.setting_effects(
        varied, ylabel=f"{objective} (%)" if scale == 100 else objective, arms=[*groups]
    )
    caption = (
        f"What each setting does to {objective}: a point per configuration, its mean over tuning "
        "seeds, and the median of those at a value, whatever their other settings are. A "
        "configuration that lost a seed, or was left behind by halving, has no point."
    )
    return {"settings": Picture(figure, caption)}


def _points(group: Group, key: str, scale: float) -> tuple[list[Any], np.ndarray]:
    """Of every configuration the value of the key and the mean score over seeds.

    What was left behind at a rung is left out: it was trained for less long.
    """
    plan = group.sweep.plan
    by_number: dict[int, list[TrialRow]] = {}
    for trial in group.trials:
        if key in trial.setting and (not plan.halve or trial.epochs == group.budget.epochs):
            by_number.setdefault(trial.number, []).append(trial)
    scores = [np.mean([one.metrics[plan.objective] for one in rows]) for rows in by_number.values()]
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
