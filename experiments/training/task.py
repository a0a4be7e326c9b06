"""What is trained: data, a network, an objective. Classification is one of several kinds.

    task = Task("operator", net, OBJECTIVES["relative_l2"], {"train": Data(...)}, sha256,
                batch_size=20, order="replacement")

Batches are dictionaries: the network is given ``batch["x"]``, the objective the whole batch. It
also holds, as ``batch["hyper"]``, the numbers of the trial that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from experiments.data.base import Dataset
from experiments.data.splits import Splits
from experiments.errors import UserError
from models import Network

Tree = Any
Batch = Mapping[str, Any]
Hyper = Mapping[str, Any]  # scalars, traced while a program is compiled
PerExample = Callable[[Tree, Batch], Float[Array, " b"]]
Order = Literal["epochs", "replacement"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Data:
    """One split, on the device.

    examples: every leaf has a leading axis, one entry per example.
    shared: what all examples share: a shift and a scale, the text that windows are cut from.
    sets: the examples are so many sets of equal size, one after the other; a trial knows those of
      the set that its number ``hyper["set"]`` names.
    spread: over which devices the rows of a batch are, if over several.
    """

    examples: Tree
    shared: Tree = ()
    sets: int = field(default=1, metadata={"static": True})
    spread: jax.sharding.Sharding | None = field(default=None, metadata={"static": True})

    @property
    def size(self) -> int:
        """How many examples a trial knows."""
        return len(jax.tree.leaves(self.examples)[0]) // self.sets

    def rows(self, rows: Int[Array, " b"], hyper: Hyper) -> Tree:
        """Examples of a trial's set, by their place in it."""
        if self.sets > 1:
            rows = rows + hyper["set"].astype(rows.dtype) * self.size
        found = jax.tree.map(lambda leaf: leaf[rows], self.examples)
        return found if self.spread is None else lax.with_sharding_constraint(found, self.spread)


@dataclass(frozen=True)
class Objective:
    """What is minimised, the mean of ``loss``, and what is reported beside it.

    Each is a function ``(outputs, batch) -> [b]``, one number per example.
    """

    loss: PerExample
    metrics: tuple[tuple[str, PerExample], ...] = ()


def normalise(examples: Tree, shared: Tree) -> dict[str, Array]:
    """Labelled examples ``{"x", "y"}`` as a network sees them: ``(x - shift) * scale``."""
    shift, scale = shared["shift"], shared["scale"]
    return {**examples, "x": (examples["x"].astype(shift.dtype) - shift) * scale}


@dataclass(frozen=True)
class Task:
    """Static and hashable but for ``data``; tasks that differ in data only share programs.

    data: by split; ``train`` is trained on, ``validation`` and ``test`` are reported.
    sha256: of the data, for the key of a run.
    prepare: ``(raw examples, shared) -> batch``.
    augment: ``(key, raw examples) -> raw examples``, while training only.
    head: ``(outputs, hyper) -> outputs``, between network and objective: what a number of the trial
      switches, as ``relu_switch`` does.
    order: ``epochs`` shows each example once an epoch and drops what does not fill a batch;
      ``replacement`` draws every batch anew, from the first ``hyper["examples"]`` examples where
      the trials have such a number.
    """

    name: str = field(compare=False)
    net: Network
    objective: Objective
    data: Mapping[str, Data] = field(compare=False)
    sha256: str = field(compare=False)
    batch_size: int
    prepare: Callable[[Tree, Tree], Batch] = normalise
    augment: Callable[[Array, Tree], Tree] | None = None
    head: Callable[[Tree, Hyper], Tree] | None = None
    order: Order = "epochs"

    @property
    def steps_per_epoch(self) -> int:
        return self.data["train"].size // self.batch_size

    @property
    def structure(self) -> Task:
        """What programs are compiled for: the task without its data."""
        return replace(self, data={}, sha256="")

    def measured(self, outputs: Tree, batch: Batch) -> dict[str, Float[Array, " b"]]:
        """The loss and the metrics by name; `UserError` (2) unless they are one per example."""
        count = len(jax.tree.leaves(batch["x"])[0])
        values = {}
        for name, measure in (("loss", self.objective.loss), *self.objective.metrics):
            values[name] = measure(outputs, batch)
            if jnp.shape(values[name]) != (count,):
                raise UserError(
                    f"the {name} of {self.name} ({measure.__qualname__}) has shape "
                    f"{jnp.shape(values[name])} for {count} examples: return one number for each"
                )
        return values


