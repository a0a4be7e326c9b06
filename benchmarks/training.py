"""What a training step costs, of many trials in one program, beside loops of bare Optax steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Table, Target, interleaved, ratio_of, ratio_text, row
from experiments.training.blocks import Trial
from experiments.training.orders import orders
from experiments.training.task import OBJECTIVES, Data, Task, normalise, relu_switch
from experiments.training.trainer import Trainer, chunk_steps
from models import Network, network

BATCH, PIXELS, CLASSES = 100, 784, 10
RATE, MOMENTUM = 0.05, 0.9
Tree = Any


class Size(NamedTuple):
    """Hidden widths and the trials of each network; each trial trains for an epoch."""

    nets: Mapping[tuple[int, ...], int]
    examples: int
    images: int  # in an epoch of convolutional networks
    convolutional: Mapping[str, tuple[int, ...]]  # the shapes of their inputs
    looped: frozenset[str]  # the convolutional networks whose bare steps are also tried in a loop
    rounds: int


FULL = Size(
    {(100,): 64, (500, 500, 500): 2},
    60_000,
    300,
    {"resnet": (32, 32, 3), "lenet": (28, 28, 1), "vgg": (32, 32, 3)},
    frozenset({"resnet", "lenet"}),
    3,
)
SMOKE = Size({(4,): 2}, 400, 200, {"lenet": (28, 28, 1)}, frozenset({"lenet"}), 1)
OPTIONS: dict[str, dict[str, int]] = {"resnet": {"depth": 8}, "lenet": {}, "vgg": {"depth": 11}}


def tables(smoke: bool) -> Iterator[Table]:
    """Dense networks, then convolutional ones."""
    size = SMOKE if smoke else FULL
    rows = [line for hidden in size.nets for line in _compared(hidden, size)]
    note = (
        f"Time per step and trial, over an epoch of {size.examples} random images in batches of "
        f"{BATCH}, all trials in one program (`lax.map`), all cores. Ours: `Trainer.train`, rate "
        "and momentum traced, the epoch's orders made included. Peers: chunks of bare Optax steps, "
        "numbers and length compiled in; rows given: the orders are there before the clock starts; "
        "sorted: each chunk orders all examples itself, as the trainer did before."
    )
    yield Table("A training step", note, rows)
    rows = [line for model in size.convolutional for line in _convolved(model, size)]
    note = (
        f"Time per step, of one trial, over {size.images} random images in batches of {BATCH}, "
        "all cores. Ours: `Trainer.train`, whose steps are a compiled loop. Peers: bare Optax "
        "steps, in such a loop, in which XLA on a CPU has no fast derivative of a convolution, and "
        "called one by one from Python, where it has for most. A VGG takes minutes in a loop."
    )
    yield Table("A training step of convolutional networks", note, rows)


def _compared(hidden: tuple[int, ...], size: Size) -> Iterator[tuple[str, ...]]:
    trials = size.nets[hidden]
    net = network("mlp", input_shape=(PIXELS,), classes=CLASSES, hidden=hidden)
    trainer, state = _ours(net, trials, size.examples)
    bare = partial(_bare, net, trainer.task.data["train"], state)
    calls = {
        "ours": lambda: trainer.train(state, epochs=1),
        "rows given": bare(orders(state.key, 0, size.examples).rows),
        "sorted": bare(None),
    }
    times = interleaved(calls, repeats=size.rounds)
    ours, many = times.pop("ours"), trials > 8
    targets = Target("<=", 1.1), Target("<=", round(1 / 1.8, 3) if many else 1.0)
    steps = trials * trainer.task.steps_per_epoch
    name = "-".join(map(str, (PIXELS, *hidden, CLASSES)))
    for (peer, timing), target in zip(times.items(), targets, strict=True):
        seconds = (f"{1e6 * one.median / steps:.0f} us" for one in (ours, timing))
        ratio = ratio_of(ours, timing)
        what = f"{name}, {trials} trials; peer: {peer}"
        yield row(what, *seconds, ratio_text(ours, timing), target, ratio)


def _convolved(model: str, size: Size) -> Iterator[tuple[str, ...]]:
    shape, options = size.convolutional[model], OPTIONS[model]
    net = network(model, input_shape=shape, classes=CLASSES, **options)
    trainer, state = _ours(net, 1, size.images, shape)
    start = jax.tree.map(lambda leaf: leaf[0], state)
    rows = orders(state.key, 0, size.images).rows[0].reshape(-1, BATCH)
    looped, stepwise = _bare_steps(net, trainer.task.data["train"], start, rows)
    calls = {"ours": lambda: trainer.train(state, epochs=1), "stepwise": stepwise}
    calls |= {"looped": looped} if model in size.looped else {}
    times = interleaved(calls, repeats=size.rounds)
    ours, steps = times.pop("ours"), len(rows)
    targets = {"stepwise": Target("<=", 1.1), "looped": Target("<=", 0.2)}
    for peer, timing in times.items():
        told = (f"{1e3 * one.median / steps:.0f} ms" for one in (ours, timing))
        name = " ".join([model, *(f"{key} {value}" for key, value in options.items())])
        ratio = ratio_of(ours, timing)
        yield row(f"{name}; peer: {peer}", *told, ratio_text(ours, timing), targets[peer], ratio)


def _bare_steps(
    net: Network, data: Data, start: Any, rows: jax.Array
) -> tuple[Callable[[], Tree], Callable[[], Tree]]:
    """The steps of an epoch, in a compiled loop and from Python."""
    optimizer = optax.sgd(RATE, momentum=MOMENTUM)
    step = partial(_bare_step, net, optimizer)
    looped = jax.jit(lambda data, carry, rows: jax.lax.scan(partial(step, data), carry, rows))
    once = jax.jit(step)
    first = start.params, optimizer.init(start.params), start.model_state

    def stepwise() -> Tree:
        carry = first
        for chosen in rows:
            carry, _ = once(data, carry, chosen)
        return jax.block_until_ready(carry)

    return lambda: jax.block_until_ready(looped(data, first, rows)), stepwise


def _ours(
    net: Network, trials: int, examples: int, shape: tuple[int, ...] = (PIXELS,)
) -> tuple[Trainer, Any]:
    random = np.random.default_rng(0)
    x = jnp.asarray(random.integers(0, 256, (examples, *shape)), jnp.uint8)
    y = jnp.asarray(random.integers(0, CLASSES, examples), jnp.int32)
    shared = {"shift": jnp.float32(33), "scale": jnp.float32(1 / 78)}
    data = {"train": Data({"x": x, "y": y}, shared)}
    loss = OBJECTIVES["cross_entropy"]
    task = Task("benchmark", net, loss, data, "", batch_size=BATCH, head=relu_switch)
    hyper = {"learning_rate": RATE, "momentum": MOMENTUM, "relu_logits": 0.0}
    trainer = Trainer(task, _optimizer)
    return trainer, trainer.start([Trial(seed, hyper) for seed in range(trials)])


def _bare_step(
    net: Network,
    optimizer: optax.GradientTransformation,
    data: Data,
    carry: Tree,
    chosen: jax.Array,
) -> tuple[Tree, Tree]:
    """A step as anyone writes it; of its batch, the loss and the share that it gets right."""
    params, opt_state, kept = carry
    batch = normalise(jax.tree.map(lambda leaf: leaf[chosen], data.examples), data.shared)

    def loss(params: Tree) -> tuple[jax.Array, Tree]:
        logits, after = net.apply(params, kept, batch["x"], train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return losses.mean(), (after, (jnp.argmax(logits, axis=-1) == batch["y"]).mean())

    (value, (after, hits)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state, after), (value, hits)


def _optimizer(hyper: Mapping[str, Any]) -> optax.GradientTransformation:
    return optax.sgd(hyper["learning_rate"], momentum=hyper["momentum"])


def _bare(net: Network, data: Data, state: Any, rows: jax.Array | None) -> Callable[[], Tree]:
    """An epoch of bare steps from this state; without ``rows``, each chunk orders the examples."""
    optimizer = optax.sgd(RATE, momentum=MOMENTUM)
    length, epoch = chunk_steps(data.size // BATCH), data.size // BATCH
    step = partial(_bare_step, net, optimizer)

    def trial(data, first, given):
        carry, key, order = given
        if order is None:
            order = jax.random.permutation(key, data.size)
        chosen = jax.lax.dynamic_slice(order, (first * BATCH,), (length * BATCH,))
        carry, metrics = jax.lax.scan(partial(step, data), carry, chosen.reshape(length, BATCH))
        return carry, jax.tree.map(jnp.mean, metrics)

    @partial(jax.jit, donate_argnums=0)
    def chunk(carry, data, first, key, rows):
        return jax.lax.map(partial(trial, data, first), (carry, key, rows))

    def train():
        carry = jax.tree.map(jnp.copy, (state.params, state.opt_state, state.model_state))
        for first in range(0, epoch, length):
            carry, metrics = chunk(carry, data, first, state.key, rows)
            jax.block_until_ready(metrics)
        return carry

    return train
