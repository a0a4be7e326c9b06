"""Richness as a regulariser: does pushing D_LR down, or up, change what a network generalises?

A strength times D_LR of the batch's features and logits is added to the cross-entropy: ``richer``
pushes D_LR down, ``lazier`` up. They are held against nothing and against weight decay. The
learning rate is tuned without any of them, for it matters more than they do, and all take it over;
then each has its strength tuned. Validation data choose, by seeds that the final runs do not use.
Labels are true, or wrong for 40 % of the training examples; where they are shuffled nothing
generalises, so methods keep their settings for true labels, and it shows what they do to fitting.

Results: arms ``none``, ``decay``, ``richer``, ``lazier`` of protocols ``regulariser/<labels>``;
their tuning runs under ``regulariser/<labels>/tuning``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.data.splits import corrupt_labels
from experiments.papers.feature_map.subsets import Subset, subset
from experiments.papers.feature_map.trained import columns, dense
from experiments.papers.paper import FRESH
from experiments.report.results import Results, merge, of_arrays
from experiments.report.selection import choose
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.program import TrainState
from experiments.training.task import (
    OBJECTIVES,
    Batch,
    Data,
    Hyper,
    Objective,
    Task,
    cross_entropy,
)
from experiments.training.trainer import Trainer
from models import Network
from spectral_jax import features

Tree = Any
Settings = Mapping[str, Mapping[str, float]]
WRONG = {"true": 0.0, "noisy": 0.4}  # labels -> the share of wrong ones
SHUFFLED = "shuffled"


def measure(
    run: Run,
    *,
    learning_rates: Sequence[float],
    strengths: Sequence[float],
    decays: Sequence[float],
    tuning_seeds: int,
    seeds: int,
    **options: Any,
) -> Results:
    """Tune and train again on every kind of labels; a seed that is done is not trained again."""
    found, best = [], {}
    for labels in (*WRONG, SHUFFLED):
        train = partial(_trained, run, labels, options)
        if labels in WRONG:
            rates = {f"none@{rate:g}": _hyper(rate) for rate in learning_rates}
            tried = train("tuning/rates", range(tuning_seeds), rates)
            rate = _winners(tried, rates)["none"]["learning_rate"]
            further = {
                **{f"decay@{each:g}": _hyper(rate, decay=each) for each in decays},
                **{f"richer@{each:g}": _hyper(rate, strength=each) for each in strengths},
                **{f"lazier@{each:g}": _hyper(rate, strength=-each) for each in strengths},
            }
            tried = merge([tried, train("tuning/strengths", range(tuning_seeds), further)])
            best[labels] = _winners(tried, rates | further)
            found.append(tried)
        settings = best.get(labels, best["true"])
        found.append(train("final", range(FRESH, FRESH + seeds), settings))
    return merge(found)


def _hyper(rate: float, *, decay: float = 0.0, strength: float = 0.0) -> dict[str, float]:
    return {"learning_rate": rate, "decay": decay, "strength": strength}


def _winners(tried: Results, settings: Settings) -> dict[str, Mapping[str, float]]:
    """Each method's setting that validation data choose, under the method's name."""
    (protocol,) = tried.protocols()
    methods = dict.fromkeys(arm.partition("@")[0] for arm in settings)
    choices = {method: choose(tried, protocol, method=method) for method in methods}
    return {method: settings[choice.arm] for method, choice in choices.items() if choice}


def _trained(
    run: Run, labels: str, options: Mapping[str, Any], stage: str, seeds: range, settings: Settings
) -> Results:
    """The numbers of every setting, one for each seed."""
    rows = []
    for seed in seeds:
        file = f"{labels}-{stage.replace('/', '-')}-{seed}"
        stored = run.load_array(file)
        if stored is None:
            stored = _one_seed(seed, labels, list(settings.values()), **options)
            run.save_array(file, **stored)
        rows.append(stored)
        run.log(f"regulariser: {labels} labels, {stage}, seed {seed} is done")
    protocol = f"regulariser/{labels}" + ("/tuning" if stage.startswith("tuning") else "")
    return merge(
        of_arrays(
            protocol, arm, {name: [row[name][place] for row in rows] for name in rows[0]},
            first_seed=seeds[0],
        )
        for place, arm in enumerate(settings)
    )  # fmt: skip


def _one_seed(
    seed: int,
    labels: str,
    settings: Sequence[Mapping[str, float]],
    *,
    dataset: str,
    examples: int,
    unseen: int,
    hidden: Sequence[int],
    epochs: int,
    batch: int,
) -> dict[str, np.ndarray]:
    """Networks of one seed, one for every setting: accuracies, and D_LR on unseen examples."""
    found = mislabelled(subset(dataset, seed, train=examples, unseen=unseen), labels, seed)
    net = dense(found.shape, tuple(hidden), found.classes)
    plain = Task("regulariser", net, OBJECTIVES["cross_entropy"], found.data, "", batch_size=batch)
    trainer = Trainer(replace(plain, net=_open(net), objective=PENALISED), optimizer)
    rows = []
    for setting in settings:  # one by one, so that tuning and final runs share a program
        state = trainer.train(trainer.start([Trial(seed, setting)]), epochs=epochs)
        rows.append({**setting, **_scores(Trainer(plain, optimizer), state)})
        seen = trainer.outputs(state, "unseen")
        richness = features.richness(seen["features"][0], outputs=seen["logits"][0])
        rows[-1]["richness"] = float(richness.value)
    return columns(rows)


def _scores(trainer: Trainer, state: TrainState) -> dict[str, float]:
    """The accuracy by split."""
    splits = {"train": "train", "validation": "unseen", "test": "test"}
    return {
        f"{name}/accuracy": float(trainer.evaluate(state, split)["accuracy"][0])
        for name, split in splits.items()
    }


def mislabelled(found: Subset, labels: str, seed: int) -> Subset:
    """The examples with training labels of this kind; all others keep theirs."""
    train = found.data["train"]
    y = np.array(train.examples["y"])
    if labels == SHUFFLED:
        y = np.random.default_rng([seed, 2]).permutation(y)
    else:
        y = corrupt_labels(y, WRONG[labels], found.classes, seed)
    examples = {**train.examples, "y": jnp.asarray(y)}
    return found._replace(data={**found.data, "train": Data(examples, train.shared)})


@cache
def _open(net: Network) -> Network:
    """The network with its last features beside the logits that are made from them."""
    last = net.representations[-1]

    def apply(params, state, x, **_):
        found = net.features(params, state, x, points=(last, ""))
        return {"features": found[last], "logits": found[""]}, state

    return net._replace(apply=apply)


def penalised(outputs: Tree, batch: Batch) -> Float[Array, " b"]:
    """Cross-entropy, and for every example alike the strength times the D_LR of the batch."""
    found = features.richness(outputs["features"], outputs=outputs["logits"], corrected=True)
    # There is none where a batch's features or logits are constant: then nothing pushes.
    push = jnp.where(jnp.isnan(found.value), 0, found.value)
    return cross_entropy(outputs["logits"], batch) + batch["hyper"]["strength"] * push


PENALISED = Objective(penalised)


def optimizer(hyper: Hyper) -> optax.GradientTransformation:
    """AdamW."""
    return optax.adamw(hyper["learning_rate"], weight_decay=hyper["decay"])