def classification(
    name: str, dataset: Dataset, splits: Splits, net: Network, *, sets: int = 1, **options: Any
) -> Task:
    """Cross-entropy on a data set of classes; ``options`` are those of ``Task``.

    sets: how many sets, one after the other, there are of training and of validation examples.
    """
    parts = {
        "train": (splits.train_x, splits.train_y, sets),
        "validation": (splits.validation_x, splits.validation_y, sets),
        "test": (splits.test_x, splits.test_y, 1),
    }
    shared = {"shift": jnp.asarray(dataset.shift), "scale": jnp.asarray(dataset.scale)}
    data = {
        split: Data({"x": jnp.asarray(x), "y": jnp.asarray(y)}, shared, count)
        for split, (x, y, count) in parts.items()
        if len(y)
    }
    options = {"objective": OBJECTIVES["cross_entropy"], "head": relu_switch, **options}
    return Task(name, net, data=data, sha256=dataset.sha256, **options)


def relu_switch(logits: Float[Array, "b c"], hyper: Hyper) -> Float[Array, "b c"]:
    """A ReLU on the logits where ``hyper["relu_logits"]`` is not 0, as some papers have it."""
    if "relu_logits" not in hyper:
        return logits
    return jnp.where(hyper["relu_logits"] != 0, jax.nn.relu(logits), logits)


def cross_entropy(logits: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
    """Of the softmax of the logits and the labels ``batch["y"]``."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def accuracy(logits: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
    """1 where the largest logit is the label's. A NaN logit is no answer, so it scores 0."""
    right = jnp.argmax(logits, axis=-1) == batch["y"]
    return (right & jnp.all(jnp.isfinite(logits), axis=-1)).astype(logits.dtype)


def squared_error(outputs: Float[Array, "b c"], batch: Batch) -> Float[Array, " b"]:
    """Mean over classes of the squared distance to one-hot labels.

    Those are as large as ``hyper["label_scale"]`` says, if it is there.
    """
    targets = jax.nn.one_hot(batch["y"], outputs.shape[-1], dtype=outputs.dtype)
    scale = batch["hyper"].get("label_scale", 1.0)
    return jnp.mean((outputs - scale * targets) ** 2, axis=-1)


def relative_l2(fields: Float[Array, "b *points"], batch: Batch) -> Float[Array, " b"]:
    """``||f - y|| / ||y||`` of each field, the usual error of an operator."""

    def norm(field: Array) -> Array:
        return jnp.sqrt(jnp.sum(field**2, axis=tuple(range(1, field.ndim))))

    return norm(fields - batch["y"]) / norm(batch["y"])


def next_token(logits: Float[Array, "b t c"], batch: Batch) -> Float[Array, " b"]:
    """Mean over positions of the cross-entropy of the tokens ``batch["y"]``, ``[b, t]``."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean(axis=-1)


@cache
def windows(width: int) -> Callable[[Int[Array, " b"], Int[Array, " n"]], Batch]:
    """``prepare`` of a language model: examples are the places in the text where windows begin."""

    def prepare(first, text):
        tokens = text[first[:, None] + jnp.arange(width + 1)]
        return {"x": tokens[:, :-1], "y": tokens[:, 1:]}

    return prepare


OBJECTIVES: Mapping[str, Objective] = {
    "cross_entropy": Objective(cross_entropy, (("accuracy", accuracy),)),
    "mse": Objective(squared_error, (("accuracy", accuracy),)),
    "relative_l2": Objective(relative_l2),
    "next_token": Objective(next_token),
}
