"""Convolutions: LeNet-5 split while it trains, with the gates of arXiv 2310.03165 and without.

A convolution is split as a matrix ``[window x in, out]`` into one of its window and a 1 x 1 one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.claims import Claim, Judged, judge
from experiments.papers.rmt_svd.loop import in_factors, leaf
from experiments.papers.rmt_svd.training import Member, Tree, in_turn, make_task, trained_study
from experiments.report import Row, Section, Table, cell
from experiments.runs import Run
from experiments.training.program import TrainState
from spectral_jax import prune
from spectral_jax.prune import Policy

CONVOLUTIONS, DENSE = ("convs/0/kernel", "convs/1/kernel"), ("dense/0/kernel", "dense/1/kernel")
LAYERS = (*CONVOLUTIONS, *DENSE)
# Arm -> policy of the convolutions, policy of the dense layers; None: not cut.
ARMS: dict[str, tuple[Policy, Policy] | None] = {
    "dense": None,
    "split": (Policy(keep_below=0.45), Policy(keep_below=0.45)),
    "split, gates as published": (Policy(keep_below=0.45, gate=0.6),
                                  Policy(keep_below=0.45, gate=0.05)),
    "MP edge": (Policy(), Policy()),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "small": {
        "dataset": "mnist", "train_limit": 3200, "batch_size": 64, "model": "lenet",
        "seed_axis": "stepwise", "rate": 0.02, "before": 3, "after": 3, "seeds": 5,
    },
    "paper": {
        "dataset": "fashion_mnist", "train_limit": None, "batch_size": 128, "model": "lenet",
        "seed_axis": "stepwise", "rate": 0.02, "before": 11, "after": 19, "seeds": 5,
    },
}  # fmt: skip


def run(preset: str, *, root: str | Path) -> Run | None:
    """Every arm of a preset, trained or found; None where the preset has none."""
    return trained_study("cnn", measure, OPTIONS[preset], root) if preset in OPTIONS else None


def measure(
    run: Run, *, rate: float, before: int, after: int, seeds: int, **options: Any
) -> dict[str, Any]:
    """An array per arm, numbers ``[seeds]``; a finished arm is not trained again."""
    task = make_task(**options)
    drawn = task.start([Member(seed, rate) for seed in range(seeds)])
    found = run.restore_checkpoint(drawn)
    trunk = found[1] if found else task.train(drawn, before)
    if not found:
        run.save_checkpoint(before, trunk)
    for name, policies in ARMS.items():
        if run.load_array(_file(name)) is None:
            state, numbers = cut_at(trunk, policies)
            state = task.train(state, after)
            run.save_array(_file(name), **numbers, **task.assess(state))
            run.log(f"cnn: {name} is trained")
    return {"dataset": options["dataset"], "arms": list(ARMS), "seeds": seeds}


def cut_at(
    state: TrainState, policies: tuple[Policy, Policy] | None
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """The state after the split of those layers whose gate is open, and what it then costs."""
    total = sum(kernel[0].size for kernel in jax.tree.leaves(state.params))
    if policies is None:
        return state, {"parameters": np.full(len(state.key), total)}
    pruned = in_turn(_pruning(policies), state.params)
    rows = {layer: pruned.report[layer] for layer in LAYERS}
    # Members share shapes: a layer is split where all of them were pruned.
    ranks = {
        layer: np.asarray(row.rank)
        for layer, row in rows.items()
        if np.all(np.asarray(row.status) == prune.PruneStatus.PRUNED)
    }
    sizes = {layer: leaf(state.params, layer)[0].size for layer in ranks}
    state, costs = in_factors(state, pruned.params, ranks)
    numbers = {f"rank/{layer}": np.asarray(row.rank) for layer, row in rows.items()}
    numbers |= {f"ks/{layer}": np.asarray(row.ks) for layer, row in rows.items()}
    saved = [sizes[layer] - cost for layer, cost in costs.items()]
    return state, {**numbers, "parameters": total - sum(saved, np.zeros(len(state.key), int))}


@cache
def _pruning(policies: tuple[Policy, Policy]) -> Any:
    of_convolutions, of_dense = policies
    chosen = {**dict.fromkeys(CONVOLUTIONS, of_convolutions), **dict.fromkeys(DENSE, of_dense)}

    def cut(params: Tree) -> prune.Pruning:
        return prune.prune_spectra(params, chosen)

    return cut


def claims(run: Run | None, command: str) -> list[Judged]:
    """Does a split help or harm a network with convolutions?"""
    found = _stored(run) if run else {}
    claim = partial(
        Claim, origin="published", direction=1, unit=" points", cost="preset small",
        difference="LeNet-5 on 3,200 digits, not five convolutions; one rate for all arms",
    )  # fmt: skip
    rows: list[tuple[Claim, Any]] = []
    for arm in list(ARMS)[1:]:
        gain = claim(
            f"cnn-{_file(arm)}", f"LeNet-5: {arm} tests better than the dense network (paired)",
            "arXiv 2310.03165",
        )  # fmt: skip
        change = found and found[arm]["test accuracy"] - found["dense"]["test accuracy"]
        rows.append((gain, change if found else None))
    return [judge(one, evidence, command=command) for one, evidence in rows]


def section(run: Run, folder: Path) -> Section:
    """A table: accuracy, parameters and ranks of every arm."""
    found = _stored(run)
    rows: list[Row] = [
        {
            "arm": arm,
            "test accuracy (%)": cell(one["test accuracy"]),
            "minus dense, paired": cell(one["test accuracy"] - found["dense"]["test accuracy"]),
            "parameters": f"{one['parameters'].mean():.0f}",
            "dead classes": cell(one["dead classes"]),
            **{f"rank, {layer}": cell(one[f"rank/{layer}"]) for layer in LAYERS
               if f"rank/{layer}" in one},
            **{f"distance, {layer}": cell(one[f"ks/{layer}"]) for layer in LAYERS
               if f"ks/{layer}" in one},
        }
        for arm, one in found.items()
    ]  # fmt: skip
    caption = f"LeNet-5 on {run.summary['dataset']}, linear logits: mean and 95 % interval"
    return Section("Convolutions: a split LeNet-5", tables=[Table(caption, rows)])


def _stored(run: Run) -> Mapping[str, Mapping[str, np.ndarray]]:
    found = {}
    for arm in run.summary["arms"]:
        stored = run.load_array(_file(arm))
        assert stored is not None
        found[arm] = stored
    return found


def _file(arm: str) -> str:
    return arm.replace(",", "").replace(" ", "-")
