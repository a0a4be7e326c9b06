"""Networks and data whose curvature is measured, here and in PyTorch."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import build
from spectral_jax.curvature import SoftmaxCrossEntropy
from spectral_jax.nnx import from_nnx

LOSS = SoftmaxCrossEntropy()
TORCH = all(importlib.util.find_spec(name) for name in ("torch", "curvlinops"))


class Problem(NamedTuple):
    """A network, its parameters, and inputs and classes."""

    name: str
    model: Callable[[Any, Any], Any]
    params: Any
    data: tuple[Any, Any]


def dense(n: int, width: int, *, classes: int = 2) -> Problem:
    """784-width-width-classes with ReLU: FC-600-2 of arXiv 2110.14163 with 600 and 2."""
    rng = np.random.default_rng(0)
    sides = (784, width, width, classes)
    params = [
        {"kernel": np.float32(rng.standard_normal((m, k)) / m**0.5), "bias": np.zeros(k, "f")}
        for m, k in zip(sides, sides[1:], strict=False)
    ]
    inputs = np.float32(rng.uniform(size=(n, 784)))
    return _on_device(f"FC-{width}-{classes}", _dense_outputs, params, inputs, classes)


def lenet(n: int) -> Problem:
    """LeNet-5 on images of 28 x 28."""
    network = build("lenet", input_shape=(28, 28, 1), classes=10, rngs=nnx.Rngs(0))
    inputs = np.float32(np.random.default_rng(0).uniform(size=(n, 28, 28, 1)))
    return _on_device("LeNet", *from_nnx(network), inputs, 10)


def gpt(n: int, context: int, width: int, depth: int) -> Problem:
    """A GPT over the 65 characters of tiny Shakespeare."""
    options = dict(width=width, depth=depth, heads=4)
    network = build("gpt", input_shape=(context,), classes=65, rngs=nnx.Rngs(0), **options)
    inputs = np.random.default_rng(0).integers(65, size=(n, context))
    return _on_device(f"GPT, width {width}, depth {depth}", *from_nnx(network), inputs, 65)


def torch_network(problem: Problem) -> tuple[Any, Any, Any]:
    """The network of that shape in PyTorch, with its weights for FC, and inputs and classes."""
    import torch

    torch.set_num_threads(1)
    network = _torch_dense(problem) if problem.name.startswith("FC") else _torch_lenet()
    inputs, classes = (torch.tensor(np.asarray(x)) for x in problem.data)
    inputs = inputs if problem.name.startswith("FC") else inputs.permute(0, 3, 1, 2)
    return network, inputs, classes.long()


def torch_operator(problem: Problem, kind: str) -> Any:
    """The same matrix by curvlinops."""
    import curvlinops
    import torch

    network, inputs, classes = torch_network(problem)
    return getattr(curvlinops, f"{kind}LinearOperator")(
        network,
        torch.nn.CrossEntropyLoss(),
        [p for p in network.parameters() if p.requires_grad],
        [(inputs, classes)],
        check_deterministic=False,
    )


def _torch_dense(problem: Problem) -> Any:
    import torch

    layers: list[Any] = []
    for layer in problem.params:
        kernel = np.asarray(layer["kernel"])
        layers += [torch.nn.Linear(*kernel.shape), torch.nn.ReLU()]
        with torch.no_grad():
            layers[-2].weight.copy_(torch.tensor(kernel.T))
            layers[-2].bias.copy_(torch.tensor(np.asarray(layer["bias"])))
    return torch.nn.Sequential(*layers[:-1])


def _torch_lenet() -> Any:
    from torch import nn

    pool = partial(nn.MaxPool2d, 2)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), pool(), nn.Conv2d(6, 16, 5), nn.ReLU(), pool(),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )  # fmt: skip


def _dense_outputs(params: Any, x: Any) -> Any:
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def _on_device(name: str, model: Callable, params: Any, inputs: Any, classes: int) -> Problem:
    n, positions = len(inputs), inputs.shape[1:] if inputs.dtype.kind == "i" else ()
    targets = np.random.default_rng(1).integers(classes, size=(n, *positions))
    return Problem(
        name, model, jax.tree.map(jnp.asarray, params), jax.device_put((inputs, targets))
    )
