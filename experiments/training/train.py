"""Train one configuration, all seeds in one compiled program, into a directory that can resume."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import data as datasets
from experiments.config import ExperimentConfig
from experiments.data.base import Dataset
from experiments.data.splits import Splits, stratified_order
from experiments.errors import Diverged, UserError
from experiments.names import did_you_mean
from experiments.runs import Run, open_run
from experiments.runs.interruption import interruption
from experiments.runs.lapack import PAGE, may_deadlock
from experiments.runs.memory import make_room
from experiments.runs.watchdog import watchdog
from experiments.training import blocks, stopping, when
from experiments.training.augmentation import AUGMENTATIONS
from experiments.training.blocks import Trial
from experiments.training.measures import measures_of
from experiments.training.optimisers import (
    hyper_of,
    optimizer_of,
    refuse_what_cannot_balance,
    structure_of,
)
from experiments.training.program import Axis
from experiments.training.task import OBJECTIVES, Task, classification
from experiments.training.trainer import Trainer
from models import Network, moving, network, options
from spectral_jax._progress import progress
from spectral_jax.optim import Stop

# Between checkpoints: training that long again costs less than an Orbax checkpoint every epoch.
SAVE_SECONDS = 2.0
# Up to this many test examples, intervals count that another test set would differ.
SMALL_TEST_SET = 5000
HANG = f"wait for ever for decompositions of batches: see {PAGE}"


def train(config: ExperimentConfig, *, root: str | Path, argv: Sequence[str]) -> Run:
    """Train ``config`` to its end, or go on with it, or return it if it is done.

    Raises ``UserError``: 2 for a configuration that cannot be built (nothing is written), 4 for
    missing data, 1 when every seed has diverged or the disk is full (state kept), 75 or 130 when
    stopped from outside (state saved).
    """
    make_room()
    training = _Training(config)
    with (
        open_run(
            config, entry=train, data_sha256=training.task.sha256, root=root, argv=argv
        ) as run,
        interruption() as stop,
        watchdog(),
    ):
        if run.complete:
            return run
        training.begin(run)
        with progress(training.total, config.name, done=training.step) as advance:
            while not training.ended:
                metrics, done = training.advance()
                _refuse_total_divergence(config, metrics, training.step)
                if training.due:
                    training.record(run, metrics)
                if training.unsaved or stop:
                    training.save(run)
                if stop:
                    raise stop.error(training.step)
                advance(done, note=_note(metrics))
        run.finish(training.finish(run))
    if stop:  # asked while the last numbers were written: nobody is to start the next run
        raise stop.error(training.step)
    return run


class Sizes(NamedTuple):
    """What training a configuration takes: bytes of the state of all trials, and of the data."""

    state: int
    data: int


def sizes(config: ExperimentConfig) -> Sizes:
    """Sizes without training; `UserError` as in `train`, and nothing is written."""
    training = _Training(config)
    state = jax.eval_shape(lambda: training.trainer.start(training.trials))
    return Sizes(_bytes(state._replace(key=())), _bytes(training.task.data))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class _Training:
    """One configuration: what `train` steers. Its block of trials are the seeds of one arm."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config
        dataset, splits = loaded(config)
        net = _network(config, dataset)
        _refuse_what_cannot_train(config, net, splits[0])
        augment = AUGMENTATIONS.get(config.data.augment)
        self.task = classification(
            config.name, dataset, _joined(splits), net, sets=len(splits), augment=augment,
            batch_size=config.data.batch_size, objective=OBJECTIVES[config.train.objective],
        )  # fmt: skip
        _refuse_what_labels_do_not_give(config, self.task, dataset.classes)
        labels = splits[0].train_y
        self.most_common = np.bincount(labels).max() / len(labels)
        optimizer = optimizer_of(structure_of(config), net, self.task.steps_per_epoch)
        self.trainer = Trainer(self.task, optimizer)
        self.trials = [
            Trial(config.train.seed + place, {**hyper_of(config), "set": place % len(splits)})
            for place in range(config.train.seeds)
        ]
        self.measure = measures_of(config, net)
        self.total = config.train.epochs * self.task.steps_per_epoch
        self.evaluated = self._steps("evaluate_every")
        self.measured = self._steps("measure_every")
        self.stop = _stop_of(config)
        if self.stop is not None:  # any measurement may be the last thing recorded
            self.evaluated = tuple(sorted({*self.evaluated, *self.measured}))
        self.step, self.stopped = 0, False
        self.started = self.saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether something is recorded at this step."""
        return self.step in self.evaluated or self.step in self.measured

    @property
    def ended(self) -> bool:
        """Whether all epochs are over, or a measured number has ended training before."""
        return self.stopped or self.step >= self.total

    @property
    def unsaved(self) -> bool:
        """Whether an epoch has ended and the last checkpoint is some time ago."""
        ended = self.step % self.task.steps_per_epoch == 0
        return ended and time.monotonic() - self.saved >= SAVE_SECONDS

    def begin(self, run: Run) -> None:
        """The state that is saved, or the first one, recorded.

        The axis is chosen once per run: the two sum in different orders, so a resumption keeps it.
        """
        axis = run.provenance.get("seed_axis") or self._choice(run)
        self.trainer = replace(self.trainer, axis=axis)
        run.annotate(seed_axis=axis, width=blocks.width(len(self.trials), axis))
        self.state = self.trainer.start(self.trials)
        found = run.restore_checkpoint(self.state)
        if found is None:
            self.record(run, {})
        else:
            self.step, self.state = found
            self.stopped = self._reached(run)

    def advance(self) -> tuple[dict[str, np.ndarray], int]:
        """Train to the next chunk's end, or to the next record."""
        stops = {self.total, *self.evaluated, *self.measured}
        most = min(stop for stop in stops if stop > self.step) - self.step
        self.state, metrics, done = self.trainer.advance(self.state, most)
        self.step += done
        return metrics, done

    def save(self, run: Run) -> None:
        """Keep the state as it is."""
        run.save_checkpoint(self.step, self.state)
        self.saved = time.monotonic()

    def record(self, run: Run, chunk_metrics: dict[str, np.ndarray]) -> None:
        """Evaluate and measure the state as it is, and append it to the run's history."""
        metrics: dict[str, Any] = dict(chunk_metrics)
        if self.step in self.evaluated:
            for split in ("validation", "test"):
                if split in self.task.data:
                    metrics |= self._evaluate(split)
        if self.step in self.measured:
            scalars, arrays = self.measure(self.state, self.task.data)
            metrics |= scalars
            if arrays:
                run.save_array(f"vectors-{self.step:08d}", **arrays)
        epoch = self.step / self.task.steps_per_epoch
        run.record(self.step, epoch, jax.tree.map(np.asarray, metrics))
        if self.step in self.measured:
            self.stopped = self._reached(run)

    def finish(self, run: Run) -> dict[str, Any]:
        """Keep the weights, and say in numbers how it ended."""
        flat, _ = jax.tree_util.tree_flatten_with_path(self.state.params)
        named = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat
        }
        run.save_array("parameters", **named)
        final = {name: values[-1] for name, (_, values) in run.history().items()}
        final |= {f"final_{name}": value for name, value in self._evaluate("train").items()}
        if self.config.model.dropout:
            left_on = self._evaluate("test", dropout=True)["test/accuracy"]
            final["final_test_dropout_on/accuracy"] = left_on
        summary = self._summary(final)
        test = self.task.data.get("test")
        if test is not None and test.size <= SMALL_TEST_SET:
            run.save_array("test_items", **self._items(summary["diverged_seeds"]))
        for line in _complaints(self.config, summary):
            run.log(f"warning: {line}")
        return summary

    def _summary(self, final: dict[str, Any]) -> dict[str, Any]:
        finite = np.isfinite(final["final_train/loss"])
        stuck = np.asarray(final["final_train/accuracy"]) <= self.most_common + 0.01
        first = self.config.train.seed
        return {
            **{name: np.where(finite, value, np.nan) for name, value in final.items()},
            "diverged_seeds": [int(first + i) for i in np.flatnonzero(~finite)],
            "collapsed_seeds": [int(first + i) for i in np.flatnonzero(finite & stuck)],
            "not_measured": [n for n, v in final.items() if np.isnan(v)[finite].any()],
            "epochs": self.config.train.epochs,
            "steps": self.step,
            "seconds": round(time.monotonic() - self.started, 2),
            "seed_axis": self.trainer.axis,
        }

    def _reached(self, run: Run) -> bool:
        # Of training batches nothing is known before the first.
        if self.stop is None or (self.step == 0 and self.stop.name.startswith("train/")):
            return False
        return stopping.reached(self.stop, run.history())

    def _steps(self, key: str) -> tuple[int, ...]:
        every = when.parse(f"train.{key}", getattr(self.config.train, key))
        return every.steps(self.total, self.task.steps_per_epoch)

    def _items(self, diverged: Sequence[int]) -> dict[str, np.ndarray]:
        """Which test examples each seed gets right; a seed that diverged has no numbers."""
        dropout = "dropout_at_eval" in self.config.paper_compat
        items = self.trainer.items(self.state, dropout=dropout)
        lost = np.isin(np.arange(len(self.state.key)) + self.config.train.seed, diverged)
        return {
            f"test/{metric}": np.where(lost[:, None], np.nan, values)
            for metric, values in items.items()
            if metric != "loss"
        }

    def _evaluate(self, split: str, *, dropout: bool = False) -> dict[str, Any]:
        dropout = dropout or "dropout_at_eval" in self.config.paper_compat
        values = self.trainer.evaluate(self.state, split, dropout=dropout)
        return {f"{split}/{metric}": value for metric, value in values.items()}

    def _choice(self, run: Run) -> Axis:
        wanted = self.config.train.seed_axis
        if wanted in ("auto", "vmap") and self._may_deadlock("vmap"):
            run.log(f"{self.config.name}: seeds are trained in turn: side by side could {HANG}")
            wanted = "map"
        chosen = self._faster_axis() if wanted == "auto" else wanted
        if chosen == "map" and self._may_deadlock("map"):
            run.log(f"warning: {self.config.name} could {HANG}")
        return chosen

    def _may_deadlock(self, axis: Axis) -> bool:
        trainer = replace(self.trainer, axis=axis)
        return may_deadlock(lambda: trainer.lower(trainer.start(self.trials)))

    def _faster_axis(self) -> Axis:
        """Time a few steps of both; arms of the same shape share the answer."""
        if len(self.trials) == 1:
            return "map"
        config = self.config
        key = (config.data, config.model, config.optimizer.name, config.train.seeds)
        if key not in _FASTER:
            _FASTER[key] = self.trainer.faster_axis(self.trials)
        return _FASTER[key]


