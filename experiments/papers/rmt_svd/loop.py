"""Split a network while it trains, by the edge of its noise, against every control there is.

All arms of a seed share their first epochs. Then each is cut in its own way, put into factors where
that saves parameters, and trained on for as long, at each of the same learning rates: factors take
larger steps than the kernel that they multiply to, so a rate that suits one arm flatters it. Every
arm is trained with and without a ReLU on the logits, with and without weight decay; ranks differ
from seed to seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.rmt_svd.training import (
    Member,
    Task,
    Tree,
    in_turn,
    make_task,
    trained_study,
)
from experiments.runs import Run
from experiments.training.program import TrainState
from spectral_jax import prune, rmt
from spectral_jax.prune import Policy, surgery

# Padded ranks are multiples of this part of a layer's smaller side, so that arms share programs.
PAD = 8
RATE = 0.08  # of the released code, until the split
RATES = (0.02, 0.08)  # after it, and from the start for arms that begin untrained
CELLS: dict[str, dict[str, Any]] = {
    "linear": {"relu": False, "l2": 0.0},
    "linear, L2": {"relu": False, "l2": 5e-4},
    "ReLU": {"relu": True, "l2": 0.0},
    "ReLU, L2": {"relu": True, "l2": 5e-4},
}


@dataclass(frozen=True)
class Arm:
    """What happens to the network after its first epochs.

    policy: cuts by the fit of each layer; or else
    like: an arm whose parameters are to be matched, by its ranks, by one rank for all layers
      (`equal`), or by single weights (`entries`), the largest everywhere.
    untrained: cut the initial weights, and train the factors from scratch.
    forget: begin again with no momentum.
    """

    title: str
    policy: Policy | None = None
    like: str = ""
    by: Literal["ranks", "equal", "entries"] = "ranks"
    gavish_donoho: bool = False
    untrained: bool = False
    forget: bool = False


SPLIT, EDGE = "45 % of the noise kept", "no noise kept"
ARMS = {
    "dense": Arm("dense"),
    "dense-reset": Arm("dense, momentum lost", forget=True),
    # The text removes 45 % of the values below the edge; the released code keeps 45 %.
    "split": Arm(f"split, {SPLIT}", Policy(keep_below=0.45)),
    "split-reset": Arm("split, momentum lost", Policy(keep_below=0.45), forget=True),
    "split-55": Arm("split, 45 % of the noise removed", Policy(keep_below=0.55)),
    "split-random": Arm("split, random 45 % kept", Policy("random", keep_below=0.45)),
    "split-init": Arm(
        "split before training, as released", Policy(keep_below=0.45, keep_offset=1), untrained=True
    ),
    "split-scratch": Arm("its ranks from scratch", like="split", untrained=True),
    "split-fixed": Arm("one rank, as many parameters", like="split", by="equal"),
    "split-magnitude": Arm("magnitude, as many parameters", like="split", by="entries"),
    "edge": Arm(f"MP edge, {EDGE}", Policy()),
    "edge-scratch": Arm("MP ranks from scratch", like="edge", untrained=True),
    "edge-fixed": Arm("one rank, MP's parameters", like="edge", by="equal"),
    "edge-magnitude": Arm("magnitude, MP's parameters", like="edge", by="entries"),
    "gd": Arm("Gavish-Donoho threshold", Policy(), gavish_donoho=True),
    "shrink": Arm("MP noise, shrunk", Policy("shrink")),
}
SMOKE_ARMS = ("dense", "split", "edge", "edge-fixed", "edge-magnitude")
_SMALL: dict[str, Any] = {
    "dataset": "mnist", "train_limit": 5000, "validation": 2000, "hidden": (300, 300),
    "batch_size": 128, "before": 6, "after": 6, "seeds": 8, "arms": tuple(ARMS),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "smoke": {
        **_SMALL, "dataset": "digits", "train_limit": 1000, "validation": 400, "hidden": (96, 96),
        "batch_size": 32, "before": 3, "after": 3, "seeds": 3, "arms": SMOKE_ARMS,
    },
    "small": _SMALL,
    "paper": {
        **_SMALL, "train_limit": 50_000, "validation": 10_000, "hidden": (500, 500),
        "before": 15, "after": 15,
    },
}  # fmt: skip


def run(preset: str, *, root: str | Path) -> Run:
    """Every arm of a preset, trained or found."""
    options = {**OPTIONS[preset], "rate": RATE, "rates": RATES}
    return trained_study("loop", measure, options, root)


def measure(
    run: Run,
    *,
    before: int,
    after: int,
    seeds: int,
    arms: Sequence[str],
    rate: float,
    rates: Sequence[float],
    **options: Any,
) -> dict[str, Any]:
    """An array per arm, numbers ``[rates, cells, seeds]``; a finished arm is not trained again."""
    task = make_task(**options)
    drawn = task.start(members(seeds, rate))
    layers = tuple(f"layers/{i}/kernel" for i in range(len(options["hidden"])))
    trunk = at_rates(_trunk(run, task, drawn, before), rates)
    untrained = at_rates(drawn, rates)
    for name in arms:
        if run.load_array(name) is None:
            arm = ARMS[name]
            like = run.load_array(arm.like) if arm.like else None
            flat = like and {key: values.ravel() for key, values in like.items()}
            cut = cut_at(arm, untrained if arm.untrained else trunk, layers, flat)
            state = task.restart(cut.state) if arm.forget else cut.state
            numbers = cut.numbers
            state = task.train(state, before + after if arm.untrained else after)
            numbers |= task.assess(state)
            for layer, row in fits(state.params, layers).items():
                numbers[f"ks after/{layer}"] = np.asarray(row.ks)
                numbers[f"spikes after/{layer}"] = np.asarray(row.spikes)
            shape = len(rates), len(CELLS), seeds
            run.save_array(name, **{key: np.reshape(v, shape) for key, v in numbers.items()})
            run.log(f"loop: {name} is trained")
    return {
        "dataset": options["dataset"],
        "seeds": seeds,
        "rates": list(rates),
        "layers": list(layers),
        "arms": list(arms),
    }


def members(seeds: int, rate: float) -> list[Member]:
    """Cells, and the same seeds in each."""
    return [Member(seed, rate, **cell) for cell, seed in product(CELLS.values(), range(seeds))]


def at_rates(state: TrainState, rates: Sequence[float]) -> TrainState:
    """All members once for every learning rate."""
    count = len(state.key)
    copies = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * len(rates)), state)
    rate = jnp.repeat(jnp.array(rates, jnp.float32), count)
    return copies._replace(hyper={**copies.hyper, "learning_rate": rate})


def _trunk(run: Run, task: Task, drawn: TrainState, epochs: int) -> TrainState:
    """What the arms have in common: trained once, and found again after an interruption."""
    found = run.restore_checkpoint(drawn)
    if found is not None:
        return found[1]
    trunk = task.train(drawn, epochs)
    run.save_checkpoint(int(trunk.step[0]), trunk)
    return trunk


class Cut(NamedTuple):
    """The state to go on from, and per member what was seen and done."""

    state: TrainState
    numbers: dict[str, np.ndarray]


def cut_at(
    arm: Arm, state: TrainState, layers: Sequence[str], like: Mapping[str, np.ndarray] | None
) -> Cut:
    """The state after the arm's surgery, its momentum carried over to the factors."""
    seen = fits(state.params, layers)
    shapes = {layer: leaf(state.params, layer).shape[1:] for layer in layers}
    total = sum(leaf[0].size for leaf in jax.tree.leaves(state.params))
    numbers = {f"ks before/{layer}": np.asarray(row.ks) for layer, row in seen.items()}
    numbers |= {f"sigma/{layer}": np.asarray(row.sigma) for layer, row in seen.items()}
    ranks = {layer: np.full(len(state.key), min(shape)) for layer, shape in shapes.items()}
    costs = {layer: np.full(len(state.key), m * n) for layer, (m, n) in shapes.items()}
    if arm.policy is not None or like is not None:
        params, ranks = _cut_params(arm, state, layers, like)
        again = fits(params, layers)
        numbers |= {f"ks cut/{layer}": np.asarray(row.ks) for layer, row in again.items()}
        if arm.by == "entries":
            assert like is not None
            costs = {layer: like[f"parameters/{layer}"] for layer in layers}
            state = state._replace(params=params)
        else:
            state, costs = in_factors(state, params, ranks)
    inner = sum(ranks[layer] * (costs[layer] < np.prod(shapes[layer])) for layer in layers)
    parameters = total + sum(costs[layer] - np.prod(shapes[layer]) for layer in layers)
    numbers |= {f"rank/{layer}": rank for layer, rank in ranks.items()}
    numbers |= {f"parameters/{layer}": cost for layer, cost in costs.items()}
    numbers |= {"parameters": parameters}
    if arm.by != "entries":
        numbers |= {"parameters, a bias each": parameters + inner}
    return Cut(state, numbers)


