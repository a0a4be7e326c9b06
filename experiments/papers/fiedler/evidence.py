"""What is claimed, by whom, and what our runs say to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import Claim, Judged, judge
from experiments.reproduction import Runs, final
from experiments.runs import Run
from models import network
from spectral_jax import graphs, weights

PAPER = "arXiv 2003.00992"
CODE = "edrictam/FiedlerRegularization@76408bf"
PEER = "arXiv 2103.03386, results/clustering_factors_clust_grad.csv"
OURS = "our measurement before this repository"

Evidence = Callable[[], np.ndarray | None]
# The clusters in the peer's n-cut.
CLUSTERS = 12


def judged_claims(runs: Runs, *, command: str) -> list[Judged]:
    """Every claim, in the order of the report."""
    rows = [*_initial(), *_released(runs), *_peer(runs), *_fair(runs), *_open()]
    return [judge(claim, evidence(), command=command) for claim, evidence in rows]


def accuracy(run: Run, split: str = "test") -> np.ndarray:
    """Final accuracy per seed, in percent."""
    name = "final_train/accuracy" if split == "train" else f"{split}/accuracy"
    return 100 * final(run, name)


def _initial() -> list[tuple[Claim, Evidence]]:
    """Connectivity of untrained nets: needs no data, so every preset checks it."""
    claim = partial(Claim, source=OURS, origin="our reference")
    mnist, khan = (784, 500, 500, 500, 10), (2308, 50, 50, 50, 4)
    return [
        (
            claim(
                id="init-lambda2",
                text="lambda_2 of the untrained 784-500-500-500-10 net",
                value=5.629,
                tolerance=0.006,
            ),
            lambda: _untrained(mnist)["lambda_2"],
        ),
        (
            claim(
                id="init-spread",
                text="its Fiedler vector is spread over the net (participation ratio, of 2294)",
                value=1389.0,
                tolerance=15.0,
            ),
            lambda: _untrained(mnist)["participation_ratio"],
        ),
        (
            claim(
                id="init-nu2",
                text="nu_2 (normalised Laplacian) of the same net",
                value=0.4633,
                tolerance=0.0006,
            ),
            lambda: _untrained(mnist)["nu_2"],
        ),
        (
            claim(
                id="init-one-gene",
                text="with 2308 inputs and 50 hidden units it sits on a single input instead "
                "(participation ratio)",
                value=1.0,
                tolerance=0.05,
            ),
            lambda: _untrained(khan)["participation_ratio"],
        ),
        (
            claim(
                id="init-one-gene-lambda2",
                text="lambda_2 of that net: the degree of its weakest input",
                value=0.376,
                tolerance=0.016,
            ),
            lambda: _untrained(khan)["lambda_2"],
        ),
    ]


def _released(runs: Runs) -> list[tuple[Claim, Evidence]]:
    """Released settings; the reference is one seed of ours, the papers' table is unknown."""
    arms = runs.get("mnist", {})
    reference = partial(
        Claim,
        source=OURS,
        origin="one seed of ours",
        cost="6,000 steps a seed: preset small",
        difference="5 seeds instead of 1; held to two standard errors of a test set of 10,000",
    )
    rows: list[tuple[Claim, Evidence]] = []
    table = {
        "none": (96.10, 5.81),
        "fiedler": (96.10, 5.75),
        "fiedler-100": (11.35, 0.08),
        "weight-decay": (94.96, 3.32),
        "l1": (90.55, None),
        "dropout": (95.87, 5.80),
    }
    for arm, (test, lambda_2) in table.items():
        text = f"MNIST, released settings, {arm}: "
        value = reference(
            id=f"mnist-{arm}", text=text + "test accuracy", value=test, tolerance=0.4, unit=" %"
        )
        rows.append((value, _of(arms, arm, accuracy)))
        if lambda_2 is not None:
            value = reference(
                id=f"mnist-{arm}-lambda2",
                text=text + "final lambda_2",
                value=lambda_2,
                tolerance=max(0.05, 0.02 * lambda_2),
            )
            rows.append((value, _of(arms, arm, lambda run: final(run, "spectra/lambda_2"))))
    left_on = reference(
        id="mnist-dropout-left-on",
        text="the released evaluation leaves dropout on: test accuracy lost by it",
        value=1.6,
        tolerance=0.4,
        unit=" points",
    )
    rows.append((left_on, _of(arms, "dropout", _dropout_penalty)))
    digits = runs.get("digits", {})
    where, tested = ("mnist", arms) if arms else ("digits", digits)
    others = {
        "none": "no penalty",
        "weight-decay": "weight decay",
        "dropout": "dropout (switched off at test)",
        "l1": "L1",
    }
    for other, name in others.items():
        gain = Claim(
            id=f"fiedler-beats-{other}",
            text=f"Fiedler regularisation tests better than {name} at the released strengths "
            f"({where}, paired by seed)",
            source=PAPER,
            origin="published",
            direction=1,
            unit=" points",
            cost="preset small",
            difference="the papers' accuracies are not known to us: only the sign is tested",
        )
        rows.append((gain, _difference(tested, "fiedler", other)))
    collapse = Claim(
        id="strong-delta-costs",
        text=f"as a subgradient with a stale vector, delta = 100 costs accuracy "
        f"({where}: test accuracy minus that without penalty)",
        source=OURS,
        origin="our reference",
        direction=-1,
        unit=" points",
        cost="preset small",
    )
    rows.append((collapse, _difference(tested, "fiedler-100", "none")))
    return rows


