"""The LLaMA protocol: sparsity per block from tail exponents, on the weights where they are.

A checkpoint in ``$SPECTRAL_JAX_DATA/llama-7b`` or ``llama-13b`` (safetensors or PyTorch) is read
one tensor at a time, and every block's exponents are kept, so that a stopped run goes on. Pruning
it and measuring its perplexity takes a GPU and stays outside: the claims say at what cost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.claims import Claim, Judged, judge
from experiments.report import Section, Table
from experiments.runs import Run
from experiments.runs.study import study
from spectral_jax import checkpoints, optim, tails
from spectral_jax.linalg import svdvals

SHEET = "our computation before this repository (alphas shipped with HUST-AI-HYZ/FARMS)"
PAPER = "arXiv 2506.06280, abstract"
LINEAR = re.compile(r"layers\.(\d+)\.(self_attn|mlp)\.\w+_proj\.weight$")
MODELS = {"llama-7b": 10, "llama-13b": 15}  # windows per axis

# Epsilon at sparsity .7, .75, .8 and .85, tuned by the authors per cell and method.
CELLS = {
    "13B wanda": ((0.3, 0.3, 0.3, 0.2), (0.3, 0.3, 0.3, 0.25)),
    "13B sparsegpt": ((0.3, 0.3, 0.2, 0.2), (0.3, 0.3, 0.3, 0.25)),
    "13B magnitude": ((0.5, 0.45, 0.3, 0.15), (0.6, 0.5, 0.4, 0.1)),
    "7B wanda": ((0.2, 0.2, 0.2, 0.1), (0.3, 0.3, 0.3, 0.15)),
    "7B sparsegpt": ((0.2, 0.2, 0.1, 0.15), (0.2, 0.2, 0.2, 0.2)),
    "7B magnitude": ((0.3, 0.3, 0.2, 0.15), (0.6, 0.4, 0.3, 0.2)),
}
# Block means of the shipped FARMS exponents of LLaMA-7B, 10 windows per axis.
SHIPPED = (
    2.7110, 2.9730, 3.1361, 3.3717, 3.4407, 3.1842, 3.2480, 3.2418, 3.1282, 2.9487, 3.0588, 2.9800,
    2.9582, 3.1312, 3.2705, 3.2832, 3.6961, 3.7878, 3.9470, 3.7765, 3.7392, 4.0945, 4.0432, 4.1338,
    3.8568, 4.3575, 4.3146, 4.4912, 4.2850, 4.4868, 4.1064, 3.8798,
)  # fmt: skip


def run(preset: str, *, root: str | Path) -> Run:
    """Exponents of the models whose weights are there, at any preset; none is the usual case."""
    present = [name for name in MODELS if _folder(name).is_dir()] if preset != "smoke" else []
    return study("farms/llama", measure, options={"models": present}, root=root)


def measure(run: Run, *, models: list[str]) -> dict[str, Any]:
    """Plain and FARMS exponents of each block's seven linear layers, block by block."""
    for model in models:
        with checkpoints.open_checkpoint(_folder(model)) as stored:
            blocks: dict[int, list[str]] = {}
            for name in stored.tensors:
                if found := LINEAR.search(name):
                    blocks.setdefault(int(found[1]), []).append(name)
            for block, names in sorted(blocks.items()):
                if run.load_array(f"{model}-{block}") is None:
                    alphas = [exponents(stored.read(name), MODELS[model]) for name in names]
                    plain, farms = np.transpose(alphas)
                    run.save_array(f"{model}-{block}", names=names, plain=plain, farms=farms)
    return {"models": models}


def exponents(weight: np.ndarray, samples: int) -> tuple[float, float]:
    """Plain and FARMS exponent of a layer by the released rule, ``xmin_peak``."""
    matrix = jnp.asarray(weight, jnp.float32)
    fit = partial(tails.power_law_fit, xmin="peak", paper_compat="peak_log10")
    windows = tails.farms_eigenvalues(
        matrix, window=2000, samples=samples, paper_compat={"floor_step"}
    )
    return float(fit(svdvals(matrix) ** 2).alpha), float(fit(windows).alpha)


