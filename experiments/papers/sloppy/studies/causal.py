"""Does the spectrum of the inputs decide how well a network generalises, all else equal?

The source's synthetic problem, with what it confounds held fixed: inputs of norm 1 on average
whatever their spectrum, equally many steps on ever more examples, and a teacher and examples of its
own for every seed. What differs between arms is the rate ``b`` at which the inputs' variances fall.

With the inputs' spectrum falls that of what the teacher looks at: sloppy inputs make a simpler
teacher. Two controls take the two apart: ``flat labels`` are those of the teacher that looks at all
directions alike, and with ``flat inputs`` the network sees all directions alike.

Results: arms ``b=<rate>/n=<examples>[/<control>]``, and ``regression/n=<examples>[/<control>]``
with the slope of the test error over the rates, per seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.sloppy import decades, effective_rank, problem, variances
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.program import Optimizer, TrainState
from experiments.training.task import OBJECTIVES, Data, Hyper, Task
from experiments.training.trainer import Metrics, Trainer
from models import Network, network

Tree = Any
# Control -> whether the inputs, and what the labels are made from, have the falling spectrum.
CONTROLS = {"": (True, True), "flat labels": (True, False), "flat inputs": (False, True)}
FEATURES, CLASSES = 200, 10
LAST_RATE = 1e-5


def measure(
    run: Run,
    *,
    rates: Sequence[float],
    examples: Sequence[int],
    controls_at: int,
    seeds: int,
    **options: Any,
) -> Results:
    """Train every arm of every seed; a seed that is done is not trained again.

    controls_at: the number of examples at which the controls are trained.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for control in CONTROLS:
            counts = tuple(examples) if not control else (controls_at,)
            for rate in rates:
                if control and not rate:
                    continue  # of flat spectra all arms are one
                errors = _cell(run, seed, rate, control, counts, options)
                for place, count in enumerate(counts):
                    arm = name(rate, count, control)
                    found.setdefault(arm, []).append({k: v[place] for k, v in errors.items()})
        run.log(f"causal: seed {seed} is trained")
    numbers = {arm: _columns(rows) for arm, rows in found.items()}
    fits = regressions(numbers, rates, examples, controls_at)
    return merge(of_arrays("causal", arm, each) for arm, each in (numbers | fits).items())


def name(rate: float, count: int, control: str = "") -> str:
    """The arm of a rate, of so many examples."""
    return f"b={rate:g}/n={count}" + (f"/{control}" if control else "")


