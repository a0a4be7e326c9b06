"""The files of a sweep that has ended: its tables, and a figure for every number that was swept."""

from __future__ import annotations

import numpy as np

from experiments.runs.files import write_text
from experiments.sweep import tables
from experiments.sweep.outcome import Sweep, is_number
from experiments.sweep.space import Log

SPREAD = 50  # from the least to the greatest: on a linear axis most would lie on top of each other


def write_files(sweep: Sweep) -> None:
    """Write the figures, `trials.csv`, `table.md` and `table.csv`, unless they are there.

    The last one is written last: where it is what it would be, so are the others.
    """
    path = sweep.directory / "table.csv"
    text = tables.in_numbers(sweep.plan, sweep.ranked).csv()
    if path.exists() and path.read_bytes() == text.encode():
        return
    _draw(sweep)
    write_text(sweep.directory / "trials.csv", tables.of_trials(sweep.trials).csv())
    write_text(sweep.directory / "table.md", f"{sweep.table.caption}.\n\n{sweep.table.markdown()}")
    write_text(path, text)


def _draw(sweep: Sweep) -> None:
    """The objective against each number that was swept, of those who were trained to the end."""
    from spectral_jax import plots  # imports matplotlib

    plan = sweep.plan
    last = max(trial.epochs for trial in sweep.trials)
    ended = [
        rows for rows in sweep.configurations.values() if not plan.halving or rows[0].epochs == last
    ]
    for key in plan.keys:
        known = [rows for rows in ended if is_number(rows[0].setting.get(key))]
        values = np.array([rows[0].setting[key] for rows in known], float)
        if len(set(values)) < 2:
            continue
        scores = [[row.metrics[plan.objective] for row in rows] for rows in known]
        log = isinstance(plan.space.get(key), Log) or _spread_by_factor(values)
        figure = plots.score_by_setting(
            values, np.array(scores), xlabel=key, ylabel=plan.objective, log=log
        )
        plots.save(figure, sweep.directory / "figures" / key)


def _spread_by_factor(values: np.ndarray) -> bool:
    """Whether numbers are told apart on a logarithmic axis: those of `Log`, or 0.01, 0.1, 1."""
    positive = values[values > 0]
    return bool((values >= 0).all() and positive.max() >= SPREAD * positive.min())
