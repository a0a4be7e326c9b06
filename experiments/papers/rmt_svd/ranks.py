"""Fig. 5: how many singular values of the first layer a trained network needs, and who says so."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data as datasets
from experiments.claims import Claim, Judged, judge
from experiments.papers.rmt_svd.training import in_turn
from experiments.report import Picture, Section, Table, cell
from experiments.runs import Run
from experiments.runs.study import study
from experiments.training.task import normalise
from spectral_jax import plots, prune, rmt
from spectral_jax.plots import bulks as figures
from spectral_jax.prune import surgery

LAYER = "layers/0/kernel"
RANKS = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 95)
# Notebook A, one network: accuracy in percent by rank kept.
NOTEBOOK = {
    0: 8.92, 5: 54.59, 10: 75.75, 15: 84.64, 20: 90.71, 25: 95.45, 30: 97.29, 35: 97.73, 40: 98.02,
    45: 98.26, 50: 98.21, 55: 98.22, 60: 98.23, 95: 98.32,
}  # fmt: skip
SHEET = "our measurement before this repository: two seeds, 10,000 digits"
RULES: dict[str, dict[str, Any]] = {
    "MP edge": {},
    "MP edge, as released": {
        "trim": 0.25, "beta": 0.1,
        "paper_compat": ("tw_quartic_over_3", "cdf_zero_above_edge"), "plotting": "(k-1)/p",
    },
}  # fmt: skip


def run(arms: Mapping[str, Run], dataset: str, *, root: str | Path) -> Run:
    """Cut the first layer of every trained network at every rank; trains nothing."""
    runs = {arm: str(run.path.relative_to(root)) for arm, run in arms.items()}
    return study(
        "rmt_svd/ranks",
        measure,
        options={"runs": runs, "dataset": dataset},
        root=root,
        data_sha256=datasets.load(dataset, preprocessing="unit").sha256,
    )


def measure(run: Run, *, runs: Mapping[str, str], dataset: str) -> dict[str, Any]:
    """Per arm: accuracy ``[ranks, seeds]``, what each rule keeps, and dead classes."""
    found = datasets.load(dataset, preprocessing="unit")
    shared = {"shift": jnp.asarray(found.shift), "scale": jnp.asarray(found.scale)}
    examples = {"x": jnp.asarray(found.test_x), "y": jnp.asarray(found.test_y)}
    data = normalise(examples, shared)
    for arm, path in runs.items():
        stored = Run(run.path.parents[2] / path).load_array("parameters")
        assert stored is not None
        params = {name: jnp.asarray(leaf) for name, leaf in stored.items()}
        wanted = jnp.array([*RANKS, 10_000])
        relu = arm == "relu-logits"
        accuracy, dead = jax.block_until_ready(_by_rank(params, data, wanted, relu))
        w = params[LAYER]
        fits = {rule: in_turn(partial(_fit, **options), w) for rule, options in RULES.items()}
        numbers = {f"rank/{rule}": fit.spikes for rule, fit in fits.items()}
        numbers["rank/Gavish-Donoho"] = in_turn(_above_threshold, w)
        fit = fits["MP edge"]
        initial = 1 / (3 * w.shape[1])  # of U(-1/sqrt(m), 1/sqrt(m))
        numbers |= {"ks": fit.ks, "variance ratio": fit.variance / initial}
        run.save_array(
            arm, accuracy=accuracy[:-1], full=accuracy[-1], dead=dead[-1],
            **{name: np.asarray(values) for name, values in numbers.items()},
        )  # fmt: skip
    shape = [int(side) for side in w.shape[1:]]
    return {"arms": list(runs), "ranks": list(RANKS), "shape": shape, "dataset": dataset}


@partial(jax.jit, static_argnums=3)
def _by_rank(
    params: Mapping[str, jax.Array], data: Any, ranks: jax.Array, relu: bool
) -> tuple[jax.Array, jax.Array]:
    """Test accuracy in percent and dead classes, ``[ranks, seeds]``."""
    x = data["x"].reshape(len(data["y"]), -1)

    def one(seed: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w = seed[LAYER]
        found = surgery.spectrum(w)
        # x W = (x W V) V^T for the vectors V of the short side, or with U before W.
        tall = w.shape[0] >= w.shape[1]
        left, right = (w @ found.vectors, found.vectors.T) if tall else (found.vectors, None)
        right = found.vectors.T @ w if right is None else right
        most = min(len(found.values), max(RANKS))
        inner, tail = x @ left[:, :most], right[:most]
        whole = x @ w

        def at(rank: jax.Array) -> tuple[jax.Array, jax.Array]:
            cut = (inner * (jnp.arange(most) < rank)) @ tail
            hidden = jnp.where(rank > most, whole, cut) + seed["layers/0/bias"]
            logits = jax.nn.relu(hidden) @ seed["layers/1/kernel"] + seed["layers/1/bias"]
            logits = jax.nn.relu(logits) if relu else logits
            hits = jnp.mean(jnp.argmax(logits, axis=-1) == data["y"])
            return 100 * hits, prune.dead_classes(logits).sum()

        return jax.lax.map(at, ranks)

    accuracy, dead = jax.lax.map(one, dict(params))
    return accuracy.T, dead.T


def _fit(w: jax.Array, **options: Any) -> rmt.MPFit:
    m, n = w.shape
    eigenvalues = jnp.linalg.svd(w, compute_uv=False) ** 2 / max(m, n)
    return rmt.fit_marchenko_pastur(eigenvalues, (m, n), **options)


def _above_threshold(w: jax.Array) -> jax.Array:
    m, n = w.shape
    values = jnp.linalg.svd(w, compute_uv=False)
    return jnp.sum(values > rmt.hard_threshold((m, n), singular_values=values))


def claims(run: Run, command: str) -> list[Judged]:
    """The rank rule against our reference and the notebook; dead classes by the logits."""
    rows = [*_reference(run), *_notebook(run)]
    return [judge(claim, found, command=command) for claim, found in rows]


def _reference(run: Run) -> list[tuple[Claim, Any]]:
    """Numbers of the sheet, which hold for 784-1000-10 on 10,000 digits."""
    ours = run.load_array("linear") if run.summary["shape"] == [784, 1000] else None
    relu = run.load_array("relu-logits") if ours else None
    claim = partial(Claim, source=SHEET, origin="our reference", cost="preset small")
    rows: list[tuple[Claim, Any]] = [
        (claim("figure5-rank", "784-1000-10: rank above the MP edge", value=29.5, tolerance=1.5),
         ours and ours["rank/MP edge"]),
        (claim("figure5-gof", "its distance from the law", value=0.005, tolerance=0.002),
         ours and ours["ks"]),
        (claim("figure5-sigma", "variance of the noise over that of the initial weights",
               value=1.07, tolerance=0.02),
         ours and ours["variance ratio"]),
        (claim("figure5-gd", "rank above the Gavish-Donoho threshold", value=21.0, tolerance=1.5),
         ours and ours["rank/Gavish-Donoho"]),
    ]  # fmt: skip
    for rank, change, tolerance in ((30, -0.4, 0.3), (20, -1.05, 0.5), (10, -5.45, 1.5)):
        lost = claim(
            f"figure5-lost-k{rank}", f"the {rank} largest kept: change of test accuracy",
            value=change, tolerance=tolerance, unit=" points",
        )  # fmt: skip
        kept = ours and ours["accuracy"][RANKS.index(rank)] - ours["full"]
        rows.append((lost, kept))
    whole = Claim(
        "figure5-full", "test accuracy, all values kept", SHEET, "one seed of ours", value=95.6,
        tolerance=0.3, unit=" %", cost="preset small",
        difference="two seeds then, on 10,000 digits that are not these",
    )  # fmt: skip
    rows.append((whole, ours and ours["full"]))
    dead = claim("figure5-dead-linear", "dead classes with linear logits", value=0.0, tolerance=0.0)
    rows.append((dead, ours and ours["dead"]))
    dead = Claim(
        "figure5-dead-relu", "dead classes with a ReLU on the logits (of 10)", SHEET,
        "one seed of ours", value=1.25, tolerance=0.7, cost="preset small",
        difference="eight seeds of ours then, eight others now",
    )  # fmt: skip
    rows.append((dead, relu and relu["dead"]))
    return rows


def _notebook(run: Run) -> list[tuple[Claim, Any]]:
    """The published curve, by what is lost against the whole network."""
    ours = run.load_array("linear")
    assert ours is not None
    source = "jtj5311/NN-RMT-SVD@1838d93, notebook output"
    rows: list[tuple[Claim, Any]] = []
    measured = ours if run.summary["shape"] == [784, 1000] else None
    for rank, tolerance in ((20, 2.0), (30, 1.0), (60, 0.3)):
        lost = NOTEBOOK[rank] - 98.29
        claim = Claim(
            f"figure5-notebook-k{rank}",
            f"784-1000-10, the {rank} largest kept: change of test accuracy",
            source, "published", value=round(lost, 2), tolerance=tolerance, unit=" points",
            cost="preset small", difference="10,000 training digits instead of 60,000",
        )  # fmt: skip
        found = measured and measured["accuracy"][RANKS.index(rank)] - measured["full"]
        rows.append((claim, found))
    share = Claim(
        "figure5-enough", "the values above the MP edge keep the accuracy: loss against the whole",
        "arXiv 2303.08986, Fig. 5", "published", value=0.0, tolerance=0.5, unit=" points",
    )  # fmt: skip
    rows.append((share, _at_edge(ours) - ours["full"]))
    return rows


def _at_edge(stored: Mapping[str, np.ndarray]) -> np.ndarray:
    """Accuracy at the rank of the edge, seed by seed, interpolated between the ranks measured."""
    return np.array(
        [
            np.interp(rank, RANKS, curve)
            for rank, curve in zip(stored["rank/MP edge"], stored["accuracy"].T, strict=True)
        ]
    )


def section(run: Run, trained: Mapping[str, Run], folder: Path) -> Section:
    """The curve with its rules, the spectrum over training, and dead classes."""
    pictures = {"ranks": _curve(run), "spectrum": _spectrum(trained["linear"])}
    pictures["dead-classes"] = _dead(run)
    for name, picture in pictures.items():
        plots.save(picture.figure, folder / f"figure5-{name}")
    return Section("How many singular values it takes (Fig. 5)", list(pictures.values()),
                   [_table(run), _rules(run)])  # fmt: skip


def _curve(run: Run) -> Picture:
    stored = run.load_array("linear")
    assert stored is not None
    marks = {name.removeprefix("rank/"): stored[name] for name in stored if "rank/" in name}
    most = min(run.summary["shape"])
    ranks = np.array([rank for rank in RANKS if rank <= most])
    figure = figures.accuracy_by_rank(
        ranks, stored["accuracy"][: len(ranks)], marks=marks, full=stored["full"]
    )
    m, n = run.summary["shape"]
    return Picture(
        figure,
        f"{run.summary['dataset']}, {m}-{n}-10 with linear logits: test accuracy by the singular "
        "values kept in the first layer after training, and what each rule would keep.",
    )


def _spectrum(run: Run) -> Picture:
    """The first seed's first layer at four moments of its training."""
    history = run.history()
    steps = history[f"spectra/sigma/{LAYER}"][0]
    epochs = run.summary["epochs"] * steps / run.summary["steps"]
    chosen = sorted({0, min(1, len(steps) - 1), len(steps) // 3, len(steps) - 1})
    parameters = run.load_array("parameters")
    assert parameters is not None
    panels = []
    for place in chosen:
        stored = run.load_array(f"vectors-{steps[place]:08d}")
        assert stored is not None
        panels.append(
            figures.Bulk(
                f"epoch {epochs[place]:g}",
                stored[LAYER][0],
                parameters[LAYER].shape[1:],
                sigma=history[f"spectra/sigma/{LAYER}"][1][place, 0],
                edge=history[f"spectra/edge/{LAYER}"][1][place, 0],
            )
        )
    return Picture(
        figures.bulk_evolution(panels),
        "Singular values of the first layer while it trains (one seed): the bulk stays the noise "
        "that it was initialised with, and signal grows out of it.",
    )


def _dead(run: Run) -> Picture:
    groups = {}
    for arm in run.summary["arms"]:
        stored = run.load_array(arm)
        assert stored is not None
        groups[arm] = stored["dead"], stored["full"]
    return Picture(
        figures.dead_classes(groups),
        "Every trained network by the classes that it never answers: a ReLU on the logits kills "
        "some for ever, and each costs a tenth of the accuracy.",
    )


def _table(run: Run) -> Table:
    rows = []
    linear = run.load_array("linear")
    assert linear is not None
    for rank, ours in zip(RANKS, linear["accuracy"], strict=True):
        row = {"values kept": str(rank), "test accuracy (%)": cell(ours)}
        rows.append({**row, "notebook, one network": f"{NOTEBOOK[rank]:g}"})
    whole = {"values kept": "all", "test accuracy (%)": cell(linear["full"])}
    rows.append({**whole, "notebook, one network": "98.29"})
    return Table("Test accuracy by the singular values kept in the first layer", rows)


def _rules(run: Run) -> Table:
    rows = []
    for arm in run.summary["arms"]:
        stored = run.load_array(arm)
        assert stored is not None
        rows.append(
            {
                "logits": arm,
                **{name: cell(stored[name]) for name in stored if "rank/" in name},
                "distance from the law": cell(stored["ks"]),
                "noise variance / initial": cell(stored["variance ratio"]),
                "test accuracy (%)": cell(stored["full"]),
                "dead classes": cell(stored["dead"]),
            }
        )
    return Table("What each rule keeps, and the networks it is asked of", rows)
