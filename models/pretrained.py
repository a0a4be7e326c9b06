"""Trained networks of other people, put into ours.

    trained = load_pretrained("resnet20_cifar10", "pretrained/resnet20_cifar10.npz")
    logits, _ = trained.network.apply(
        trained.params, trained.state, (images - trained.shift) * trained.scale
    )

Images are RGB, 0 to 255. The function is the published one; what has no place of its own here is
moved without changing it: the order of channels (torch option A), a bias before a norm and the
norm's epsilon (Keras). Every kernel keeps its singular values.
"""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from models.functional import Network, Tree, network
from spectral_jax.checkpoints import load
from spectral_jax.weights import BATCH_NORM_EPSILON

Tensors = Mapping[str, np.ndarray]
Leaves = dict[str, np.ndarray]

# The constants of the ImageNet examples of torchvision, which akamaster's training code uses.
_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)
_STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)
_KERAS_EPSILON = 1e-3
_STATISTICS = ("mean", "var")


class Pretrained(NamedTuple):
    """A trained network; it sees ``(images - shift) * scale`` of RGB images from 0 to 255.

    test_error: share of the 10,000 CIFAR-10 test images that it gets wrong, as its source says.
    """

    network: Network
    params: Tree
    state: Tree
    shift: Float[np.ndarray, "..."]
    scale: Float[np.ndarray, "..."]
    test_error: float


class _Source(NamedTuple):
    options: dict[str, Any]
    leaves: Callable[[Tensors], Leaves]
    shift: Any
    scale: Any
    test_error: float


def load_pretrained(name: str, path: str | Path) -> Pretrained:
    """Read the network `name` of `PRETRAINED` from its file.

    resnet20_cifar10, resnet32_cifar10: akamaster/pytorch_resnet_cifar10, published errors 8.27 %
    and 7.37 %. resnet8_cifar10: mlcommons/tiny, 12.79 % as measured.

    Raises:
        ValueError: the name is unknown, or the file's tensors are not those of the network.
        FileNotFoundError: there is no such file.
    """
    source = _find(name)
    net = network("resnet", input_shape=(32, 32, 3), classes=10, **source.options)
    try:
        params, state = _trees(source.leaves(load(path)))
    except KeyError as missing:
        raise ValueError(f"{path} has no tensor {missing}: it is not {name!r}") from None
    _check(name, path, (params, state), jax.eval_shape(net.init, jax.random.key(0)))
    return Pretrained(net, params, state, source.shift, source.scale, source.test_error)


def torch_resnet(tensors: Tensors) -> Leaves:
    """Map a CIFAR ResNet of akamaster's code to our paths: OIHW to HWIO, dense to [in, out].

    Its option A puts half of the zero channels before those carried on, ours puts all after.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    firsts = _torch_stages(tensors)
    leaves = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        match = re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", layer)
        place = f"blocks/{firsts[int(match[1])] + int(match[2])}/" if match else ""
        layer = match[3] if match else {"conv1": "stem", "bn1": "stem_norm"}.get(layer, layer)
        layer = layer.replace("linear", "head").replace("bn", "norm")
        leaves[f"{place}{layer}/{_torch_leaf(leaf, tensor)}"] = _torch_kernel(tensor)
    return _new_channels_last(leaves)


def keras_resnet8(tensors: Tensors) -> Leaves:
    """Map the ResNet-8 of mlcommons/tiny to our paths.

    Its convolutions have biases: K x + b normalised is K x normalised with the mean less b. The
    projections have no norm: one with variance 1 stands there and adds b. Keras adds 1e-3 to the
    variance, so ours is larger by what is missing.
    """
    leaves = _keras_pair(tensors, 0, 0, "stem", "stem_norm")
    for block, (first, projection) in enumerate(((1, None), (3, 5), (6, 8))):
        path = f"blocks/{block}"
        for i in (1, 2):
            conv, norm = first + i - 1, 2 * block + i
            leaves |= _keras_pair(tensors, conv, norm, f"{path}/conv{i}", f"{path}/norm{i}")
        if projection is not None:
            leaves |= _keras_projection(tensors, projection, f"{path}/shortcut")
    return leaves | {f"head/{leaf}": tensors[f"dense/dense/{leaf}"] for leaf in ("kernel", "bias")}


PRETRAINED: dict[str, _Source] = {
    "resnet20_cifar10": _Source({"depth": 20}, torch_resnet, _MEAN, 1 / _STD, 0.0827),
    "resnet32_cifar10": _Source({"depth": 32}, torch_resnet, _MEAN, 1 / _STD, 0.0737),
    "resnet8_cifar10": _Source(
        {"depth": 8, "shortcut": "B", "padding": "same"},
        keras_resnet8,
        np.float32(0),
        np.float32(1),
        0.1279,
    ),
}


def _torch_stages(tensors: Tensors) -> dict[int, int]:
    """The number of our first block of each stage; torch counts anew in each."""
    found = (re.match(r"layer(\d+)\.(\d+)\.", name) for name in tensors)
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    return {stage: sum(other < stage for other, _ in blocks) for stage, _ in blocks}


def _torch_leaf(leaf: str, tensor: np.ndarray) -> str:
    if leaf == "weight":
        return "scale" if tensor.ndim == 1 else "kernel"
    return leaf.removeprefix("running_")


def _torch_kernel(tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T


def _new_channels_last(leaves: dict[str, np.ndarray]) -> Leaves:
    """Reorder what the residual stream carries, so that each stage's new channels come last."""
    order = np.arange(leaves["stem/kernel"].shape[-1])
    for k in range(sum(name.endswith("conv2/kernel") for name in leaves)):
        block = f"blocks/{k}"
        leaves[f"{block}/conv1/kernel"] = leaves[f"{block}/conv1/kernel"][:, :, order]
        new = leaves[f"{block}/conv2/kernel"].shape[-1] - len(order)
        if new:
            carried = order + new // 2
            order = np.r_[carried, np.setdiff1d(np.arange(len(order) + new), carried)]
        for name in (
            "conv2/kernel",
            *(f"norm2/{leaf}" for leaf in ("scale", "bias", "mean", "var")),
        ):
            leaves[f"{block}/{name}"] = leaves[f"{block}/{name}"][..., order]
    leaves["head/kernel"] = leaves["head/kernel"][order]
    return leaves


