"""What a pruning event costs, beside an epoch of training, and what the smaller network gains."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.harness import (
    Table,
    Target,
    interleaved,
    one_core,
    ratio_of,
    ratio_text,
    row,
    with_first,
)
from experiments.training.blocks import Trial
from experiments.training.task import OBJECTIVES, Data, Task
from experiments.training.trainer import Trainer
from models import Network
from models.factored import factored
from spectral_jax.prune import (
    Policy,
    carry_moments,
    factorize,
    kept_ranks,
    prune_spectra,
    pruning_report,
)

BATCH = 128
CHEAPER, SHARE = Target(">=", 1), Target(">=", 0.7)


class Size(NamedTuple):
    examples: int
    hidden: tuple[int, ...]
    steps: int
    batches: tuple[int, ...]
    shares: tuple[float, ...]
    image: tuple[int, int, int]
    depth: int
    repeats: int
    forwards: int


FULL = Size(
    examples=60_000,  # as many as MNIST has
    hidden=(3000, 3000, 500),
    steps=60,
    batches=(1, 128, 1000),
    shares=(0.05, 0.2),
    image=(32, 32, 3),
    depth=20,
    repeats=3,
    forwards=15,
)
SMOKE = Size(
    examples=256,
    hidden=(40,),
    steps=1,
    batches=(2,),
    shares=(0.2,),
    image=(8, 8, 3),
    depth=8,
    repeats=1,
    forwards=1,
)


def pruning_event(size: Size) -> Table:
    """Fit, cut, split and momentum of every layer, and an epoch of the same network."""
    net = perceptron(size)
    images = jax.random.randint(jax.random.key(0), (size.examples, 784), 0, 256).astype(jnp.uint8)
    labels = jnp.arange(size.examples) % 10
    shared = {"shift": jnp.zeros(()), "scale": jnp.asarray(1 / 255)}
    data = {"train": Data({"x": images, "y": labels}, shared)}
    task = Task("event", net, OBJECTIVES["cross_entropy"], data, "", batch_size=BATCH)
    trainer = Trainer(task, lambda hyper: optax.sgd(0.05, momentum=0.9))
    state = trainer.start([Trial(1)])
    params, moments = jax.tree.map(lambda x: x[0].copy(), (state.params, state.opt_state))
    cut = jax.jit(partial(prune_spectra, policies=Policy(keep_below=0.45)))

    def train():
        return trainer.train(state, steps=size.steps)

    def event():
        pruned, report = cut(params)
        smaller = factorize(pruned, kept_ranks(report))
        return smaller, carry_moments(moments, pruned, smaller)

    times = interleaved({"event": event, "train": train}, repeats=size.repeats)
    epochs = task.steps_per_epoch / size.steps
    ratio = epochs * ratio_of(times["train"], times["event"])
    what = "-".join(map(str, (784, *size.hidden, 10)))
    rows = [
        row(
            f"{what}: event, peer an epoch",
            with_first(times["event"]),
            f"{epochs * times['train'].median:.1f} s",
            f"{ratio:.2f}",
            CHEAPER,
            ratio,
        )
    ]
    note = (
        f"All cores. The event fits the bulk of every layer, keeps 45 % of it, splits what two "
        f"factors make smaller and carries the momentum. The epoch, {size.examples} MNIST-sized "
        f"examples in batches of {BATCH}, is extrapolated from {size.steps} steps of "
        "`experiments.training.trainer`, timed in turn with the event."
    )
    return Table("A pruning event and an epoch", note, rows)


def forward(size: Size) -> Table:
    """The forward pass of a factored network, beside that of the dense one."""
    dense = perceptron(size)
    images = factored("resnet", input_shape=size.image, classes=10, depth=size.depth)
    few = size.batches[:2]
    with one_core():
        rows = [
            *_passes(dense, "-".join(map(str, (784, *size.hidden, 10))), (784,), size),
            *_passes(images, f"ResNet-{size.depth}", size.image, size._replace(batches=few)),
        ]
    note = (
        "Random weights; every kernel that it makes smaller is split at a share of its full rank. "
        "One core. The target is on the share of the FLOP ratio (XLA's count of the whole pass) "
        "that arrives as time, the last number under 'ratio'. Convolutions are for information: "
        "at 16 to 64 channels a thin one costs XLA's CPU convolution nearly as much as a wide one, "
        "and there are twice as many, so that a factored ResNet is smaller but hardly faster."
    )
    return Table("Forward pass of the factored network", note, rows)


def _passes(
    net: Network, what: str, shape: tuple[int, ...], size: Size
) -> Iterator[tuple[str, ...]]:
    params, state = net.init(jax.random.key(0))

    def predict(params, x):
        return net.apply(params, state, x)[0]

    run = jax.jit(predict)
    for share in size.shares:
        smaller = factorize(params, _ranks(params, share))
        for batch in size.batches:
            x = jax.random.normal(jax.random.key(2), (batch, *shape))
            labels = jnp.zeros(batch, jnp.int32)
            network = pruning_report({}, params, smaller, predict=run, x=x, labels=labels).network
            flops = network["flops_before"] / network["flops_after"]
            calls = {"ours": partial(run, smaller, x), "dense": partial(run, params, x)}
            times = interleaved(calls, repeats=size.forwards)
            faster = ratio_of(times["dense"], times["ours"])
            yield row(
                f"{what}, rank {100 * share:g} %, batch {batch}: {flops:.2f} x fewer FLOPs",
                times["ours"],
                times["dense"],
                f"{ratio_text(times['dense'], times['ours'])}, share {faster / flops:.2f}",
                SHARE if what[0].isdecimal() else None,
                faster / flops,
            )


def perceptron(size: Size) -> Network:
    return factored("mlp", input_shape=(784,), classes=10, hidden=size.hidden)


def _ranks(params: Any, share: float) -> dict[str, int]:
    """A share of the full rank for every kernel."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): max(
            1, round(share * min(leaf.size // leaf.shape[-1], leaf.shape[-1]))
        )
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        if leaf.ndim > 1
    }
