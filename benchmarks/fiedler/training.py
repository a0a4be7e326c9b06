"""What the penalty adds to an epoch, and which way of training several seeds is faster."""

from functools import cache

import jax
import jax.numpy as jnp

from benchmarks.fiedler.sizes import SEED, Net, Size, functions, training_data
from benchmarks.harness import Table, Target, interleaved, ratio_of, ratio_text, row, with_first
from experiments.config import DataConfig, ExperimentConfig, ModelConfig, PenaltyConfig, TrainConfig
from experiments.loop import SEED_AXIS_NAME, Program
from experiments.regularise import optimizer_of
from experiments.train import faster_seed_axis
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
        f"{steps} steps of `experiments.loop.Program.chunk` ({net}, batch {size.batch}, "
        f"{examples}, SGD with momentum 0.9, strength {STRENGTH:g}, one seed) from the initial "
        "weights, the first, cold solve included; scheduled: a solve every "
        f"{size.refresh_every} steps. Peer: the same without a penalty."
    )
    return Table("An epoch with the penalty", note, rows)


def seeds(size: Size) -> Table:
    """All seeds of an arm, by ``vmap`` or ``lax.map``, and whether the automatic pick is right."""
    data, examples = training_data(size)
    rows = []
    for net, steps in zip((size.nets[0], size.narrow), size.seed_steps, strict=True):
        for arm in size.seed_arms:
            axes = {a: chunk(size, net, arm, size.seeds, steps, a) for a in ("map", "vmap")}
            times = interleaved(axes, repeats=size.rounds)
            program, state = programs(size, net, arm, size.seeds)
            pick = faster_seed_axis(program, state, data)
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
        "`experiments.train.faster_seed_axis` picks; peer: the other one."
    )
    return Table("Seeds side by side or one after the other", note, rows)


def trained(size: Size) -> tuple[jax.Array, ...]:
    """The blocks of ``initial`` after ``warm_steps`` steps of plain SGD."""
    net = size.nets[0]
    state, _ = chunk(size, net, "none", 1, size.warm_steps, "map")()
    params = jax.tree.map(lambda leaf: leaf[0], state.params)
    return weights.graph_weights(params, functions(net).layout)


def chunk(size: Size, net: Net, arm: str, seeds: int, steps: int, seed_axis: str):
    """A call that trains ``steps`` steps from the initial state, copied: a chunk eats its state."""
    program, state = programs(size, net, arm, seeds)
    data, _ = training_data(size)
    return lambda: program(seed_axis).chunk(jax.tree.map(jnp.copy, state), data, steps, seed_axis)


@cache
def programs(size: Size, net: Net, arm: str, seeds: int):
    """``seed_axis -> Program``, and the initial state of all seeds."""
    config = ExperimentConfig(
        name="benchmark",
        data=DataConfig(batch_size=size.batch),
        model=ModelConfig(hidden=net.hidden),
        penalty=_penalty(arm, size.refresh_every),
        train=TrainConfig(seeds=seeds),
    )

    @cache
    def program(seed_axis: str) -> Program:
        optimizer = optimizer_of(
            config,
            functions(net),
            steps_per_epoch=size.train_size // size.batch,
            axis_name=SEED_AXIS_NAME if seed_axis == "vmap" else None,
        )
        return Program(functions(net).apply, optimizer, size.batch, size.train_size)

    keys = jax.vmap(jax.random.key)(jnp.arange(SEED, SEED + seeds))
    return program, program("map").init(functions(net).init, keys)


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