def _keras_pair(tensors: Tensors, conv: int, norm: int, layer: str, target: str) -> Leaves:
    kernel, bias = _keras(tensors, "conv2d", conv, "kernel", "bias")
    gamma, beta, mean, variance = _keras(
        tensors,
        "batch_normalization",
        norm,
        *("gamma", "beta", "moving_mean", "moving_variance"),
    )
    return {
        f"{layer}/kernel": kernel,
        f"{target}/scale": gamma,
        f"{target}/bias": beta,
        f"{target}/mean": mean - bias,
        f"{target}/var": variance + np.float32(_KERAS_EPSILON - BATCH_NORM_EPSILON),
    }


def _keras_projection(tensors: Tensors, conv: int, layer: str) -> Leaves:
    kernel, bias = _keras(tensors, "conv2d", conv, "kernel", "bias")
    return {
        f"{layer}/kernel": kernel,
        f"{layer}_norm/scale": np.ones_like(bias),
        f"{layer}_norm/bias": bias,
        f"{layer}_norm/mean": np.zeros_like(bias),
        f"{layer}_norm/var": np.full_like(bias, 1 - BATCH_NORM_EPSILON),
    }


def _keras(tensors: Tensors, layer: str, number: int, *leaves: str) -> list[np.ndarray]:
    name = f"{layer}_{number}" if number else layer
    return [tensors[f"{name}/{name}/{leaf}"] for leaf in leaves]


def _trees(leaves: Leaves) -> tuple[Tree, Tree]:
    """Nest the leaves; the statistics of the norms are the state."""
    params: Tree = {}
    state: Tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = state if last in _STATISTICS else params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.numpy.asarray(leaf)
    return params, state


def _check(name: str, path: str | Path, found: Any, expected: Any) -> None:
    """Raise ValueError unless the trees have the leaves of the network and their shapes."""
    found, expected = _shapes(found), _shapes(expected)
    for leaf in sorted(found.keys() | expected.keys()):
        if found.get(leaf) != expected.get(leaf):
            raise ValueError(
                f"{path} is not {name!r}: its {leaf} has shape {found.get(leaf)}, expected "
                f"{expected.get(leaf)}"
            )


def _shapes(trees: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(trees)
    return {
        jax.tree_util.keystr(path[1:], simple=True, separator="/"): leaf.shape
        for path, leaf in leaves
    }


def _find(name: str) -> _Source:
    if name in PRETRAINED:
        return PRETRAINED[name]
    close = get_close_matches(name, PRETRAINED, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(PRETRAINED)}"
    raise ValueError(f"unknown pretrained network {name!r}: {hint}")