def regressions(
    numbers: Mapping[str, Mapping[str, np.ndarray]],
    rates: Sequence[float],
    examples: Sequence[int],
    controls_at: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Per seed, how many points the test error rises with the inputs' spectrum.

    ``per decade`` of variance that the spectrum spans, and ``per 100 ranks`` of its effective rank:
    least squares over the rates, with the share of the variance that each line explains.
    """
    fits = {}
    for control, count in [
        *(("", n) for n in examples),
        *((c, controls_at) for c in CONTROLS if c),
    ]:
        arms = [name(rate, count, control if rate else "") for rate in rates]
        errors = 100 * np.stack([numbers[arm]["test/error"] for arm in arms])
        spans = np.array([decades(rate, FEATURES) for rate in rates])
        ranks = np.array([effective_rank(rate, FEATURES) for rate in rates]) / 100
        by_decade, by_rank = line(spans, errors), line(ranks, errors)
        arm = f"regression/n={count}" + (f"/{control}" if control else "")
        fits[arm] = {
            "per decade": by_decade[0], "per decade/r2": by_decade[1],
            "per 100 ranks": by_rank[0], "per 100 ranks/r2": by_rank[1],
        }  # fmt: skip
    return fits


def line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares slope of each column of ``y`` on ``x``, and the variance that it explains.

    >>> slopes, explained = line(np.array([0.0, 1.0, 2.0]), np.array([[1.0], [3.0], [5.0]]))
    >>> float(slopes[0]), round(float(explained[0]), 6)
    (2.0, 1.0)
    """
    centred, deviations = x - x.mean(), y - y.mean(axis=0)
    slopes = centred @ deviations / (centred @ centred)
    total = np.sum(deviations**2, axis=0)
    explained = slopes**2 * (centred @ centred)
    return slopes, np.where(total > 0, explained / np.where(total > 0, total, 1), np.nan)


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    return {metric: np.array([row[metric] for row in rows], float) for metric in rows[0]}


def _cell(
    run: Run, seed: int, rate: float, control: str, counts: tuple[int, ...], options: Mapping
) -> dict[str, np.ndarray]:
    """Errors ``[counts]`` of a seed's networks on inputs of this rate, trained or found."""
    file = f"seed-{seed}-b-{rate:g}" + (f"-{control.replace(' ', '-')}" if control else "")
    stored = run.load_array(file)
    if stored is None:
        stored = trained(seed, rate, control, counts, **options)
        run.save_array(file, **stored)
    return stored


def trained(
    seed: int, rate: float, control: str, counts: tuple[int, ...], **options: Any
) -> dict[str, np.ndarray]:
    """Errors ``[counts]`` of the networks of `fitted`."""
    last: dict[str, np.ndarray] = {}
    trainer, state = fitted(
        seed, rate, control, counts, on_chunk=lambda _, metrics: last.update(metrics), **options
    )
    # Of the training examples only those of the last chunk of steps are told: n differs by arm.
    return {
        "test/error": 1 - trainer.evaluate(state)["accuracy"].astype(float),
        "train/error": 1 - last["train/accuracy"].astype(float),
    }


def fitted(
    seed: int,
    rate: float,
    control: str,
    counts: tuple[int, ...],
    *,
    hidden: int,
    batch: int,
    steps: int,
    learning_rate: float,
    most: int,
    test: int,
    on_chunk: Callable[[TrainState, Metrics], Any] | None = None,
) -> tuple[Trainer, TrainState]:
    """One network for each number of examples, all trained in one program."""
    data = drawn(seed, rate, control, most, test)
    task = Task(
        "causal", network_of(hidden), OBJECTIVES["cross_entropy"], data, sha256="",
        batch_size=batch, prepare=_as_it_is, order="replacement",
    )  # fmt: skip
    trainer = Trainer(task, optimizer_of(steps))
    hyper = {"learning_rate": learning_rate}
    state = trainer.start([Trial(seed, {**hyper, "examples": count}) for count in counts])
    return trainer, trainer.train(state, steps=steps, on_chunk=on_chunk)


def drawn(seed: int, rate: float, control: str, most: int, test: int) -> dict[str, Data]:
    """Examples and teacher of a seed, the same white noise for every rate and control."""
    scales = [jnp.sqrt(variances(rate if falls else 0.0, FEATURES)) for falls in CONTROLS[control]]
    made = problem(jax.random.key(seed), *scales, count=most + test, classes=CLASSES)
    ends = {"train": slice(most), "test": slice(most, most + test)}
    return {split: Data({"x": made.x[part], "y": made.y[part]}) for split, part in ends.items()}


@cache
def network_of(hidden: int) -> Network:
    """One hidden layer of sigmoid units."""
    return network(
        "mlp", input_shape=(FEATURES,), classes=CLASSES, hidden=(hidden,), activation="sigmoid"
    )


@cache
def optimizer_of(steps: int) -> Optimizer:
    """Adam, its rate along half a cosine to ``LAST_RATE``."""

    def optimizer(hyper: Hyper) -> optax.GradientTransformation:
        def rate(step):
            height = (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0))) / 2
            return LAST_RATE + (hyper["learning_rate"] - LAST_RATE) * height

        return optax.adam(rate)

    return optimizer


def _as_it_is(examples: Tree, shared: Tree) -> Tree:
    return examples
