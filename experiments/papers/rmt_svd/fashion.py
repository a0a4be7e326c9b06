"""The successor's protocol on Fashion-MNIST: prune again and again, in place, with L1 and L2.

arXiv 2606.02608 reports 71.6, 81 and 90.5 % on the test set for arms of one deep network, and its
networks have a ReLU on the logits. Here every arm is trained with it and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import Claim, Judged, judge
from experiments.papers.rmt_svd.training import Member, in_turn, make_task, trained_study
from experiments.report import Picture, Row, Section, Table, cell
from experiments.runs import Run
from experiments.training.program import TrainState
from spectral_jax import plots, prune
from spectral_jax.plots import bulks as figures
from spectral_jax.prune import Policy

SOURCE = "arXiv 2606.02608, Fashion-MNIST table"
# Arm -> (pruned, L1, L2); strengths as published.
ARMS = {
    "none": (False, 0.0, 0.0),
    "MP": (True, 0.0, 0.0),
    "L1+L2": (False, 1e-6, 1e-6),
    "MP+L2": (True, 0.0, 1e-6),
    "MP+L1+L2": (True, 1e-6, 1e-6),
}
# Accuracy in percent on the training and the test set, 100 epochs of 784-3000x4-500-10.
PUBLISHED = {
    "none": (78.03, 71.64),
    "MP": (88.12, 81.22),
    "L1+L2": (87.57, 81.70),
    "MP+L1+L2": (99.82, 90.53),
    "MP+L2": (99.98, 90.16),
}
LOGITS = {"linear": False, "ReLU": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "small": {
        "dataset": "fashion_mnist", "train_limit": 5000, "hidden": (200, 200, 200, 200, 100),
        "batch_size": 64, "decay": (0.96, 4), "epochs": 12, "every": 2, "keep": 24, "rate": 0.02,
        "seeds": 8,
    },
    "paper": {
        "dataset": "fashion_mnist", "train_limit": None, "hidden": (3000, 3000, 3000, 3000, 500),
        "batch_size": 128, "decay": (0.96, 4), "epochs": 100, "every": 4, "keep": 200,
        "rate": 0.01, "seeds": 5,
    },
}  # fmt: skip


def run(preset: str, *, root: str | Path) -> Run | None:
    """All arms of a preset, trained or found; None where the preset has none."""
    return trained_study("fashion", measure, OPTIONS[preset], root) if preset in OPTIONS else None


def measure(
    run: Run,
    *,
    epochs: int,
    every: int,
    keep: int,
    rate: float,
    seeds: int,
    **options: Any,
) -> dict[str, Any]:
    """Numbers ``[logits, arms, seeds]``: all of it is one program, and one event for all.

    ``keep``: of the noise, ``max(0, 1 - epoch / keep)`` stays.
    """
    task = make_task(**options)
    kinds = list(product(LOGITS.values(), ARMS.values(), range(seeds)))
    state = task.start([Member(seed, rate, relu, l1, l2) for relu, (_, l1, l2), seed in kinds])
    pruned = jnp.array([arm[0] for _, arm, _ in kinds])
    layers = tuple(f"layers/{i}/kernel" for i in range(len(options["hidden"])))
    event = _pruning(layers, keep)
    begun = 0
    found = run.restore_checkpoint(state)
    if found is not None:
        begun, state = found
    for epoch in range(begun, epochs, every):
        state = task.train(state, min(every, epochs - epoch))
        reached = epoch + every
        if reached < epochs:
            now = jnp.full(len(kinds), reached)
            state = state._replace(params=in_turn(event, state.params, pruned, now))
        run.save_checkpoint(reached, state)
    shape = len(LOGITS), len(ARMS), seeds
    numbers = task.assess(state) | _sizes(state, layers)
    run.save_array("arms", **{name: np.reshape(v, shape) for name, v in numbers.items()})
    return {"seeds": seeds, "hidden": list(options["hidden"]), "epochs": epochs}


def _pruning(layers: Sequence[str], keep: int) -> Any:
    """A member's kernels after an event, if it is one to be pruned."""
    policies = dict.fromkeys(layers, Policy(keep_below=prune.linear_keep(keep)))

    def event(params: Any, pruned: jax.Array, epoch: jax.Array) -> Any:
        cut = prune.prune_spectra(params, policies, epoch=epoch).params
        return jax.tree.map(lambda new, old: jnp.where(pruned, new, old), cut, params)

    return event


