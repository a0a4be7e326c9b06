"""TensorBoard, Weights & Biases and Trackio: how each is told of a trial that has been trained."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import UserError


class Curve(NamedTuple):
    """One trial.

    project: the name of the experiment.
    group: the name of the run's, or sweep's, directory.
    name: the trial's, within its group.
    config: all that was configured, nested.
    setting: what tells the trial from others of its group, by dotted key.
    points: the metrics, by step, ascending; all finite.
    """

    project: str
    group: str
    name: str
    config: Mapping[str, Any]
    setting: Mapping[str, Any]
    points: Mapping[int, Mapping[str, float]]

    @property
    def id(self) -> str:
        """The same whenever and wherever the trial is exported."""
        text = "/".join((self.project, self.group, self.name))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Viewer:
    """``write`` puts curves into a folder, where they replace themselves; ``look`` shows it."""

    package: str
    install: str
    look: str
    write: Callable[[Iterable[Curve], Path], None]

    def require(self) -> None:
        """``UserError`` (2) that says what to install, if it is not."""
        if importlib.util.find_spec(self.package) is None:
            raise UserError(f"{self.package} is not installed: pip install '{self.install}'")


def to_tensorboard(curves: Iterable[Curve], folder: Path) -> None:
    """An event file per trial, with its setting for the page of hyper-parameters.

    TensorBoard keeps 32 bits of a number.
    """
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    for curve in curves:
        place = folder / curve.group / curve.name
        for earlier in place.glob("events.out.tfevents.*"):
            earlier.unlink()
        metrics = {name for point in curve.points.values() for name in point}
        setting = {key: _plain(value) for key, value in curve.setting.items()}
        with SummaryWriter(str(place)) as writer:
            for summary in hparams(setting, dict.fromkeys(sorted(metrics))):
                writer.file_writer.add_summary(summary)
            for step, point in curve.points.items():
                for name, value in point.items():
                    writer.add_scalar(name, value, step)


def to_wandb(curves: Iterable[Curve], folder: Path) -> None:
    """An offline run per trial, under an id that stays the same: ``wandb sync`` sends it."""
    import wandb

    # Nothing of this process and its machine: the trials may have been trained on another one.
    settings = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for curve in curves:
        for earlier in folder.glob(f"*wandb/offline-run-*-{curve.id}"):
            shutil.rmtree(earlier)
        run = wandb.init(
            project=curve.project.replace("/", "-"),
            dir=str(folder),
            id=curve.id,
            name=f"{curve.group}/{curve.name}",
            group=curve.group,
            config=dict(curve.config),
            mode="offline",
            reinit="create_new",
            settings=settings,
        )
        for step, point in curve.points.items():
            run.log(dict(point), step=step)
        run.finish()


def to_trackio(curves: Iterable[Curve], folder: Path) -> None:
    """A run per trial in Trackio's data base; one of the same name is deleted first."""
    os.environ["TRACKIO_DIR"] = str(folder)  # read when trackio is imported
    import trackio

    if Path(trackio.utils.TRACKIO_DIR) != folder:
        raise UserError(
            f"trackio was loaded before and writes to {trackio.utils.TRACKIO_DIR}: export in a "
            "process of its own, with python -m experiments export"
        )
    earlier: dict[str, dict[str, Any]] = {}
    for curve in curves:
        project, name = curve.project.replace("/", "-"), f"{curve.group}/{curve.name}"
        if project not in earlier:
            earlier[project] = _runs_of_trackio(trackio, project)
        if name in earlier[project]:
            earlier[project][name].delete()
        run = trackio.init(
            project=project,
            name=name,
            group=curve.group,
            config=dict(curve.config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        for step, point in curve.points.items():
            run.log(dict(point), step=step)
        trackio.finish()


def _runs_of_trackio(trackio: Any, project: str) -> dict[str, Any]:
    try:
        return {run.name: run for run in trackio.Api().runs(project)}
    except ValueError:  # that is how it says that there is no such project
        return {}


def _plain(value: Any) -> Any:
    """A number or a text."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


VIEWERS = {
    "tensorboard": Viewer(
        "tensorboardX",
        "spectral-jax[tensorboard]",
        "tensorboard --logdir {folder}",
        to_tensorboard,
    ),
    "wandb": Viewer("wandb", "wandb", "wandb sync {folder}/wandb/offline-run-*", to_wandb),
    "trackio": Viewer("trackio", "trackio", "TRACKIO_DIR={folder} trackio show", to_trackio),
}
