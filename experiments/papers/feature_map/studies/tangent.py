"""What a network would have learned without changing its features: its tangent kernel.

Kernel regression with the tangent kernel of the start is what an infinitely lazy network learns;
with that of the end, what the changed features are worth to it. Both are held against the network
itself and its D_LR.

Results: arms ``network``, ``kernel at start``, ``kernel at end`` of protocol ``tangent``, with
their test accuracy, and the learning rate or ridge that was chosen (``<name>/at edge``: 1 where it
is the least or the greatest of its grid); arm ``network`` also has D_LR before and after
(``start/richness``, ``end/richness``), and how far both kernels have moved on training inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.papers.feature_map.choices import chosen, of_choice
from experiments.papers.feature_map.studies.grokking import last_of
from experiments.papers.feature_map.subsets import subset
from experiments.papers.feature_map.trained import columns, dense, each
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.task import OBJECTIVES, Data, Hyper, Task
from experiments.training.trainer import Trainer
from models import Network
from spectral_jax import features

Tree = Any
Examples = tuple[Float[Array, "n d"], Float[np.ndarray, "n c"]]
# As shares of the kernel's mean diagonal; unseen examples choose.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def measure(
    run: Run,
    *,
    dataset: str,
    examples: int,
    unseen: int,
    test: int,
    hidden: Sequence[int],
    seeds: int,
    epochs: int,
    batch: int,
    learning_rates: Sequence[float],
) -> Results:
    """Every seed, with examples of its own.

    unseen: examples that choose the network's learning rate and the ridge of the regression.
    test: how many of the test set are looked at, its first ones.
    """
    rows = []
    for seed in range(seeds):
        found = subset(dataset, seed, train=examples, unseen=unseen)
        net = dense(found.shape, tuple(hidden), found.classes)
        task = Task("tangent", net, OBJECTIVES["mse"], found.data, sha256="", batch_size=batch)
        trainer = Trainer(task, optimizer)
        state = trainer.start([Trial(seed, {"learning_rate": rate}) for rate in learning_rates])
        ended = trainer.train(state, epochs=epochs)
        best = chosen(trainer.evaluate(ended, "unseen")["accuracy"])
        data = {split: _examples(found.data[split], found.classes) for split in found.data}
        data["test"] = data["test"][0][:test], data["test"][1][:test]
        row = compared(net, each(state.params)[best], each(ended.params)[best], data)
        row["network"] |= of_choice("learning_rate", learning_rates, best)
        rows.append(row)
        run.log(f"tangent: seed {seed} is done")
    return merge(of_arrays("tangent", arm, columns([row[arm] for row in rows])) for arm in rows[0])


def compared(
    net: Network, start: Tree, end: Tree, data: Mapping[str, Examples]
) -> dict[str, dict[str, float]]:
    """The numbers of one network, by arm."""
    (x, _), (test, answers) = data["train"], data["test"]
    kernels, arms, network, layers = {}, {}, {}, {}
    for stage, params in (("start", start), ("end", end)):
        kernels[stage] = tangent_kernel(params, x, x)
        arms[f"kernel at {stage}"] = _regression(params, kernels[stage], data)
        layers[stage], head = last_of(net, params, x)
        network[f"{stage}/richness"] = float(features.richness(layers[stage], head=head).value)
    network |= {
        "test/accuracy": _right(net.apply(end, {}, test)[0], answers),
        "distance/features": float(features.kernel_distance(layers["start"], layers["end"])),
        "distance/tangent": _distance(kernels["start"], kernels["end"]),
    }
    return {"network": network, **arms}


@jax.jit
def tangent_kernel(
    params: Tree, x: Float[Array, "n d"], z: Float[Array, "m d"]
) -> Float[Array, "n m"]:
    """``mean_c <d f_c(x) / d params, d f_c(z) / d params>`` of a ReLU network.

    A layer ``h W + b`` adds ``(h(x) . h(z) + 1) sum_c g_c(x) . g_c(z)``, where ``h`` is its input
    and ``g_c`` the derivative of output c by its output: nothing as long as the parameters is ever
    stored.
    """
    total = jnp.zeros((len(x), len(z)))
    for (at_x, of_x), (at_z, of_z) in zip(_flow(params, x), _flow(params, z), strict=True):
        total += (at_x @ at_z.T + 1) * jnp.einsum("ncp,mcp->nm", of_x, of_z) / of_x.shape[1]
    return total


def _flow(params: Tree, x: Float[Array, "n d"]) -> list[tuple[Array, Array]]:
    """By layer: its inputs ``[n, m]``, and the derivatives of all outputs by its outputs."""
    layers = [params["layers"][str(place)] for place in range(len(params["layers"]))]

    def outputs(added, one):
        inputs = []
        for layer, extra in zip(layers, added, strict=True):
            inputs.append(one)
            out = one @ layer["kernel"] + layer["bias"] + extra
            one = jax.nn.relu(out)
        return out, inputs

    nothing = [jnp.zeros_like(layer["bias"]) for layer in layers]
    one_by_one = jax.vmap(partial(jax.jacrev(outputs, has_aux=True), nothing))
    derivatives, inputs = one_by_one(x)
    return list(zip(inputs, derivatives, strict=True))


def _regression(params: Tree, kernel: Array, data: Mapping[str, Examples]) -> dict[str, float]:
    """Test accuracy of kernel ridge regression; the ridge is chosen on unseen examples."""
    x, targets = data["train"]
    values, vectors = np.linalg.eigh(np.asarray(kernel, float))
    mean = targets.mean(axis=0)
    within = vectors.T @ (targets - mean)
    across = {
        split: np.asarray(tangent_kernel(params, data[split][0], x), float) @ vectors
        for split in ("unseen", "test")
    }
    scores = []
    for ridge in RIDGES:
        weights = within / (np.maximum(values, 0) + ridge * values.mean())[:, None]
        unseen, test = (_right(across[s] @ weights + mean, data[s][1]) for s in across)
        scores.append((unseen, test))
    best = chosen([unseen for unseen, _ in scores])
    return {"test/accuracy": scores[best][1], **of_choice("ridge", RIDGES, best)}


def _distance(one: Array, other: Array) -> float:
    """``1 - <K, L> / (||K|| ||L||)``, as `features.kernel_distance` of the features'."""
    first, second = np.asarray(one, float), np.asarray(other, float)
    return float(1 - np.sum(first * second) / (np.linalg.norm(first) * np.linalg.norm(second)))


def _right(outputs: Any, targets: np.ndarray) -> float:
    """The share of examples whose largest output is the right one."""
    return float(np.mean(np.argmax(outputs, 1) == np.argmax(targets, 1)))


def _examples(data: Data, classes: int) -> Examples:
    """Inputs and one-hot labels."""
    shift, scale = data.shared["shift"], data.shared["scale"]
    x = (data.examples["x"].astype(jnp.float32) - shift) * scale
    return x.reshape(len(x), -1), np.eye(classes)[np.asarray(data.examples["y"])]


def optimizer(hyper: Hyper) -> optax.GradientTransformation:
    """Adam."""
    return optax.adam(hyper["learning_rate"])
