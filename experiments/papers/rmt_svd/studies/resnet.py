"""A trained ResNet-20 compressed at once, by several rules: what is left of its CIFAR-10 accuracy.

The network is akamaster's, as published. Nothing is trained after the cut. Factors are multiplied
out before the network is evaluated, so that all rules share one compiled program. A replication is
a block of test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data as datasets
from experiments.data.files import path_of
from experiments.data.splits import stratified_order
from experiments.papers.rmt_svd.networks import Tree, leaf, replaced
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from models.pretrained import Pretrained, load_pretrained
from spectral_jax import prune
from spectral_jax.compress import compress

NETWORK = "resnet20_cifar10"
BLOCK = 100  # images
# Rule -> rank and gate of `spectral_jax.compress`.
RULES: dict[str, tuple[str, float]] = {
    "energy .99": ("energy=0.99", 1.0),
    "energy .95": ("energy=0.95", 1.0),
    "energy .90": ("energy=0.9", 1.0),
    "MP edge": ("mp", 1.0),
    "MP edge, gate .1": ("mp", 0.1),
    "Gavish-Donoho": ("gd", 1.0),
}
WHOLE = "not compressed"


def measure(run: Run, *, images: int) -> Results:
    """Accuracy of each rule's network on blocks of test images, and its parameters."""
    trained = load_pretrained(NETWORK, path_of(f"pretrained/{NETWORK}.npz"))
    cifar = datasets.load("cifar10", preprocessing="raw")
    chosen = np.sort(stratified_order(cifar.test_y, seed=0)[:images])
    x, y = cifar.test_x[chosen], cifar.test_y[chosen].reshape(-1, BLOCK)

    found = {WHOLE: (trained.params, prune.parameter_count(trained.params), 0, 0)}
    for rule, (rank, gate) in RULES.items():
        cut = compress(trained.params, rank=rank, gate=gate, framework="flax")
        outcomes = [row["outcome"] for row in cut.rows]
        size = sum(tensor.size for tensor in cut.tensors.values())
        params = multiplied_out(trained.params, cut.tensors)
        found[rule] = params, size, outcomes.count("factored"), len(outcomes)
    names = ("parameters", "factored", "layers")
    hits = {rule: _predicted(trained, params, x) == y for rule, (params, *_) in found.items()}
    return merge(
        of_arrays("resnet", rule, {
            "test/accuracy": hits[rule].mean(axis=1),
            **{name: np.full(len(y), size) for name, size in zip(names, sizes, strict=True)},
        })
        for rule, (_, *sizes) in found.items()
    )  # fmt: skip


def _predicted(trained: Pretrained, params: Tree, x: np.ndarray) -> np.ndarray:
    """Classes by block of images."""
    blocks = jnp.asarray(x.reshape(-1, BLOCK, *x.shape[1:]))
    return np.asarray(_classes(params, trained.state, blocks, trained.shift, trained.scale,
                               apply=trained.network.apply))  # fmt: skip


@partial(jax.jit, static_argnames="apply")
def _classes(params, state, blocks, shift, scale, *, apply):
    def of_block(images):
        logits, _ = apply(params, state, (images.astype(jnp.float32) - shift) * scale)
        return jnp.argmax(logits, axis=-1)

    return jax.lax.map(of_block, blocks)


def multiplied_out(params: Tree, tensors: Mapping[str, np.ndarray]) -> Tree:
    """The parameters with the product of each pair of factors in the place of its kernel."""
    products = {
        name.removesuffix("/u"): prune.recombine(
            {"u": jnp.asarray(u), "v": jnp.asarray(tensors[name.removesuffix("u") + "v"])}
        )
        for name, u in tensors.items()
        if name.endswith("/u")
    }
    for name, product in products.items():
        assert product.shape == leaf(params, name).shape
    return replaced(params, products)