def _peer(runs: Runs) -> list[tuple[Claim, Evidence]]:
    arms = runs.get("peer", {})
    claim = partial(
        Claim,
        source=PEER,
        origin="released code",
        cost="preset small",
        difference="exact down-sampling of the images; our initialisation instead of Keras'",
    )
    published = {"control": (95.74, 10.02), "cluster": (95.90, 8.93)}
    rows: list[tuple[Claim, Evidence]] = []
    for arm, (test, cut) in published.items():
        name = {"control": "no penalty", "cluster": "mean of nu_2..nu_4 penalised"}[arm]
        rows += [
            (
                claim(
                    id=f"peer-{arm}-accuracy",
                    text=f"7x7 MNIST, {name}: test accuracy",
                    value=test,
                    tolerance=0.5,
                    unit=" %",
                ),
                _of(arms, arm, accuracy),
            ),
            (
                claim(
                    id=f"peer-{arm}-ncut",
                    text=f"7x7 MNIST, {name}: n-cut of a spectral clustering into 12",
                    value=cut,
                    tolerance=0.15,
                ),
                _of(arms, arm, n_cut),
            ),
        ]
    fall = claim(
        id="peer-ncut-falls",
        text="the penalty makes the net more clusterable (n-cut, minus control, paired)",
        direction=-1,
    )
    pruned = claim(
        id="peer-pruning",
        text="penalty and pruning together: n-cut 5.51 at 89.60 % test accuracy",
        value=5.51,
        tolerance=0.3,
        reason="pruning schedules are not built yet",
    )
    rows.append((fall, _difference(arms, "cluster", "control", n_cut)))
    rows.append((pruned, lambda: None))
    return rows


def _fair(runs: Runs) -> list[tuple[Claim, Evidence]]:
    tuned = tuned_arms(runs.get("fair", {}))
    claim = partial(
        Claim,
        source="the papers' thesis, tested fairly (sheet fiedler.md, section 8)",
        origin="published",
        direction=1,
        unit=" points",
        cost="preset small",
        difference="1,000 MNIST digits, 20 % mislabelled; each method tuned on the same 2,000 "
        "validation digits over 4 strengths",
    )
    rows: list[tuple[Claim, Evidence]] = []
    for method, name in SPECTRAL.items():
        for baseline, baseline_name in (
            ("none", "no penalty"),
            (best_baseline(tuned), "the best tuned baseline"),
        ):
            against = f" ({baseline})" if baseline != "none" else ""
            rows.append(
                (
                    claim(
                        id=f"fair-{method}-over-{'none' if baseline == 'none' else 'baseline'}",
                        text=f"few noisy samples: {name}, tuned, tests better than "
                        f"{baseline_name}{against}",
                    ),
                    _difference(tuned, method, baseline),
                )
            )
    return rows


def _open() -> list[tuple[Claim, Evidence]]:
    """What the sources do not let us check, said so."""
    missing = [
        (
            "accuracy-tables",
            "the accuracy tables of the two papers",
            PAPER,
            "only the abstracts were available to us; the released code keeps no results",
        ),
        (
            "delta-choice",
            "how delta = 0.01 was chosen",
            CODE,
            "no grid, seeds or validation split in the released code",
        ),
        (
            "generalisation-bounds",
            "Rademacher bounds in terms of the penalty",
            "arXiv 2304.03096",
            "the constants are not known to us",
        ),
    ]
    return [
        (Claim(id, text, source, "published", reason=reason), lambda: None)
        for id, text, source, reason in missing
    ]


