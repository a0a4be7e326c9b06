"""A trained ResNet-20 compressed at once, by several rules: what is left of its CIFAR-10 accuracy.

The network is akamaster's, as published. Nothing is trained after the cut. Factors are multiplied
out before the network is evaluated, so that all rules share one compiled program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data as datasets
from experiments.claims import Claim, Judged, judge
from experiments.data.files import roots
from experiments.data.splits import stratified_order
from experiments.papers.rmt_svd.loop import leaf, replaced
from experiments.papers.rmt_svd.training import Tree
from experiments.report import Picture, Row, Section, Table, cell
from experiments.runs import Run
from experiments.runs.study import study
from spectral_jax import plots, prune
from spectral_jax.compress import compress
from spectral_jax.plots import bulks as figures

NETWORK = "resnet20_cifar10"
BLOCK = 100  # images; intervals are over blocks of other images
# Rule -> rank and gate of `spectral_jax.compress`.
RULES: dict[str, tuple[str, float]] = {
    "energy .99": ("energy=0.99", 1.0),
    "energy .95": ("energy=0.95", 1.0),
    "energy .90": ("energy=0.9", 1.0),
    "MP edge": ("mp", 1.0),
    "MP edge, gate .1": ("mp", 0.1),
    "Gavish-Donoho": ("gd", 1.0),
}
OPTIONS = {"small": {"images": 1000}, "paper": {"images": 10_000}}
WHOLE = "not compressed"
# Seen before in percent, on 500 images.
SEEN = {WHOLE: 91.0, "energy .99": 91.0, "energy .95": 84.0, "MP edge": 13.0}


def run(preset: str, *, root: str | Path) -> Run | None:
    """Every rule of a preset; None where the preset or the network's file is not there."""
    path = network_file()
    if preset not in OPTIONS or path is None:
        return None
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return study("rmt_svd/resnet", measure, options=OPTIONS[preset], root=root, data_sha256=sha256)


def network_file() -> Path | None:
    """The file of the trained network, if it is there."""
    files = (root / "pretrained" / f"{NETWORK}.npz" for root in roots())
    return next((path for path in files if path.is_file()), None)


def measure(run: Run, *, images: int) -> dict[str, Any]:
    """Accuracy of each rule's network on blocks of test images, and its parameters."""
    from models.pretrained import load_pretrained

    path = network_file()
    assert path is not None
    trained = load_pretrained(NETWORK, path)
    cifar = datasets.load("cifar10", preprocessing="raw")
    chosen = np.sort(stratified_order(cifar.test_y, seed=0)[:images])
    x, y = cifar.test_x[chosen], cifar.test_y[chosen]

    @jax.jit
    def hits(params: Tree, x: jax.Array) -> jax.Array:
        scaled = (x.astype(jnp.float32) - trained.shift) * trained.scale
        logits, _ = trained.network.apply(params, trained.state, scaled)
        return jnp.argmax(logits, axis=-1)

    def accuracy(params: Tree) -> np.ndarray:
        found = [np.asarray(hits(params, x[i : i + BLOCK])) for i in range(0, images, BLOCK)]
        return 100 * np.mean(np.stack(found) == y.reshape(-1, BLOCK), axis=1)

    before = prune.parameter_count(trained.params)
    found = {WHOLE: (accuracy(trained.params), before, 0, 0)}
    for rule, (rank, gate) in RULES.items():
        cut = compress(trained.params, rank=rank, gate=gate, framework="flax")
        outcomes = [row["outcome"] for row in cut.rows]
        after = sum(tensor.size for tensor in cut.tensors.values())
        whole = multiplied_out(trained.params, cut.tensors)
        found[rule] = accuracy(whole), after, outcomes.count("factored"), len(outcomes)
    names = ("accuracy", "parameters", "factored", "layers")
    for rule, values in found.items():
        run.save_array(rule.replace(" ", "-"), **dict(zip(names, values, strict=True)))
    return {"rules": list(found), "images": images}


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


def claims(run: Run | None, command: str) -> list[Judged]:
    """What was seen before, and whether an edge between noise and signal keeps the accuracy."""
    found = _stored(run) if run else {}
    claim = partial(Claim, cost="preset small: CIFAR-10 and the network's file, a minute")
    source = "akamaster/pytorch_resnet_cifar10: 8.27 % error"
    published = claim(
        "resnet-whole", "ResNet-20, not compressed: CIFAR-10 test accuracy", source, "published",
        value=91.73, tolerance=1.8, unit=" %", difference="1,000 of the 10,000 test images",
    )  # fmt: skip
    rows: list[tuple[Claim, Any]] = [(published, _accuracy(found, WHOLE))]
    for rule, value in SEEN.items():
        seen = claim(
            f"resnet-{rule}".replace(" ", "-"), f"ResNet-20, {rule}: CIFAR-10 test accuracy",
            "our earlier run, 500 images", "one seed of ours", value=value, tolerance=4.0,
            unit=" %",
        )  # fmt: skip
        rows.append((seen, _accuracy(found, rule)))
    for rule in ("MP edge", "MP edge, gate .1", "Gavish-Donoho"):
        cut = f"{int(found[rule]['factored'])} layers are cut" if found else ""
        kept = claim(
            f"resnet-keeps-{rule}".replace(" ", "-"),
            f"ResNet-20, {rule}: dropping what counts as noise keeps the accuracy (change)",
            "the papers' thesis, on a network that others trained", "published", value=0.0,
            tolerance=1.0, unit=" points", difference=cut,
        )  # fmt: skip
        change = found and found[rule]["accuracy"] - found[WHOLE]["accuracy"]
        rows.append((kept, change if found else None))
    return [judge(claim, evidence, command=command) for claim, evidence in rows]


def section(run: Run, folder: Path) -> Section:
    """Accuracy by parameters, and a table."""
    found = _stored(run)
    points = {
        rule: (np.full(len(one["accuracy"]), one["parameters"]), one["accuracy"])
        for rule, one in found.items()
    }
    figure = figures.accuracy_by_parameters(points, unit=f"blocks of {BLOCK} images")
    plots.save(figure, folder / "resnet-parameters")
    rows: list[Row] = [
        {
            "rule": rule,
            "test accuracy (%)": cell(one["accuracy"]),
            "minus whole": cell(one["accuracy"] - found[WHOLE]["accuracy"]),
            "parameters": f"{int(one['parameters'])}",
            "layers factored": f"{int(one['factored'])} of {int(one['layers'])}",
        }
        for rule, one in found.items()
    ]
    return Section(
        "A compressed ResNet-20",
        [
            Picture(
                figure,
                "ResNet-20 on CIFAR-10, compressed at once and not trained again: its spectra are "
                "no noise with signal on top, so an edge between the two cuts into what it needs.",
            )
        ],
        [Table(f"{run.summary['images']} test images; intervals over blocks of {BLOCK}", rows)],
    )


def _stored(run: Run) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for rule in run.summary["rules"]:
        stored = run.load_array(rule.replace(" ", "-"))
        assert stored is not None
        found[rule] = stored
    return found


def _accuracy(found: Mapping[str, Mapping[str, np.ndarray]], rule: str) -> np.ndarray | None:
    return found[rule]["accuracy"] if found else None
