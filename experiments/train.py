"""Train one configuration, all seeds in one compiled program, into a directory that can resume."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data as datasets
from experiments.augmentation import AUGMENTATIONS
from experiments.config import ExperimentConfig
from experiments.data.splits import Splits, stratified_order
from experiments.errors import FAILED, UserError
from experiments.loop import SEED_AXIS_NAME, Data, Program, SeedAxis, TrainState, evaluate
from experiments.measure import Measurement
from experiments.regularise import (
    arms_of,
    optimizer_of,
    shared_optimizer_of,
    strength_of,
    with_strength,
)
from experiments.runs import Run, open_run
from experiments.runs.interruption import interruption
from experiments.runs.lapack import PAGE, may_deadlock
from experiments.runs.memory import make_room
from experiments.runs.watchdog import watchdog
from models import Network, network, options
from spectral_jax._progress import progress

# Steps between two looks at the clock, the signals and the loss.
CHUNK_STEPS = 100
PROBE_STEPS = 8
HANG = f"wait for ever for decompositions of batches: see {PAGE}"


def train(config: ExperimentConfig, *, root: str | Path, argv: Sequence[str]) -> Run:
    """Train ``config`` to its end, or go on with it, or return it if it is done.

    Raises ``UserError``: 2 for a configuration that cannot be built (nothing is written), 4 for
    missing data, 1 when every seed has diverged or the disk is full (state kept), 75 or 130 when
    stopped from outside (state saved).
    """
    make_room()
    dataset, splits = _load(config)
    net = _network(config, dataset)
    _refuse_what_cannot_train(config, net, splits)
    with (
        open_run(config, data_sha256=dataset.sha256, root=root, argv=argv) as run,
        interruption() as stop,
        watchdog(),
    ):
        if run.complete:
            return run
        trainer = _Trainer(config, net, dataset, splits)
        trainer.choose_seed_axis(run)
        started = run.restore_checkpoint(trainer.state)
        if started is None:
            trainer.record(run, {})
        else:
            trainer.state = started[1]
        steps = started[0] if started else 0
        with progress(trainer.total_steps, config.name, done=steps) as advance:
            while steps < trainer.total_steps:
                metrics, done = trainer.chunk(steps)
                steps += done
                _refuse_total_divergence(config, metrics, steps)
                ended = steps % trainer.program.steps_per_epoch == 0
                if ended and trainer.measures_at(steps):
                    trainer.record(run, metrics)
                if ended or stop:
                    run.save_checkpoint(steps, trainer.state)
                if stop:
                    raise stop.error(steps)
                advance(done, note=_note(metrics))
        run.finish(trainer.finish(run))
    return run


class _Trainer:
    """One arm in memory: data on the device, program, state; what `train` steers."""

    def __init__(self, config: ExperimentConfig, net: Network, dataset, splits) -> None:
        self.config, self.net, self.splits = config, net, splits
        shift, scale = jnp.asarray(dataset.shift), jnp.asarray(dataset.scale)
        self.data = {
            name: Data(jnp.asarray(x), jnp.asarray(y), shift, scale)
            for name, x, y in (
                ("train", splits.train_x, splits.train_y),
                ("validation", splits.validation_x, splits.validation_y),
                ("test", splits.test_x, splits.test_y),
            )
            if len(y)
        }
        seeds = range(config.train.seed, config.train.seed + config.train.seeds)
        self.keys = jax.vmap(jax.random.key)(jnp.array(seeds))
        self.measurement = Measurement(config, net)
        self.seed_axis: SeedAxis = "map"
        self.program = self._program(self.seed_axis)
        state = self.program.init(net.init, self.keys)
        opt_state = with_strength(state.opt_state, strength_of(config))
        self.state: TrainState = state._replace(opt_state=opt_state)
        self.started = time.monotonic()

    @property
    def total_steps(self) -> int:
        return self.config.train.epochs * self.program.steps_per_epoch

    def choose_seed_axis(self, run: Run) -> None:
        """Once per run: the two sum in different orders, so a resumption keeps what was chosen."""
        self.seed_axis = run.provenance.get("seed_axis") or self._choice(run)
        run.annotate(seed_axis=self.seed_axis)
        self.program = self._program(self.seed_axis)

    def chunk(self, step: int) -> tuple[dict[str, np.ndarray], int]:
        """Advance to the next chunk's end; an epoch's last chunk ends with it."""
        left = self.program.steps_per_epoch - step % self.program.steps_per_epoch
        steps = min(chunk_steps(self.program.steps_per_epoch), left)
        self.state, metrics = self.program.chunk(
            self.state, self.data["train"], steps, self.seed_axis
        )
        return jax.tree.map(np.asarray, metrics), steps

    def measures_at(self, step: int) -> bool:
        train = self.config.train
        return any(
            self._due(step, epochs) for epochs in (train.evaluate_every, train.spectra_every)
        )

    def record(self, run: Run, chunk_metrics: dict[str, np.ndarray]) -> None:
        """Evaluate and measure the state as it is, and append it to the run's history."""
        step = int(self.state.step[0])
        epoch = step / self.program.steps_per_epoch
        metrics: dict[str, Any] = dict(chunk_metrics)
        if self._due(step, self.config.train.evaluate_every):
            for name in ("validation", "test"):
                if name in self.data:
                    metrics |= self._evaluate(name)
        if self._due(step, self.config.train.spectra_every):
            scalars, arrays = self.measurement(self.state, self.data["train"], self.seed_axis)
            metrics |= {f"spectra/{name}": value for name, value in scalars.items()}
            if arrays:
                run.save_array(f"vectors-{step:08d}", **arrays)
        run.record(step, epoch, jax.tree.map(np.asarray, metrics))

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
        finite = np.isfinite(final["final_train/loss"])
        chance = np.bincount(self.splits.train_y).max() / len(self.splits.train_y)
        stuck = np.asarray(final["final_train/accuracy"]) <= chance + 0.01
        first = self.config.train.seed
        summary = {
            **{name: np.where(finite, value, np.nan) for name, value in final.items()},
            "diverged_seeds": [int(first + i) for i in np.flatnonzero(~finite)],
            "collapsed_seeds": [int(first + i) for i in np.flatnonzero(finite & stuck)],
            "epochs": self.config.train.epochs,
            "steps": self.total_steps,
            "seconds": round(time.monotonic() - self.started, 2),
            "seed_axis": self.seed_axis,
        }
        for line in _complaints(self.config, summary):
            run.log(f"warning: {line}")
        return summary

    def _due(self, step: int, epochs: int) -> bool:
        return step % (epochs * self.program.steps_per_epoch) == 0 or step == self.total_steps

    def _evaluate(self, name: str, *, dropout: bool = False) -> dict[str, Any]:
        values = evaluate(
            self.state._replace(opt_state=None),
            self.data[name],
            apply=self.net.apply,
            seed_axis=self.seed_axis,
            dropout=dropout or "dropout_at_eval" in self.config.paper_compat,
        )
        return {f"{name}/{metric}": value for metric, value in values.items()}

    def _program(self, seed_axis: SeedAxis) -> Program:
        train_size, batch_size = len(self.splits.train_y), self.config.data.batch_size
        return Program(
            apply=self.net.apply,
            optimizer=shared_optimizer_of(
                arms_of(self.config),
                self.net,
                steps_per_epoch=train_size // batch_size,
                axis_name=SEED_AXIS_NAME if seed_axis == "vmap" else None,
            ),
            batch_size=batch_size,
            train_size=train_size,
            augment=AUGMENTATIONS.get(self.config.data.augment),
        )

    def _choice(self, run: Run) -> SeedAxis:
        wanted = self.config.train.seed_axis
        if wanted in ("auto", "vmap") and self._may_deadlock("vmap"):
            run.log(f"{self.config.name}: seeds are trained in turn: side by side could {HANG}")
            wanted = "map"
        chosen = self._faster_axis() if wanted == "auto" else wanted
        if chosen == "map" and self._may_deadlock("map"):
            run.log(f"warning: {self.config.name} could {HANG}")
        return chosen

    def _may_deadlock(self, seed_axis: SeedAxis) -> bool:
        program = self._program(seed_axis)
        steps = chunk_steps(program.steps_per_epoch)
        return may_deadlock(program.lower, self.state, self.data["train"], steps, seed_axis)

    def _faster_axis(self) -> SeedAxis:
        """Time a few steps of both; arms of the same shape share the answer."""
        if self.config.train.seeds == 1:
            return "map"
        config = self.config
        key = (config.data, config.model, config.optimizer.name, config.train.seeds)
        if key not in _FASTER:
            _FASTER[key] = faster_seed_axis(self._program, self.state, self.data["train"])
        return _FASTER[key]