_FASTER: dict[Any, Axis] = {}


def _stop_of(config: ExperimentConfig) -> Stop | None:
    """The number that ends training early; `UserError` (2) if it is one of the test set."""
    if config.train.stop is None:
        return None
    stop = stopping.parse(config.train.stop)
    of_test = stop.name.startswith("test/")
    if of_test or ("/unseen/" in stop.name and not config.data.validation):
        raise UserError(
            f"train.stop = {config.train.stop!r} ends training by the test set, which then says "
            "nothing about other data: set data.validation, and stop by that"
        )
    return stop


def loaded(config: ExperimentConfig) -> tuple[Dataset, list[Splits]]:
    """The data set and its splits: those that all seeds share, or one for each seed."""
    data, train = config.data, config.train
    dataset = datasets.load(data.name, preprocessing=data.preprocessing, split=data.split)
    drawn = data.train_limit is not None or data.validation > 0 or data.label_noise > 0
    splits = [
        datasets.prepare(
            dataset,
            train_limit=data.train_limit,
            validation=data.validation,
            label_noise=data.label_noise,
            seed=train.seed + place,
        )
        for place in range(train.seeds if drawn and data.subsets == "own" else 1)
    ]
    return dataset, [_limited(split, data.test_limit) for split in splits]


def _joined(splits: list[Splits]) -> Splits:
    """Training and validation examples of all, one after the other; they share the test set."""
    if len(splits) == 1:
        return splits[0]
    names = ("train_x", "train_y", "validation_x", "validation_y")
    return splits[0]._replace(
        **{name: np.concatenate([getattr(split, name) for split in splits]) for name in names}
    )


