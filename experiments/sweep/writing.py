"""The files of a sweep: its tables, and a figure for every number that was swept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.runs.files import make_directory, write_text
from experiments.sweep import tables
from experiments.sweep.outcome import Sweep, is_number
from experiments.sweep.plan import Plan
from experiments.sweep.space import Log


def write_tables(sweep: Sweep) -> None:
    """Write `trials.csv`, `table.md` and `table.csv`, unless they are there.

    The last one is written last: where it is what it would be, so are the others.
    """
    path = sweep.directory / "table.csv"
    text = tables.in_numbers(sweep.plan, sweep.ranked).csv()
    if path.exists() and path.read_bytes() == text.encode():
        return
    write_text(sweep.directory / "trials.csv", tables.of_trials(sweep.trials).csv())
    table = sweep.table
    write_text(sweep.directory / "table.md", f"{table.caption}.\n\n{table.markdown()}")
    write_text(path, text)


def draw(sweep: Sweep) -> None:
    """Draw the objective against each number that was swept, unless that is there.

    Trials that were left behind at a rung are left out: they were trained for less long.
    """
    plan = sweep.plan
    longest = max((trial.epochs for trial in sweep.trials), default=0)
    ended = [rows for rows in sweep.ranked if not plan.halving or rows[0].epochs == longest]
    for key in plan.keys:
        path = sweep.directory / "figures" / f"{key}.svg"
        known = [rows for rows in ended if is_number(rows[0].setting.get(key))]
        values = np.array([rows[0].setting[key] for rows in known], float)
        if len(set(values)) > 1 and not path.exists():
            scores = [[row.metrics[plan.objective] for row in rows] for rows in known]
            _draw(path, key, values, np.array(scores), plan)


def _draw(path: Path, key: str, values: np.ndarray, scores: np.ndarray, plan: Plan) -> None:
    from spectral_jax import plots  # imports matplotlib
    from spectral_jax.plots import style

    log = isinstance(plan.space.get(key), Log) or style.needs_log_scale(values)
    figure = plots.score_by_setting(values, scores, xlabel=key, ylabel=plan.objective, log=log)
    make_directory(path.parent)
    write_text(path, plots.to_svg(figure))
