"""Train one configuration, all seeds in one compiled program, into a directory that can resume."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.config import ExperimentConfig
from experiments.errors import Diverged
from experiments.runs import Run, open_run
from experiments.runs.interruption import interruption
from experiments.runs.memory import make_room
from experiments.runs.processes import by_first, gathered
from experiments.runs.watchdog import watchdog
from experiments.training.loading import task_of
from experiments.training.prototypes import sources
from experiments.training.session import Session, Sizes
from experiments.training.trainer import FEW, Metrics


def train(config: ExperimentConfig, *, root: str | Path, argv: Sequence[str]) -> Run:
    """Train ``config`` to its end, or go on with it, or return it if it is done.

    Raises ``UserError``: 2 for a configuration that cannot be built (nothing is written), 4 for
    missing data, 1 when every seed has diverged or the disk is full (state kept), 75 or 130 when
    stopped from outside (state saved).
    """
    make_room()
    session = Session(config, task_of(config))
    with (
        open_run(
            config,
            entry=train,
            data_sha256=session.task.sha256,
            root=root,
            argv=argv,
            sources=sources(config),
        ) as run,
        interruption() as stop,
        watchdog(),
    ):
        complete, axis = by_first(lambda: (run.complete, run.provenance.get("seed_axis")))
        if complete:
            return run
        axis = axis or session.choose_axis(run.log)
        session.begin(run, axis=axis)
        run.annotate(seed_axis=axis, width=len(session.state.key))
        session.train(
            run, stop, on_chunk=lambda seen: _refuse_total_divergence(config, seen, session.step)
        )
        run.finish(_finish(session, run))
    if stop:  # asked while the last numbers were written: nobody is to start the next run
        raise stop.error(session.step)
    return run


def sizes(config: ExperimentConfig) -> Sizes:
    """Sizes without training; `UserError` as in `train`, and nothing is written."""
    return Session(config, task_of(config)).sizes()


def _finish(session: Session, run: Run) -> dict[str, Any]:
    """Keep the weights, and say in numbers how it ended."""
    flat, _ = jax.tree_util.tree_flatten_with_path(session.live.params)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
    run.save_array("parameters", **gathered(named))
    summary = _summary(session, run)
    for line in _complaints(session.config, summary):
        run.log(f"warning: {line}")
    return summary


def _summary(session: Session, run: Run) -> dict[str, Any]:
    numbers, diverged, collapsed = session.final(run)
    test = session.task.data.get("test")
    if test is not None and test.size <= FEW:
        # Intervals then count that another test set would differ.
        run.save_array("test_items", **session.items(diverged))
    first = session.config.train.seed
    return {
        **numbers,
        "diverged_seeds": (first + np.flatnonzero(diverged)).tolist(),
        "collapsed_seeds": (first + np.flatnonzero(collapsed)).tolist(),
        "not_measured": [n for n, values in numbers.items() if np.isnan(values)[~diverged].any()],
        "epochs": session.config.train.epochs,
        "steps": session.step,
        "seconds": round(time.monotonic() - session.started, 2),
        "seed_axis": session.trainer.axis,
    }


def _refuse_total_divergence(config: ExperimentConfig, metrics: Metrics, step: int) -> None:
    if np.isfinite(metrics["train/loss"]).any():
        return
    raise Diverged(
        f"all {config.train.seeds} seeds diverged before step {step} (the loss is not finite); "
        f"the state before it is kept: {_gentler(config)}"
    )


def _complaints(config: ExperimentConfig, summary: dict[str, Any]) -> list[str]:
    fates = {
        "diverged": f"diverged, their numbers are left out: {_gentler(config)}",
        "collapsed": f"are no better than the majority class: {_gentler(config)}, "
        "or raise train.epochs",
    }
    complaints = [
        f"{config.name}: seeds {', '.join(map(str, summary[f'{fate}_seeds']))} {what}"
        for fate, what in fates.items()
        if summary[f"{fate}_seeds"]
    ]
    if summary["not_measured"]:
        names = ", ".join(summary["not_measured"])
        complaints.append(f"{config.name}: no number could be had of {names} (null)")
    return complaints


def _gentler(config: ExperimentConfig) -> str:
    """What to change when training went wrong, most likely cause first."""
    penalty, fixes = config.penalty, []
    if penalty.name != "none" and penalty.strength > 0:
        fixes.append(f"lower penalty.strength = {penalty.strength:g}")
        if penalty.mode == "penalty":
            fixes.append("set penalty.mode=proximal")
    fixes.append(f"lower optimizer.learning_rate = {config.optimizer.learning_rate:g}")
    return ", or ".join(fixes)