_FASTER: dict[Any, SeedAxis] = {}


def faster_seed_axis(program_of, state: TrainState, data: Data, *, repeats: int = 4) -> SeedAxis:
    """Which of ``vmap`` and ``map`` trains these seeds faster here: each one's best short chunk.

    The chunks come from an epoch of their length: to put all examples in order takes as long either
    way, and for a small network longer than the steps.
    """
    programs: dict[SeedAxis, Program] = {}
    for seed_axis in ("map", "vmap"):
        whole = program_of(seed_axis)
        steps = min(PROBE_STEPS, whole.steps_per_epoch)
        programs[seed_axis] = replace(whole, train_size=steps * whole.batch_size)
    times: dict[SeedAxis, list[float]] = {seed_axis: [] for seed_axis in programs}
    for _ in range(repeats + 1):
        for seed_axis, program in programs.items():
            copy = jax.tree.map(jnp.copy, state)
            jax.block_until_ready(copy)
            start = time.perf_counter()
            jax.block_until_ready(program.chunk(copy, data, program.steps_per_epoch, seed_axis))
            times[seed_axis].append(time.perf_counter() - start)
    # The first round compiles.
    return min(times, key=lambda seed_axis: min(times[seed_axis][1:]))


def chunk_steps(steps_per_epoch: int) -> int:
    """A length near ``CHUNK_STEPS`` that divides an epoch, if one does: one program to compile."""
    lengths = range(min(CHUNK_STEPS, steps_per_epoch), CHUNK_STEPS // 4, -1)
    whole = (length for length in lengths if steps_per_epoch % length == 0)
    return next(whole, min(CHUNK_STEPS, steps_per_epoch))


def _load(config: ExperimentConfig):
    data = config.data
    dataset = datasets.load(data.name, preprocessing=data.preprocessing, split=data.split)
    splits = datasets.prepare(
        dataset,
        train_limit=data.train_limit,
        validation=data.validation,
        label_noise=data.label_noise,
        seed=config.train.seed,
    )
    return dataset, _limited(splits, data.test_limit)


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
        return _described(
            model.name,
            dataset.train_x.shape[1:],
            dataset.classes,
            tuple(chosen.items()),
            "relu_logits" in config.paper_compat,
        )
    except ValueError as error:
        raise UserError(f"model: {error}") from None


@lru_cache
def _described(
    name: str, shape: tuple[int, ...], classes: int, chosen: tuple, relu_logits: bool
) -> Network:
    # The same functions for every arm, so that compiled programs are shared.
    net = network(name, input_shape=shape, classes=classes, **dict(chosen))
    if not relu_logits:
        return net

    def apply(*given, **named):
        logits, state = net.apply(*given, **named)
        return jax.nn.relu(logits), state

    return net._replace(apply=apply)


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
    _refuse_what_memory_cannot_hold(config, net)
    optimizer_of(config, net, steps_per_epoch=examples // batch_size, axis_name=None)


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
    raise UserError(
        f"all {config.train.seeds} seeds diverged before step {step} (the loss is not finite); "
        f"the state before it is kept: {_gentler(config)}",
        FAILED,
    )


def _complaints(config: ExperimentConfig, summary: dict[str, Any]) -> list[str]:
    fates = {
        "diverged": f"diverged, their numbers are left out: {_gentler(config)}",
        "collapsed": f"are no better than the majority class: {_gentler(config)}, "
        "or raise train.epochs",
    }
    return [
        f"{config.name}: seeds {', '.join(map(str, summary[f'{fate}_seeds']))} {what}"
        for fate, what in fates.items()
        if summary[f"{fate}_seeds"]
    ]


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
