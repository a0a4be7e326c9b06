"""What was measured, handed to the viewers that people have, after the fact.

    export("runs/toy/20261130T132343Z-0123456789ab", to="tensorboard")
    export("runs/toy/sweeps/0123456789ab", to="wandb", out="elsewhere")

The JSONL of a run stays the truth: nothing here is ever read back, and an export replaces what an
earlier one of the same directory wrote.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.config import ExperimentConfig, load_yaml, to_mapping
from experiments.errors import MISSING, UserError
from experiments.names import offered
from experiments.report.results import of_run
from experiments.runs import Run
from experiments.sweep.space import configure
from experiments.sweep.viewers import VIEWERS, Curve
from spectral_jax._progress import progress

History = Mapping[str, tuple[np.ndarray, np.ndarray]]  # steps [t], values [t, trials]


class Exported(NamedTuple):
    """Where the curves went, how many there were, and the command that shows them."""

    folder: Path
    curves: int
    look: str


def export(directory: str | Path, *, to: str, out: str | Path | None = None) -> Exported:
    """Write every trial of a run, or of a sweep's finished blocks, as ``to`` reads it.

    ``to``: tensorboard, wandb or trackio. ``out``: a folder, by default ``directory/to``. What is
    not finite has no point in a curve.

    Raises ``UserError``: 2 for another viewer or one that is not installed, 4 where nothing is.
    """
    if to not in VIEWERS:
        hint = offered(to, VIEWERS)
        raise UserError(f"no viewer {to!r}{hint}")
    viewer = VIEWERS[to]
    viewer.require()
    directory = Path(directory)
    trials = _trials(directory)
    folder = (Path(out) if out else directory / to).absolute()
    with progress(len(trials), f"export to {to}") as advance, redirect_stdout(sys.stderr):
        curves = (_curve(directory.resolve().name, trial) for trial in trials)
        viewer.write(_counted(curves, advance), folder)
    look = viewer.look.format(folder=shlex.quote(str(folder)))
    return Exported(folder, len(trials), look)


class _Part(NamedTuple):
    """A trial's column of what one run or block has recorded, and its numbers at the end."""

    history: History
    column: int
    end: int  # the last step
    final: Mapping[str, float]


class _Trial(NamedTuple):
    """A trial and the rungs of which it was a part."""

    name: str
    config: ExperimentConfig
    setting: Mapping[str, Any]
    seed: int
    parts: list[_Part]


def _trials(directory: Path) -> list[_Trial]:
    if (directory / "blocks").is_dir():
        return _trials_of_sweep(directory)
    if (directory / "metrics.jsonl").exists():
        return _trials_of_run(directory)
    inside = sorted(path.parent for path in directory.glob("**/metrics.jsonl"))[:3]
    hint = f"; there is {', '.join(map(str, inside))}" if inside else ""
    raise UserError(
        f"{directory} is no run that recorded anything (no metrics.jsonl) and no sweep{hint}",
        MISSING,
    )


def _trials_of_run(directory: Path) -> list[_Trial]:
    run, config = Run(directory), load_yaml(directory / "config.yaml")
    history, first = run.history(), config.train.seed
    end = max((int(steps[-1]) for steps, _ in history.values()), default=0)
    rows = of_run(run, "", "", first_seed=first).rows if run.complete else ()
    final = {row.seed: row.metrics for row in rows}
    return [
        _Trial(f"seed-{seed}", config, {}, seed, [_Part(history, place, end, final.get(seed, {}))])
        for place, seed in enumerate(range(first, first + config.train.seeds))
    ]


def _trials_of_sweep(directory: Path) -> list[_Trial]:
    from experiments.sweep.block import read_block, result_of  # imports jax

    found: dict[tuple[int, int], _Trial] = {}
    for path in directory.glob("blocks/*/result.json"):
        block_id = path.parent.name
        block, result = read_block(directory, block_id), result_of(directory, block_id)
        assert result is not None, "a committed result is never removed"
        history = Run(path.parent / "attempts" / result.attempt).history()
        for place, (number, seed, setting) in enumerate(block.trials):
            final = {key: values[place] for key, values in result.metrics.items()}
            final["diverged"] = float(result.diverged[place])
            new = _Trial(f"{number:04d}/seed-{seed}", block.config, setting, seed, [])
            trial = found.setdefault((number, seed), new)
            trial.parts.append(_Part(history, place, result.steps, final))
    if not found:
        raise UserError(f"{directory} has no finished block: there are no curves yet", MISSING)
    return [found[key] for key in sorted(found)]


def _curve(group: str, trial: _Trial) -> Curve:
    """All rungs of a trial in one; where two speak of a step, the later one is heard."""
    points: dict[int, dict[str, float]] = {}
    for part in sorted(trial.parts, key=lambda part: part.end):
        for metric, (steps, values) in part.history.items():
            column = values[:, part.column if values.shape[1] > 1 else 0]
            for step, value in zip(steps.tolist(), column.tolist(), strict=True):
                points.setdefault(step, {})[metric] = value
        points[part.end] = {**part.final, **points.get(part.end, {})}
    finite = {
        step: {name: value for name, value in points[step].items() if math.isfinite(value)}
        for step in sorted(points)
    }
    config = to_mapping(configure(trial.config, trial.setting))
    return Curve(
        project=trial.config.name,
        group=group,
        name=trial.name,
        config={**config, "seed": trial.seed},
        setting={**trial.setting, "seed": trial.seed},
        points=finite,
    )


def _counted(curves: Iterable[Curve], advance: Any) -> Iterator[Curve]:
    for curve in curves:
        yield curve
        advance()
