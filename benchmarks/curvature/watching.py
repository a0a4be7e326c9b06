"""What watching curvature adds to an epoch of training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Table, Target, Timing, interleaved, ratio_of, row
from models import Network, network
from spectral_jax.curvature import SoftmaxCrossEntropy, objective
from spectral_jax.linalg import fast_convolutions
from spectral_jax.optim import watch

RATE = 0.05
TARGETS = {"lambda_max": Target("<=", 0.05), "critical_sharpness": Target("<=", 0.01)}
WATCHED = (*TARGETS, "trace")
Tree = Any


class Size(NamedTuple):
    """The network, images in an epoch and in a batch, and steps that are timed, in loops or not."""

    model: Callable[..., Network]
    examples: int
    batches: tuple[int, ...]
    loops: tuple[bool, ...]
    steps: int
    rounds: int


FULL = Size(partial(network, "lenet"), 60_000, (100, 500), (True, False), 5, 3)
SMOKE = Size(partial(network, "mlp", hidden=(5,)), 40, (20,), (False,), 2, 1)


def watch_costs(size: Size) -> Table:
    """What one look at the curvature costs, in epochs of LeNet."""
    net = size.model(input_shape=(28, 28, 1), classes=10)
    rows = [
        line
        for batch in size.batches
        for looped in size.loops
        for line in _compared(net, size, batch, looped)
    ]
    note = (
        f"LeNet, random images of 28 x 28, plain SGD, all cores. An epoch is {size.examples} "
        f"images. Ours: {size.steps} steps with `optim.watch` measuring at each, on its batch; "
        "peer: the same steps without. The ratio is what one measurement adds to an epoch in which "
        "it happens once. Looped: all steps in one program, as the trainer has them. Stepwise: one "
        "step a call. Not due: the steps between. All of them by `fast_convolutions`."
    )
    return Table("Watching curvature once an epoch", note, rows)


def _compared(net: Network, size: Size, batch: int, looped: bool) -> list[tuple[str, ...]]:
    epoch, how = size.examples // batch, "looped" if looped else "stepwise"
    run = partial(_steps, net, _examples(batch), size.steps, looped)
    calls = {"alone": run(None, 1), "not due": run("lambda_max", size.steps + 1)}
    calls |= {name: run(name, 1) for name in WATCHED}
    times: dict[str, Timing] = interleaved(calls, repeats=size.rounds)
    alone = times.pop("alone")
    idle = times.pop("not due")
    lines = [row(f"{how} steps of {batch}, not due", idle, alone, f"{ratio_of(idle, alone):.3f}")]
    for name, timing in times.items():
        share = (ratio_of(timing, alone) - 1) / epoch
        what = f"{name} on {batch} images, of {epoch} {how} steps"
        lines.append(row(what, timing, alone, f"{share:.4f}", TARGETS.get(name), share))
    return lines


def _examples(count: int) -> tuple[jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    x = jnp.asarray(random.random((count, 28, 28, 1)), jnp.float32)
    return x, jnp.asarray(random.integers(0, 10, count), jnp.int32)


def _steps(
    net: Network, batch: Tree, steps: int, looped: bool, what: str | None, every: int
) -> Callable[[], Tree]:
    """So many bare Optax steps, from the same parameters every time."""
    loss = objective(partial(_outputs, net), SoftmaxCrossEntropy())
    parts = [optax.sgd(RATE)]
    if what is not None:
        parts.append(watch(loss, every=every, what=(what,), learning_rate=RATE))
    tx = optax.chain(*parts)

    @fast_convolutions
    def step(batch: Tree, _: Any, carry: Tree) -> Tree:
        params, state = carry
        grads = jax.grad(lambda params: loss(params, batch).mean())(params)
        updates, state = tx.update(grads, state, params, batch=batch)
        return optax.apply_updates(params, updates), state

    once = jax.jit(lambda batch, carry: step(batch, 0, carry))
    together = jax.jit(
        lambda batch, carry: jax.lax.fori_loop(0, steps, partial(step, batch), carry)
    )
    start, _ = net.init(jax.random.key(0))
    # The measurement at step 0 is not one of the steps that are not due.
    begun = jax.block_until_ready(once(batch, (start, tx.init(start))))

    def run() -> Tree:
        carry = begun
        if looped:
            return jax.block_until_ready(together(batch, carry))
        for _ in range(steps):
            carry = once(batch, carry)
        return jax.block_until_ready(carry)

    return run


def _outputs(net: Network, params: Tree, inputs: jax.Array) -> jax.Array:
    return net.apply(params, {}, inputs)[0]