def _limited(splits: Splits, test_limit: int | None) -> Splits:
    """Of the test set the same stratified part for every run, whatever its seeds."""
    if test_limit is None or test_limit >= len(splits.test_y):
        return splits
    kept = np.sort(stratified_order(splits.test_y, seed=0)[:test_limit])
    return splits._replace(test_x=splits.test_x[kept], test_y=splits.test_y[kept])


def _network(config: ExperimentConfig, dataset) -> Network:
    model = config.model
    wanted = {name: value for name, value in vars(model).items() if name != "name"}
    try:
        chosen = {name: value for name, value in wanted.items() if name in options(model.name)}
        shape, decay = dataset.train_x.shape[1:], config.train.features_decay
        return _described(model.name, shape, dataset.classes, tuple(chosen.items()), decay)
    except ValueError as error:
        raise UserError(f"model: {error}") from None


@lru_cache
def _described(
    name: str, shape: tuple[int, ...], classes: int, chosen: tuple, decay: float
) -> Network:
    # The same functions for every arm, so that compiled programs are shared.
    described = network(name, input_shape=shape, classes=classes, **dict(chosen))
    return moving(described, decay=decay) if decay else described


def _refuse_what_cannot_train(config: ExperimentConfig, net: Network, splits) -> None:
    """`UserError` (2) before anything is written."""
    if splits.train_y.ndim != 1:
        raise UserError(
            f"data.name = {config.data.name} has no class per example, which this trainer needs: "
            "choose a data set of classes (python -m experiments data)"
        )
    examples, batch_size = len(splits.train_y), config.data.batch_size
    if examples < batch_size:
        raise UserError(
            f"data.batch_size = {batch_size} but there are {examples} training examples: "
            "lower it, or raise data.train_limit"
        )
    if config.data.augment != "none" and splits.train_x.ndim < 3:
        raise UserError(
            f"data.augment = {config.data.augment} moves pixels, but {config.data.name} is no set "
            "of images: leave it at none"
        )
    objective = config.train.objective
    if objective not in OBJECTIVES:
        hint = did_you_mean(objective, OBJECTIVES) or f"; there are: {', '.join(OBJECTIVES)}"
        raise UserError(f"train.objective = {objective!r} is no objective{hint}")
    _refuse_what_memory_cannot_hold(config, net)
    refuse_what_cannot_balance(config, net)