def _sizes(state: TrainState, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """What the fits say of the networks in the end."""
    policies = dict.fromkeys(layers, Policy())
    report = in_turn(lambda params: prune.prune_spectra(params, policies).report, state.params)
    return {
        "spikes": np.sum([np.asarray(report[layer].spikes) for layer in layers], axis=0),
        "distance from the law": np.mean([np.asarray(report[layer].ks) for layer in layers], 0),
    }


def claims(run: Run | None, command: str) -> list[Judged]:
    """The published gains, with the logits as published and with linear ones."""
    stored = run and _stored(run)
    claim = partial(
        Claim, source=SOURCE, unit=" points", cost="preset small",
        difference="784-200x4-100-10 on 5,000 images for 12 epochs",
    )  # fmt: skip
    rows: list[tuple[Claim, Any]] = []
    for logits in ("ReLU", "linear"):
        for arm in ("MP", "L1+L2", "MP+L2", "MP+L1+L2"):
            published = PUBLISHED[arm][1] - PUBLISHED["none"][1]
            gain = claim(
                id=f"fashion-{arm}-{logits}".lower().replace("+", "-"),
                text=f"Fashion-MNIST, {logits} logits: {arm} tests better than no regularisation "
                f"(published: {published:+.1f} points)",
                origin="published",
                direction=1,
            )
            rows.append((gain, stored and _of(stored, logits, arm) - _of(stored, logits, "none")))
    explained = claim(
        id="fashion-dead",
        text="test accuracy lost with each dead class, over all arms with ReLU logits",
        origin="one seed of ours",
        value=9.5,
        tolerance=2.0,
    )
    rows.append((explained, stored and _slopes(stored)))
    return [judge(claim, found, command=command) for claim, found in rows]


def _stored(run: Run) -> Mapping[str, np.ndarray]:
    stored = run.load_array("arms")
    assert stored is not None
    return stored


def _of(
    stored: Mapping[str, np.ndarray], logits: str, arm: str, what: str = "test accuracy"
) -> np.ndarray:
    return stored[what][list(LOGITS).index(logits), list(ARMS).index(arm)]


def _slopes(stored: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """One per arm whose seeds differ in their dead classes."""
    found = []
    for arm in ARMS:
        dead = _of(stored, "ReLU", arm, "dead classes")
        if np.ptp(dead) > 0:
            found.append(-np.polyfit(dead, _of(stored, "ReLU", arm), 1)[0])
    return np.array(found) if found else None


def section(run: Run, folder: Path) -> Section:
    """A table of all arms, and what their dead classes explain."""
    stored = _stored(run)
    groups = {
        f"{arm}, {logits} logits": (
            _of(stored, logits, arm, "dead classes"),
            _of(stored, logits, arm),
        )
        for logits in LOGITS
        for arm in ("none", "MP", "MP+L1+L2")
    }
    figure = figures.dead_classes(groups)
    plots.save(figure, folder / "fashion-dead-classes")
    widths = "-".join(map(str, run.summary["hidden"]))
    rows: list[Row] = []
    for logits, arm in product(LOGITS, ARMS):
        rows.append(
            {
                "logits": logits,
                "arm": arm,
                "test accuracy (%)": cell(_of(stored, logits, arm)),
                "minus none, paired": cell(_of(stored, logits, arm) - _of(stored, logits, "none")),
                "train accuracy (%)": cell(_of(stored, logits, arm, "train accuracy")),
                "dead classes": cell(_of(stored, logits, arm, "dead classes")),
                "spikes": cell(_of(stored, logits, arm, "spikes")),
                "published train / test": "{} / {}".format(*PUBLISHED[arm]),
            }
        )
    return Section(
        "Fashion-MNIST: pruned again and again",
        [
            Picture(
                figure,
                f"Fashion-MNIST, 784-{widths}-10: test accuracy of every network by the classes "
                "that it never answers.",
            )
        ],
        [Table("Fashion-MNIST: every arm, mean and 95 % interval over seeds", rows)],
    )
