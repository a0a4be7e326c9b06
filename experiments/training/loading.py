"""From a configuration to what is trained: its data, its network, its objective, or why not."""

from __future__ import annotations

from functools import lru_cache

import jax
import numpy as np

from experiments import data as datasets
from experiments.config import ExperimentConfig
from experiments.data.base import Dataset
from experiments.data.splits import Splits, stratified_order
from experiments.errors import UserError
from experiments.names import offered
from experiments.training.augmentation import AUGMENTATIONS
from experiments.training.optimisers import hyper_of
from experiments.training.task import OBJECTIVES, Task, classification
from models import Network, moving, network, options


def task_of(config: ExperimentConfig) -> Task:
    """What a configuration trains, its data on the device.

    Raises ``UserError``: 2 for what cannot be built or does not go together, 4 for missing data.
    """
    dataset, splits = loaded(config)
    net = _network(config, dataset)
    _refuse_what_cannot_train(config, net, splits[0])
    task = classification(
        config.name,
        dataset,
        _joined(splits),
        net,
        sets=len(splits),
        augment=AUGMENTATIONS.get(config.data.augment),
        batch_size=config.data.batch_size,
        objective=OBJECTIVES[config.train.objective],
    )
    _refuse_what_labels_do_not_give(config, task, dataset.classes)
    return task


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
        if model.dropout:
            wanted["dropout"] = None  # a number of the trial, of `hyper_of`
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
        hint = offered(objective, OBJECTIVES)
        raise UserError(f"train.objective = {objective!r} is no objective{hint}")


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