def _refuse_what_labels_do_not_give(config: ExperimentConfig, task: Task, classes: int) -> None:
    """The objective of shapes alone: nothing is computed."""
    examples = classes + 1  # not as many as classes, or a wrong shape might fit
    logits = jax.ShapeDtypeStruct((examples, classes), np.float32)
    labels = jax.ShapeDtypeStruct((examples,), np.int32)
    batch = {"x": logits, "y": labels, "hyper": hyper_of(config)}
    try:
        jax.eval_shape(task.measured, logits, batch)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"train.objective = {config.train.objective!r} cannot be had of outputs {logits.shape} "
            f"and class labels {labels.shape}: {error}"
        ) from error


def _refuse_what_memory_cannot_hold(config: ExperimentConfig, net: Network) -> None:
    """Parameters, gradients and momentum of all seeds, against this machine's memory."""
    params, _ = jax.eval_shape(net.init, jax.random.key(0))
    needed = 3 * config.train.seeds * sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise UserError(
            f"model.hidden, model.width or train.seeds: {config.train.seeds} networks of "
            f"{config.model.name} need {needed / 2**30:,.0f} GiB to train, this machine has "
            f"{available / 2**30:,.0f}"
        )


def _refuse_total_divergence(config: ExperimentConfig, metrics, step: int) -> None:
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


def _note(metrics: dict[str, np.ndarray]) -> str:
    return f"loss {np.nanmean(metrics['train/loss']):.3f}"
