"""What the penalty adds to an epoch, and which way of training several seeds is faster."""

from collections.abc import Callable
from functools import cache

import jax

from benchmarks.fiedler.sizes import SEED, Net, Size, functions, training_data
from benchmarks.harness import Table, Target, interleaved, ratio_of, ratio_text, row, with_first
from experiments.config import ExperimentConfig, PenaltyConfig
from experiments.training.blocks import Trial
from experiments.training.optimisers import hyper_of, optimizer_of, structure_of
from experiments.training.program import Axis, TrainState
from experiments.training.task import OBJECTIVES, Task
from experiments.training.trainer import Trainer
from spectral_jax import weights

STRENGTH = 0.01


def epochs(size: Size) -> Table:
    """An epoch with the penalty against one without."""
    net, (_, examples) = size.nets[0], training_data(size)
    steps = size.train_size // size.batch
    chunks = {name: chunk(size, net, name, 1, steps, "map") for name in ("none", *size.arms)}
    times = interleaved(chunks, repeats=size.rounds)
    plain, target = times.pop("none"), Target("<=", 1.10)
    rows = [
        row(
            name,
            with_first(timing),
            plain,
            ratio_text(timing, plain),
            target,
            ratio_of(timing, plain),
        )
        for name, timing in times.items()
    ]
    note = (
        f"{steps} steps of `experiments.training.trainer` ({net}, batch {size.batch}, "
        f"{examples}, SGD with momentum 0.9, strength {STRENGTH:g}, one seed) from the initial "
        "weights, the first, cold solve included; scheduled: a solve every "
        f"{size.refresh_every} steps. Peer: the same without a penalty."
    )
    return Table("An epoch with the penalty", note, rows)


def seeds(size: Size) -> Table:
    """All seeds of an arm, by ``vmap`` or ``lax.map``, and whether the automatic pick is right."""
    _, examples = training_data(size)
    rows = []
    for net, steps in zip((size.nets[0], size.narrow), size.seed_steps, strict=True):
        for arm in size.seed_arms:
            both: tuple[Axis, Axis] = ("map", "vmap")
            axes = {axis: chunk(size, net, arm, size.seeds, steps, axis) for axis in both}
            times = interleaved(axes, repeats=size.rounds)
            pick = trainer(size, net, arm).faster_axis(trials(size, arm, size.seeds))
            other = "map" if pick == "vmap" else "vmap"
            loss = times[pick].median / min(times[pick].median, times[other].median)
            name = f"{net}, {arm}, {steps} steps: pick {pick}, peer {other}"
            rows.append(
                row(
                    name,
                    times[pick],
                    times[other],
                    f"{loss:.2f} of the better",
                    Target("<=", 1.05),
                    loss,
                )
            )
    note = (
        f"{size.seeds} seeds, batch {size.batch}, {examples}. Ours: the axis that "
        "`Trainer.faster_axis` picks; peer: the other one."
    )
    return Table("Seeds side by side or one after the other", note, rows)


def trained(size: Size) -> tuple[jax.Array, ...]:
    """The blocks of ``initial`` after ``warm_steps`` steps of plain SGD."""
    net = size.nets[0]
    state = chunk(size, net, "none", 1, size.warm_steps, "map")()
    params = jax.tree.map(lambda leaf: leaf[0], state.params)
    return weights.graph_weights(params, functions(net).layout)


def chunk(
    size: Size, net: Net, arm: str, seeds: int, steps: int, axis: Axis
) -> Callable[[], TrainState]:
    """A call that trains ``steps`` steps from the initial state."""
    trains = trainer(size, net, arm, axis)
    state = trains.start(trials(size, arm, seeds))
    return lambda: trains.train(state, steps=steps)


@cache
def trainer(size: Size, net: Net, arm: str, axis: Axis = "map") -> Trainer:
    structure = structure_of(configured(size, arm))
    optimizer = optimizer_of(structure, functions(net), size.train_size // size.batch)
    data = {"train": training_data(size)[0]}
    loss = OBJECTIVES["cross_entropy"]
    task = Task("benchmark", functions(net), loss, data, "", batch_size=size.batch)
    return Trainer(task, optimizer, axis)


def trials(size: Size, arm: str, count: int) -> list[Trial]:
    return [Trial(SEED + seed, hyper_of(configured(size, arm))) for seed in range(count)]


def configured(size: Size, arm: str) -> ExperimentConfig:
    return ExperimentConfig("benchmark", penalty=_penalty(arm, size.refresh_every))


def _penalty(arm: str, refresh_every: int) -> PenaltyConfig:
    if arm == "none":
        return PenaltyConfig()
    mode, refresh = arm.split(", ")
    return PenaltyConfig(
        name="fiedler",
        strength=STRENGTH,
        mode=mode,
        refresh="schedule" if refresh == "scheduled" else "residual",
        refresh_every=refresh_every,
    )