SPECTRAL = {
    "fiedler": "lambda_2 penalty",
    "fiedler-proximal": "lambda_2 proximal",
    "fiedler_normalised": "nu_2 penalty",
    "fiedler_normalised-proximal": "nu_2 proximal",
    "layer_quotient": "layer-quotient penalty (L1 with layer constants)",
    "layer_quotient-proximal": "layer-quotient proximal",
    "spectral_gap": "-nu_2 penalty (wider gap)",
    "spectral_gap-proximal": "-nu_2 proximal",
}
BASELINES = ("l2", "l1", "dropout")


def tuned_arms(arms: Mapping[str, Run]) -> dict[str, Run]:
    """Per method, the run whose strength has the best mean validation accuracy."""
    best: dict[str, tuple[float, Run]] = {}
    for arm, run in arms.items():
        method = arm.partition("@")[0]
        score = float(np.nan_to_num(accuracy(run, "validation")).mean())
        if method not in best or score > best[method][0]:
            best[method] = (score, run)
    return {method: run for method, (_, run) in best.items()}


def best_baseline(tuned: Mapping[str, Run]) -> str:
    """The ordinary method with the best validation accuracy."""
    present = [name for name in BASELINES if name in tuned]
    scores = {name: np.nanmean(accuracy(tuned[name], "validation")) for name in present}
    return max(scores, key=lambda name: scores[name]) if scores else BASELINES[0]


def n_cut(run: Run) -> np.ndarray:
    """Per seed, the n-cut of the trained net's 12 spectral clusters: the peer's clusterability."""
    with np.load(run.path / "arrays" / "parameters.npz") as stored:
        names = sorted(name for name in stored if name.endswith("/kernel"))
        kernels = [np.abs(stored[name]) for name in names]
    return np.array(
        [_n_cut([kernel[seed] for kernel in kernels]) for seed in range(len(kernels[0]))]
    )


def _n_cut(blocks: list[np.ndarray]) -> float:
    from sklearn.cluster import SpectralClustering

    sizes = [blocks[0].shape[0], *(block.shape[1] for block in blocks)]
    offsets = np.cumsum([0, *sizes])
    adjacency = np.zeros((offsets[-1], offsets[-1]))
    for layer, block in enumerate(blocks):
        rows, columns = slice(*offsets[layer : layer + 2]), slice(*offsets[layer + 1 : layer + 3])
        adjacency[rows, columns], adjacency[columns, rows] = block, block.T
    alive = adjacency.sum(axis=0) > 0
    adjacency = adjacency[np.ix_(alive, alive)]
    clustering = SpectralClustering(CLUSTERS, affinity="precomputed", random_state=0)
    labels = clustering.fit_predict(adjacency)
    inside = labels[:, None] == np.unique(labels)[None]
    volume = adjacency.sum(axis=0) @ inside
    within = np.einsum("ic,ij,jc->c", inside, adjacency, inside)
    return float(np.sum((volume - within) / volume))


_UNTRAINED: dict[tuple[int, ...], dict[str, np.ndarray]] = {}


def _untrained(widths: tuple[int, ...], seeds: int = 5) -> dict[str, np.ndarray]:
    """Spectra of freshly drawn nets, one number per seed."""
    if widths not in _UNTRAINED:
        net = network("mlp", input_shape=widths[:1], classes=widths[-1], hidden=widths[1:-1])
        keys = jax.vmap(jax.random.key)(jnp.arange(seeds))

        def measure(key):
            params, _ = net.init(key)
            blocks = weights.graph_weights(params, net.layout)
            plain = graphs.fiedler(blocks, normalised=False)
            return {
                "lambda_2": plain.value,
                "participation_ratio": plain.participation_ratio,
                "nu_2": graphs.fiedler(blocks, normalised=True).value,
            }

        measured = jax.jit(partial(jax.lax.map, measure))(keys)
        _UNTRAINED[widths] = {name: np.asarray(values) for name, values in measured.items()}
    return _UNTRAINED[widths]


def _dropout_penalty(run: Run) -> np.ndarray:
    return accuracy(run) - 100 * final(run, "final_test_dropout_on/accuracy")


def _of(arms: Mapping[str, Run], arm: str, measure: Callable[[Run], Any]) -> Evidence:
    return lambda: measure(arms[arm]) if arm in arms else None


def _difference(
    arms: Mapping[str, Run], arm: str, other: str, measure: Callable[[Run], Any] = accuracy
) -> Evidence:
    present = arm in arms and other in arms
    return lambda: measure(arms[arm]) - measure(arms[other]) if present else None
