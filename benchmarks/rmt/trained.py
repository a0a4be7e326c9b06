"""What compressing a trained network at once, without training on, does to its accuracy."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.farms import networks
from benchmarks.harness import NOTHING, Table, row
from experiments.data import load
from experiments.errors import UserError
from models import network
from models.pretrained import load_pretrained
from spectral_jax.compress import compress
from spectral_jax.prune import recombine_all

BATCH = 250
RULES = (("mp", 1.0), ("mp", 0.05), ("gd", 1.0), ("energy=0.99", 1.0), ("energy=0.95", 1.0))


class Size(NamedTuple):
    names: tuple[str, ...]
    images: int
    rules: tuple[tuple[str, float], ...]


FULL = Size(names=("resnet20", "resnet8"), images=2000, rules=RULES)
SMOKE = Size(names=("random",), images=4, rules=RULES[-1:])


class Trained(NamedTuple):
    apply: Any
    params: Any
    x: np.ndarray
    labels: np.ndarray

    def accuracy(self, params: Any) -> float:
        batches = range(0, len(self.x), BATCH)
        found = [np.argmax(self.apply(params, self.x[i : i + BATCH]), axis=1) for i in batches]
        return float(np.mean(np.concatenate(found) == self.labels))


def one_shot(size: Size) -> Table:
    """Accuracy of published CIFAR-10 networks, as `spectral-jax compress` would write them."""
    rows = [cells for name in size.names for cells in _rows(name, size)]
    note = (
        f"The first {size.images} test images; nothing is trained after the cut. Peer: the "
        "network as published. Their convolutions are not noise and spikes, as the distance of "
        "the bulk says: a cut at the edge takes the signal. `--gate 0.05` copies such layers."
    )
    return Table("Trained networks compressed at once", note, rows)


def _rows(name: str, size: Size) -> Iterator[tuple[str, ...]]:
    trained = _load(name, size.images)
    if isinstance(trained, str):
        yield row(f"{name}: {trained}", NOTHING)
        return
    before = f"{100 * trained.accuracy(trained.params):.1f} %"
    for rank, gate in size.rules:
        result = compress(trained.params, rank=rank, gate=gate)
        after = trained.accuracy(recombine_all(_tree(trained.params, result.tensors)))
        left = sum(x.size for x in result.tensors.values())
        whole = sum(x.size for x in jax.tree.leaves(trained.params))
        cut = [layer for layer in result.rows if layer["outcome"] == "factored"]
        noise = sum(layer["ks"] <= 0.05 for layer in result.rows)
        yield row(
            f"{name}, --rank {rank} --gate {gate:g}",
            f"{100 * after:.1f} %, {100 * (left / whole - 1):+.1f} % parameters, "
            f"{len(cut)} of {len(result.rows)} layers ({noise} with ks up to .05)",
            before,
        )


def _tree(params: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """The tensors in the places of the parameters; two where there were one."""

    def at(path: Any, _: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in tensors:
            return tensors[name]
        return {letter: tensors[f"{name}/{letter}"] for letter in "uv"}

    return jax.tree.map_with_path(at, params)


def _load(name: str, images: int) -> Trained | str:
    """A network with what it sees; or why there is none."""
    if name == "random":
        net = network("resnet", input_shape=(8, 8, 3), classes=10, depth=8)
        params, state = net.init(jax.random.key(0))
        x = np.random.default_rng(0).standard_normal((images, 8, 8, 3), np.float32)
        return Trained(_compiled(net, state), params, x, np.arange(images) % 10)
    path = networks.path_of(name)
    if path is None:
        return "no such file on this machine"
    try:
        data = load("cifar10", preprocessing="raw")
    except UserError as error:
        return str(error)
    trained = load_pretrained(path.stem, path)
    x = (data.test_x[:images].astype(np.float32) - trained.shift) * trained.scale
    apply = _compiled(trained.network, trained.state)
    return Trained(apply, trained.params, x, data.test_y[:images])


def _compiled(net: Any, state: Any) -> Any:
    return jax.jit(lambda params, x: net.apply(params, state, x)[0])
