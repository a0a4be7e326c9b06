"""Split a network while it trains, by the edge of its noise, against every control there is.

All arms of a seed share their first epochs. Then each is cut in its own way, put into factors where
that saves parameters, and trained on for as long. Factors take larger steps than the kernel that
they multiply to, so a rate that suits one arm flatters it: every arm has the same rates to choose
from, by validation data of seeds of their own. Every arm is trained with and without a ReLU on the
logits, with and without weight decay; ranks differ from seed to seed.

Results: arm ``<cell>/<arm>`` of protocol ``loop``, or ``loop/<dataset>`` where it is not MNIST;
``<cell>/<arm>@<rate>`` of ``loop/tuning``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers.paper import FRESH
from experiments.papers.rmt_svd.networks import (
    Tree,
    assess,
    fits,
    in_factors,
    in_turn,
    leaf,
    replaced,
    trainer_of,
    trial,
)
from experiments.report.results import Results, merge, of_arrays
from experiments.report.selection import TUNING, choose
from experiments.runs import Run
from experiments.training.program import TrainState
from experiments.training.trainer import Trainer
from spectral_jax import prune, rmt
from spectral_jax.prune import Policy, surgery

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


class Lane(NamedTuple):
    """One trial of an arm."""

    cell: str
    seed: int
    rate: float


class Bench(NamedTuple):
    """What all arms have in common.

    drawn, trunk: every cell and seed before training, and at the cut.
    place: where a cell and seed stand among those.
    before, after: epochs until the cut, and from there on.
    """

    trainer: Trainer
    layers: tuple[str, ...]
    drawn: TrainState
    trunk: TrainState
    place: Mapping[tuple[str, int], int]
    before: int
    after: int


def measure(
    run: Run,
    *,
    before: int,
    after: int,
    seeds: int,
    tuning_seeds: int,
    arms: Sequence[str],
    rate: float,
    rates: Sequence[float],
    **options: Any,
) -> Results:
    """Every arm at its best rate, on fresh seeds; a finished arm is not trained again.

    rate: until the cut. rates: after it, and from the start for arms that begin untrained; where
      there is one, nothing is left to tune.
    """
    trainer = trainer_of(**options)
    tuned_on = range(tuning_seeds if len(rates) > 1 else 0)
    fresh = range(FRESH, FRESH + seeds)
    trials = [(cell, seed) for cell in CELLS for seed in (*tuned_on, *fresh)]
    drawn = trainer.start([trial(seed, rate, **CELLS[cell]) for cell, seed in trials])
    layers = tuple(f"layers/{i}/kernel" for i in range(len(options["hidden"])))
    place = {key: index for index, key in enumerate(trials)}
    bench = Bench(trainer, layers, drawn, _trunk(run, trainer, drawn, before), place, before, after)

    dataset = options["dataset"]
    protocol = "loop" if dataset == "mnist" else f"loop/{dataset}"
    tried = [Lane(cell, seed, each) for each in rates for cell in CELLS for seed in tuned_on]
    to_tune = arms if len(rates) > 1 else ()
    tuning = _all_arms(run, bench, f"{protocol}{TUNING}", dict.fromkeys(to_tune, tried))
    lanes = {
        arm: [
            Lane(cell, seed, _rate(tuning, f"{cell}/{arm}", rate) if to_tune else rates[0])
            for cell in CELLS
            for seed in fresh
        ]
        for arm in arms
    }
    return merge([tuning, _all_arms(run, bench, protocol, lanes)])


def _trunk(run: Run, trainer: Trainer, drawn: TrainState, epochs: int) -> TrainState:
    """What the arms have in common: trained once, and found again after an interruption."""
    found = run.restore_checkpoint(drawn)
    if found is not None:
        return found[1]
    trunk = trainer.train(drawn, epochs=epochs)
    run.save_checkpoint(int(trunk.step[0]), trunk)
    return trunk


def _rate(tuning: Results, method: str, default: float) -> float:
    """The rate that validation data choose; the one until the cut where that makes no odds."""
    (protocol,) = tuning.protocols()
    choice = choose(tuning, protocol, method=method, default=f"{default:g}")
    return float(choice.arm.partition("@")[2]) if choice else default


def _all_arms(
    run: Run, bench: Bench, protocol: str, lanes: Mapping[str, Sequence[Lane]]
) -> Results:
    """The arms in turn, since some are matched to an earlier one."""
    found = []
    for name, of_arm in lanes.items():
        arm, folder = ARMS[name], protocol.replace("/", "-")
        stored = run.load_array(f"{folder}-{name}")
        if stored is None:
            like = run.load_array(f"{folder}-{arm.like}") if arm.like else None
            stored = _train(bench, arm, of_arm, like)
            run.save_array(f"{folder}-{name}", **stored)
            run.log(f"{protocol}: {name} is trained")
        found += list(_by_lane(protocol, name, of_arm, stored))
    return merge(found)


def _train(
    bench: Bench, arm: Arm, lanes: Sequence[Lane], like: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """What becomes of an arm: numbers ``[lanes]``."""
    trainer, begun = bench.trainer, bench.drawn if arm.untrained else bench.trunk
    places = np.array([bench.place[lane.cell, lane.seed] for lane in lanes])
    state = jax.tree.map(lambda of_all: of_all[places], begun)
    rates = jnp.array([lane.rate for lane in lanes], jnp.float32)
    state = state._replace(hyper={**state.hyper, "learning_rate": rates})
    cut = cut_at(arm, state, bench.layers, like)
    state = trainer.restart(cut.state) if arm.forget else cut.state
    epochs = bench.after + (bench.before if arm.untrained else 0)
    state = trainer.train(state, epochs=epochs)
    numbers = {**cut.numbers, **assess(trainer, state), "learning_rate": np.asarray(rates)}
    for layer, row in fits(state.params, bench.layers).items():
        numbers[f"ks after/{layer}"] = np.asarray(row.ks)
        numbers[f"spikes after/{layer}"] = np.asarray(row.spikes)
    return numbers


def _by_lane(
    protocol: str, name: str, lanes: Sequence[Lane], numbers: Mapping[str, np.ndarray]
) -> Iterable[Results]:
    """The numbers of an arm, cell by cell and rate by rate."""
    setting = "@{:g}" if protocol.endswith(TUNING) else ""
    for (cell, rate), part in groupby(range(len(lanes)), lambda i: lanes[i][::2]):
        places = list(part)
        metrics = {metric: values[places] for metric, values in numbers.items()}
        arm = f"{cell}/{name}{setting.format(rate)}"
        yield of_arrays(protocol, arm, metrics, first_seed=lanes[places[0]].seed)


class Cut(NamedTuple):
    """The state to go on from, and per trial what was seen and done."""

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


def gavish_donoho(eigenvalues: jax.Array, shape: tuple[int, int]) -> rmt.MPFit:
    """The fit of the bulk with the optimal hard threshold, noise unknown, for an edge."""
    floor = 16 * float(jnp.finfo(eigenvalues.dtype).eps)
    fit = rmt.fit_marchenko_pastur(eigenvalues, shape, floor=floor)
    values = jnp.sqrt(jnp.maximum(eigenvalues, 0) * max(shape))
    threshold = rmt.hard_threshold(shape, singular_values=values)
    spikes = jnp.sum(values > threshold).astype(jnp.int32)
    return fit._replace(edge=threshold**2 / max(shape), threshold=threshold, spikes=spikes)


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
