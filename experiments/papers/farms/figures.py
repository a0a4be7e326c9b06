"""The figures and tables of the report, from the results and what the runs stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr

from experiments.papers import curves
from experiments.papers.farms.protocols import METHODS, TITLES
from experiments.papers.farms.studies import operators, pruning
from experiments.papers.farms.studies.bias import name
from experiments.papers.farms.studies.layers import WINDOWS_PER_SLICE
from experiments.papers.farms.studies.llama import SHIPPED, allocation
from experiments.papers.paper import Outcome
from experiments.report.evidence import paired, ratio
from experiments.report.page import Picture, Section
from experiments.report.results import Results
from experiments.report.tables import Table, of_results
from experiments.runs import Run
from spectral_jax import plots, tails
from spectral_jax.plots import farms as figures
from spectral_jax.plots.pruning import pruning_curves
from spectral_jax.plots.training import Curve

EXPONENTS = {"hill": "plain exponent", "farms": "FARMS exponent"}
COLUMNS = {
    "test accuracy (%)": ("test/accuracy", 100.0),
    "train accuracy (%)": ("final_train/accuracy", 100.0),
    "diverged (%)": ("diverged", 100.0),
}
# Epsilon at sparsity .7, .75, .8 and .85, tuned by the authors per cell: AlphaPruning, FARMS.
EPSILONS = {
    "13B wanda": ((0.3, 0.3, 0.3, 0.2), (0.3, 0.3, 0.3, 0.25)),
    "13B sparsegpt": ((0.3, 0.3, 0.2, 0.2), (0.3, 0.3, 0.3, 0.25)),
    "13B magnitude": ((0.5, 0.45, 0.3, 0.15), (0.6, 0.5, 0.4, 0.1)),
    "7B wanda": ((0.2, 0.2, 0.2, 0.1), (0.3, 0.3, 0.3, 0.15)),
    "7B sparsegpt": ((0.2, 0.2, 0.1, 0.15), (0.2, 0.2, 0.2, 0.2)),
    "7B magnitude": ((0.3, 0.3, 0.2, 0.15), (0.6, 0.4, 0.3, 0.2)),
}


def sections(outcome: Outcome) -> list[Section]:
    """A section for whatever the preset measured."""
    made = []
    for protocol, runs in outcome.runs.items():
        if protocol == "bias":
            made.append(_bias(outcome.results, runs["bias"]))
        elif protocol == "layers":
            made.append(_layers(runs["layers"], outcome))
        elif protocol == "pruning":
            made.append(_pruning(outcome.results))
        elif protocol == "operators":
            made.append(_operators(outcome.results))
        elif protocol == "llama":
            made.append(_llama())
        elif protocol in outcome.paper.protocols[outcome.preset]:
            made.append(_learning_rates(protocol, outcome))
    return made


def _learning_rates(protocol: str, outcome: Outcome) -> Section:
    results, arms = outcome.results, outcome.runs[protocol]
    pictures = {}
    if "uniform" in arms and len(arms) > 1:
        gains = {arm: paired(arm, "uniform", protocol=protocol).of(results) for arm in arms}
        differences = {TITLES[arm]: gain for arm, gain in gains.items()
                       if gain is not None and arm != "uniform"}  # fmt: skip
        pictures["paired"] = Picture(
            plots.paired_differences(
                differences, xlabel="test accuracy, minus one learning rate (percentage points)"
            ),
            "Every method against one learning rate for all layers, paired by seed. Open marks: "
            "the interval covers zero.",
        )
    pictures["accuracy"] = curves.accuracy(arms, list(METHODS))
    pictures |= _tails(arms)
    caption = f"{protocol}: every arm, mean and 95 % interval over seeds"
    tables = [
        of_results(results, COLUMNS, caption=caption, protocols=[protocol], against="uniform"),
        of_results(
            results, {"validation accuracy (%)": ("validation/accuracy", 100.0)},
            caption=f"{protocol}: the settings tried (rate-spread), as many for every method",
            protocols=[f"{protocol}/tuning"],
        ),
    ]  # fmt: skip
    return Section(f"Learning rates: {protocol}", protocol, pictures, tables)


def _tails(arms: Mapping[str, Run]) -> dict[str, Picture]:
    shown = "farms" if "farms" in arms else next(iter(arms))
    history = curves.by_epoch(arms[shown])
    panels = {title: _by_layer(history, kind) for kind, title in EXPONENTS.items()}
    if not all(panels.values()):
        return {}
    picture = Picture(
        figures.tail_evolution(panels, _by_layer(history, "scale") or None),
        f"The exponents of each layer while {TITLES[shown]} trains, and what multiplied its "
        "learning rate. At initialisation a plain exponent shows shapes, not training.",
    )
    return {"tails": picture}


def _by_layer(history: Mapping[str, Curve], kind: str) -> dict[str, Curve]:
    """Per layer its course of one kind of number, if the run recorded it."""
    prefix = f"spectra/{kind}/"
    return {
        metric.removeprefix(prefix).removesuffix("/kernel"): curve
        for metric, curve in history.items()
        if metric.startswith(prefix)
    }


def _bias(results: Results, run: Run) -> Section:
    shapes = {
        tuple(int(side) for side in arm.removeprefix("noise/").split("x")): arm
        for arm in results.arms("bias")
        if arm.startswith("noise/")
    }
    pictures = {"shape-bias": _shape_bias(results, shapes), "windows": _windows(run)}
    rows = []
    for shape, arm in sorted(shapes.items()):
        null, plain = tails.null_alpha(shape), results.known("plain", arm=arm, protocol="bias")
        rows.append(
            {
                "shape": name(shape),
                "closed form, infinite size": f"{null.limit:.4f}",
                "closed form, this size": f"{null.mean:.4f} ± {null.deviation:.4f}",
                "plain": _spread(plain),
                "FARMS": _spread(results.known("farms", arm=arm, protocol="bias")),
                "plain, debiased": _spread(plain - null.mean),
            }
        )
    titles = {"plain": "TempBalance", "blocks": "FARMS as released", "windows": "FARMS, sliding"}
    kernels = [
        {
            "kernel (out, in, height, width)": arm.removeprefix("conv/"),
            **{
                title: _spread(results.known(kind, arm=arm, protocol="bias"))
                for kind, title in titles.items()
            },
        }
        for arm in results.arms("bias")
        if arm.startswith("conv/")
    ]
    over = "mean ± standard deviation over draws"
    tables = [
        Table(f"Exponents of noise: {over}", rows),
        Table(f"Convolutions as initialised: {over}", kernels),
    ]
    return Section("Shape bias and windows", "bias", pictures, tables)


def _shape_bias(results: Results, shapes: Mapping[tuple[int, ...], str]) -> Picture:
    sides = [shape[0] for shape in shapes]
    short = max(sides, key=sides.count)
    family = sorted(shape for shape in shapes if shape[0] == short)
    aspects = np.array([long / short for _, long in family])
    alphas = {
        title: np.stack(
            [results.known(kind, arm=shapes[shape], protocol="bias") for shape in family]
        )
        for kind, title in (("plain", "plain (TempBalance)"), ("farms", "FARMS"))
    }
    x = np.geomspace(1, aspects.max(), 100)
    law = x, np.array([tails.marchenko_pastur_alpha(1 / aspect) for aspect in x])
    caption = (
        f"Exponents of Gaussian matrices with a short side of {short}. What the plain one measures "
        "here is the shape alone; the closed form knows it without a measurement."
    )
    return Picture(figures.shape_bias(aspects, alphas, law=law), caption)


def _windows(run: Run) -> Picture:
    stored = run.array("ablation")
    named = {
        f"columns / rows = {ratio:g}": values
        for ratio, values in zip(stored["ratios"], stored["alphas"], strict=True)
    }
    caption = (
        f"FARMS on {name(stored['shape'].tolist())} noise with as many windows as tile it, placed "
        "at random. Left: a window has the bias of its own shape. Right: how much of an exponent "
        "is due to where its windows fell."
    )
    return Picture(figures.window_ablation(stored["windows"], named), caption)


def _layers(run: Run, outcome: Outcome) -> Section:
    networks = outcome.results.arms("layers")
    stored = {network: run.array(network) for network in networks}
    pictures = {network: _agreement(network, stored[network]) for network in networks}
    tables = [_layers_table(network, stored[network]) for network in networks]
    return Section("Layers of trained networks", "agreement", pictures, tables)


def _agreement(network: str, stored: Mapping[str, np.ndarray]) -> Picture:
    metrics = {metric: stored[metric] for metric in ("plain", "null", "debiased")}
    metrics |= {
        f"FARMS {window}, {ratio:g}": stored["farms"][i, j].mean(axis=-1)
        for i, ratio in enumerate(stored["ratios"])
        for j, window in enumerate(stored["windows"])
    }
    values = np.stack(list(metrics.values()), axis=1)
    correlation = spearmanr(values, nan_policy="omit").statistic
    caption = (
        f"{network}: do the metrics rank its {len(values)} layers alike? 'shape alone' knows no "
        "weights; 'FARMS w, r' has windows of w rows and r columns per row."
    )
    labels = ["shape alone" if metric == "null" else metric for metric in metrics]
    return Picture(figures.rank_agreement(labels, np.asarray(correlation)), caption)


def _layers_table(network: str, stored: Mapping[str, np.ndarray]) -> Table:
    against = {"rank correlation with plain": "plain", "with debiased": "debiased",
               "with the shape alone": "null"}  # fmt: skip
    rows = []
    for i, columns in enumerate(stored["ratios"]):
        for j, window in enumerate(stored["windows"]):
            placed = stored["farms"][i, j]
            own, mean = placed.std(axis=-1, ddof=1), placed.mean(axis=-1)
            rows.append(
                {
                    "rows of a window": f"{window}",
                    "columns per row": f"{columns:g}",
                    "sd over placements, mean of layers": f"{np.nanmean(own):.3f}",
                    "sd over layers": f"{np.nanstd(mean, ddof=1):.3f}",
                    **{
                        title: f"{spearmanr(mean, stored[kind], nan_policy='omit').statistic:.2f}"
                        for title, kind in against.items()
                    },
                }
            )
    caption = (
        f"{network}, {len(stored['plain'])} layers: the spread of FARMS' exponent over where its "
        f"{WINDOWS_PER_SLICE} windows per slice fall, beside what it is to tell apart"
    )
    return Table(caption, rows)


def _pruning(results: Results) -> Section:
    """Perplexity over sparsity, differences by seed, and every cell of the table."""
    arms = [arm for arm in results.arms("pruning") if arm not in ("dense", "exponents")]
    first = results.metrics(arm=arms[0], protocol="pruning")
    sparsities = [float(metric.partition("/")[2]) for metric in first if "/" in metric]
    losses: dict[str, dict[str, np.ndarray]] = {}
    for arm in arms:
        pruner, _, allocation = arm.partition("/")
        found = [
            results.known(f"perplexity/{s:g}", arm=arm, protocol="pruning") for s in sparsities
        ]
        losses.setdefault(pruner, {})[pruning.ARMS[allocation]] = np.log(found)
    dense = np.log(results.known("perplexity", arm="dense", protocol="pruning"))
    pictures = {}
    for by in ("block", "layer"):
        shown = {
            pruner: {arm: v for arm, v in by_arm.items() if arm == "uniform" or arm.endswith(by)}
            for pruner, by_arm in losses.items()
        }
        pictures[f"{by}s"] = Picture(
            pruning_curves(
                sparsities, shown, dense=dense, reference="uniform",
                arms=list(pruning.ARMS.values()),
            ),
            f"A character GPT pruned, sparsity allocated by {by}: perplexity, and its change "
            "against uniform sparsity, paired by seed (logarithmic beyond 10 %).",
        )  # fmt: skip
    columns = {f"S = {s:g}": (f"perplexity/{s:g}", 1.0) for s in sparsities}
    certainty = {
        "sd of FARMS alpha from block to block": ("block_sd", 1.0),
        f"sd over {pruning.WINDOW_DRAWS} sets of random windows": ("window_sd", 1.0),
    }
    tables = [
        of_results(results, columns, caption="Validation perplexity, mean and 95 % interval",
                   protocols=["pruning"], arms=arms),
        of_results(results, certainty, caption="How certain a block's exponent is",
                   protocols=["pruning"], arms=["exponents"]),
    ]  # fmt: skip
    return Section("Sparsity allocation on a character GPT", "pruning", pictures, tables)


def _operators(results: Results) -> Section:
    """Differences by seed, and every cell of the table."""
    words = {"full": "all data", "tenth": "1/10 data"}
    differences = {}
    for share, arm in operators.CELLS:
        change = ratio(f"{share}/{arm}", f"{share}/adam", protocol="operators", metric="test/error")
        found = change.of(results)
        if arm != "adam" and found is not None:
            title = operators.ARMS[arm].removeprefix("TB-Sigmoid, ")
            differences[f"{title}, {words[share]}"] = found
    picture = Picture(
        plots.paired_differences(
            differences, xlabel="relative L2 error, change against Adam (%), paired by seed"
        ),
        "Fine-tuning a Fourier neural operator with TB-Sigmoid: change of the test error against "
        "Adam alone, each arm at its own best learning rate.",
    )
    columns = {
        "error before fine-tuning (%)": ("before/error", 100.0),
        "error (%)": ("test/error", 100.0),
        "learning rate": ("learning_rate", 1.0),
    }
    table = of_results(results, columns, caption="Relative L2 error, mean and 95 % interval",
                       protocols=["operators"])  # fmt: skip
    return Section("A Fourier neural operator moved from one fluid to another", "operators",
                   {"paired": picture}, [table])  # fmt: skip


def _llama() -> Section:
    """The protocol as a table, and the sparsities of the blocks."""
    protocol = [
        {"model, pruner": cell, "method": method}
        | {f"sparsity {s:g}": f"{e:g}" for s, e in zip((0.7, 0.75, 0.8, 0.85), row, strict=True)}
        for cell, rows in EPSILONS.items()
        for method, row in zip(("AlphaPruning", "FARMS"), rows, strict=True)
    ]
    ratios = allocation(SHIPPED, 0.8, 0.2)
    blocks = {
        "exponents": "shipped FARMS exponents of LLaMA-7B",
        "mean": f"{np.mean(SHIPPED):.3f}",
        "blocks": f"{len(SHIPPED)}",
        "least and greatest sparsity": f"{ratios.min():.4f}, {ratios.max():.4f}",
    }
    tables = [
        Table("The published grid of epsilon, re-tuned per cell and method", protocol),
        Table("Block sparsities at .8, epsilon .2", [blocks]),
    ]
    return Section("Sparsity of LLaMA's blocks", tables=tables)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"