def claims(run: Run, command: str) -> list[Judged]:
    """The shipped exponents through our allocation; ours on the weights; what a GPU could say."""
    shipped = np.asarray(allocation(SHIPPED, 0.8, 0.2))
    reference = partial(Claim, source=SHEET, origin="our reference", tolerance=1e-4)
    rows: list[tuple[Claim, Any]] = [
        (
            reference(
                id=f"llama-7b-shipped-{which}",
                text=f"{which} block sparsity of LLaMA-7B at .8, epsilon .2, from the shipped "
                "FARMS exponents",
                value=value,
            ),
            [extreme],
        )
        for which, value, extreme in (
            ("least", 0.6408, shipped.min()),
            ("greatest", 0.9612, shipped.max()),
        )
    ]
    cost = (
        "the weights (13 GB) in $SPECTRAL_JAX_DATA/llama-7b and, for FARMS, 22,400 SVDs of "
        "2000 x 2000: some 13 hours of one CPU core"
    )
    rows.append((_agreement(cost), _correlation(run)))
    perplexity = partial(
        Claim,
        source=PAPER,
        origin="published",
        cost="the weights (13 or 26 GB) and a GPU of 24 or 48 GB, about an hour a cell: calibrate "
        "on 128 x 2048 tokens of C4, prune, measure perplexity on WikiText-2",
    )
    rows += [
        (perplexity(id=id, text=text, value=value, tolerance=tolerance), None)
        for id, text, value, tolerance in (
            ("llama-7b-sparsegpt", "LLaMA-7B, SparseGPT at .8: perplexity with FARMS (96.02 with "
             "AlphaPruning)", 79.42, 1.0),
            ("llama-13b-magnitude", "LLaMA-13B, magnitude at .7: perplexity with FARMS (2029.20 "
             "with AlphaPruning)", 413.76, 5.0),
        )
    ]  # fmt: skip
    return [judge(claim, value, command=command) for claim, value in rows]


def section(run: Run, folder: Path) -> Section:
    """The protocol as a table, and the sparsities of the blocks."""
    protocol = [
        {"model, pruner": cell, "method": method}
        | {f"sparsity {s:g}": f"{e:g}" for s, e in zip((0.7, 0.75, 0.8, 0.85), row, strict=True)}
        for cell, rows in CELLS.items()
        for method, row in zip(("AlphaPruning", "FARMS"), rows, strict=True)
    ]
    means = {"shipped FARMS exponents of LLaMA-7B": np.array(SHIPPED)}
    for model in run.summary["models"]:
        means |= {f"{model}, our {kind}": _block_means(run, model, kind) for kind in KINDS}
    rows = [
        {
            "exponents": name,
            "mean": f"{values.mean():.3f}",
            "blocks": f"{len(values)}",
            "least and greatest sparsity": "{:.4f}, {:.4f}".format(
                *np.quantile(allocation(values, 0.8, 0.2), (0, 1))
            ),
        }
        for name, values in means.items()
    ]
    tables = [
        Table("The published grid of epsilon, re-tuned per cell and method", protocol),
        Table("Block sparsities at .8, epsilon .2", rows),
    ]
    return Section("Sparsity of LLaMA's blocks", tables=tables)


def allocation(means: Any, sparsity: float, epsilon: float) -> np.ndarray:
    """Sparsity per block from block means, all blocks of one size as in LLaMA."""
    alpha = jnp.asarray(means, jnp.float32)
    found = optim.alpha_pruning(alpha, jnp.ones(len(alpha)), sparsity, epsilon=epsilon)
    return np.asarray(found.ratios)


KINDS = ("plain", "farms")


def _agreement(cost: str) -> Claim:
    return Claim(
        id="llama-7b-exponents",
        text="our FARMS exponents of LLaMA-7B rank its blocks as the shipped ones do (correlation)",
        source=SHEET,
        origin="released code",
        value=1.0,
        tolerance=0.1,
        cost=cost,
        difference="the peak rule is not exactly reproducible: the authors' two releases correlate "
        ".99",
    )


def _correlation(run: Run) -> list[float] | None:
    if "llama-7b" not in run.summary["models"]:
        return None
    ours = _block_means(run, "llama-7b", "farms")
    return [float(np.corrcoef(ours, SHIPPED)[0, 1])]


def _block_means(run: Run, model: str, kind: str) -> np.ndarray:
    stored: list[Mapping[str, np.ndarray]] = []
    while (block := run.load_array(f"{model}-{len(stored)}")) is not None:
        stored.append(block)
    return np.array([np.nanmean(block[kind]) for block in stored])


def _folder(model: str) -> Path:
    return Path(os.environ.get("SPECTRAL_JAX_DATA", "")) / model