def _cut_params(
    arm: Arm, state: TrainState, layers: Sequence[str], like: Mapping[str, np.ndarray] | None
) -> tuple[Tree, dict[str, np.ndarray]]:
    """The kernels as cut, in their shapes, and the ranks that are left."""
    if arm.policy is not None:
        fit = gavish_donoho if arm.gavish_donoho else None
        pruned = in_turn(_pruning(arm.policy, tuple(layers), fit), state.params, state.key)
        return pruned.params, {layer: np.asarray(pruned.report[layer].rank) for layer in layers}
    assert like is not None
    shapes = {layer: leaf(state.params, layer).shape[1:] for layer in layers}
    if arm.by == "entries":
        shares = {
            layer: jnp.asarray(1 - like[f"parameters/{layer}"] / np.prod(shape))
            for layer, shape in shapes.items()
        }
        whole = {layer: np.full(len(state.key), min(shape)) for layer, shape in shapes.items()}
        return _largest_entries(state.params, shares), whole
    ranks = {layer: like[f"rank/{layer}"] for layer in layers}
    if arm.by == "equal":
        spent = sum(like[f"parameters/{layer}"] for layer in layers)
        # Rounded up: this arm never has fewer parameters than the one it is held against.
        common = -(-spent // sum(map(sum, shapes.values())))
        ranks = {layer: np.minimum(common, min(shape)) for layer, shape in shapes.items()}
    cut = {
        layer: in_turn(surgery.truncate, leaf(state.params, layer), jnp.asarray(rank))
        for layer, rank in ranks.items()
    }
    return replaced(state.params, cut), ranks


def in_factors(
    state: TrainState, params: Tree, ranks: Mapping[str, np.ndarray]
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """The members with two factors for every kernel that they make smaller in all of them.

    Returns what each kernel then costs, too. Members share shapes: smaller ranks are padded.
    """
    costs, padded = {}, {}
    for layer, rank in ranks.items():
        *inputs, n = leaf(params, layer).shape[1:]
        m = prod(inputs)
        costs[layer] = rank * (m + n)
        if prune.split_refusal((m, n), int(max(rank))):
            costs[layer] = np.full(len(rank), m * n)
            continue
        step = max(1, min(m, n) // PAD)
        most = (m * n - 1) // (m + n)
        padded[layer] = min(-(-int(max(rank)) // step) * step, most)
    if not padded:
        return state._replace(params=params), costs
    split = {
        layer: in_turn(_splitting(rank), leaf(params, layer), jnp.asarray(ranks[layer]))
        for layer, rank in padded.items()
    }
    factors = replaced(params, split)
    opt_state = _carry(state.opt_state, state.params, factors)
    return state._replace(params=factors, opt_state=opt_state), costs


def gavish_donoho(eigenvalues: jax.Array, shape: tuple[int, int]) -> rmt.MPFit:
    """The fit of the bulk with the optimal hard threshold, noise unknown, for an edge."""
    floor = 16 * float(jnp.finfo(eigenvalues.dtype).eps)
    fit = rmt.fit_marchenko_pastur(eigenvalues, shape, floor=floor)
    values = jnp.sqrt(jnp.maximum(eigenvalues, 0) * max(shape))
    threshold = rmt.hard_threshold(shape, singular_values=values)
    spikes = jnp.sum(values > threshold).astype(jnp.int32)
    return fit._replace(edge=threshold**2 / max(shape), threshold=threshold, spikes=spikes)


def leaf(params: Tree, path: str) -> Any:
    """What stands at a path of the tree."""
    for name in path.split("/"):
        params = params[name]
    return params


def replaced(params: Tree, leaves: Mapping[str, Any]) -> Tree:
    """The tree with other leaves at these paths."""
    return jax.tree.map_with_path(
        lambda path, old: leaves.get(jax.tree_util.keystr(path, simple=True, separator="/"), old),
        params,
    )


def fits(params: Tree, layers: Sequence[str]) -> dict[str, prune.LayerReport]:
    """The fit of every member's layers, their factors multiplied; changes nothing."""
    return in_turn(_fits(tuple(layers)), params)


@cache
def _fits(layers: tuple[str, ...]) -> Callable[[Tree], dict[str, prune.LayerReport]]:
    policies = dict.fromkeys(layers, Policy())
    return lambda params: prune.prune_spectra(prune.recombine_all(params), policies).report


@cache
def _pruning(policy: Policy, layers: tuple[str, ...], fit: Any) -> Callable[..., prune.Pruning]:
    policies = dict.fromkeys(layers, policy)
    return lambda params, key: prune.prune_spectra(params, policies, fit=fit, key=key)


@jax.jit
def _largest_entries(params: Tree, shares: Mapping[str, jax.Array]) -> Tree:
    def mask(kernel, share):
        return jnp.where(prune.magnitude_mask(kernel, share), kernel, 0)

    cut = {layer: jax.vmap(mask)(leaf(params, layer), share) for layer, share in shares.items()}
    return replaced(params, cut)


@cache
def _splitting(padded: int) -> Callable[[jax.Array, jax.Array], Tree]:
    """Factors of a common rank; what a member's own rank does not reach is exactly 0."""

    def split(kernel, rank):
        factors = surgery.split(kernel, padded)
        inside = jnp.arange(padded) < rank
        return {"u": factors["u"] * inside, "v": factors["v"] * inside[:, None]}

    return split


@jax.jit
def _carry(opt_state: Tree, before: Tree, after: Tree) -> Tree:
    return jax.vmap(prune.carry_moments)(opt_state, before, after)
