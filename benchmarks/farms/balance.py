"""What layer-wise learning rates from spectra add to an epoch."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.harness import Table, Target, interleaved, row, with_first
from models import network
from spectral_jax.optim import temp_balance

RATE = 0.1
EXAMPLES = 50_000  # of CIFAR-10


class Size(NamedTuple):
    depth: int
    batch: int
    repeats: int


FULL = Size(depth=20, batch=128, repeats=7)
SMOKE = Size(depth=8, batch=4, repeats=1)


def epoch(size: Size) -> Table:
    """One refresh an epoch and the scaling of every update, as a share of the epoch."""
    net = network("resnet", input_shape=(32, 32, 3), classes=10, depth=size.depth)
    params, state = net.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (size.batch, 32, 32, 3))
    labels = jnp.arange(size.batch) % 10
    steps = EXAMPLES // size.batch

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = net.apply(params, state, x, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.grad(loss)(params)

    grads = gradient(params)
    rows = []
    for metric in ("hill", "farms"):
        balanced = temp_balance(
            "linear", metric=metric, refresh_every=steps, tuned="inner", layout=net.layout
        )
        plain = optax.sgd(RATE, momentum=0.9)
        both = optax.chain(plain, balanced)
        fresh = both.init(params)
        _, settled = jax.jit(both.update)(grads, fresh, params)
        calls = {
            "step": partial(gradient, params),
            "plain": partial(jax.jit(plain.update), grads, plain.init(params), params),
            "scaled": partial(jax.jit(both.update), grads, settled, params),
            "refreshed": partial(jax.jit(both.update), grads, fresh, params),
        }
        times = interleaved(calls, repeats=size.repeats)
        scaling = max(times["scaled"].median - times["plain"].median, 0.0)
        refresh = max(times["refreshed"].median - times["scaled"].median, 0.0)
        step = times["step"].median + times["plain"].median
        share = 100 * (refresh + steps * scaling) / (steps * step)
        rows.append(
            row(
                f"temp_balance, {metric}: share of an epoch (%)",
                f"refresh {1e3 * refresh:.0f} ms, each update {1e3 * scaling:.2f} ms",
                f"step {with_first(times['step'])}",
                f"{share:.2f} %",
                Target("<=", 2),
                share,
            )
        )
    note = (
        f"ResNet-{size.depth}, CIFAR-10 shapes, batch {size.batch}, {steps} steps an epoch, all "
        "cores. The parts are timed apart, as a whole epoch varies more from run to run than the "
        "difference: a gradient, an update by SGD with momentum, the same with the scaling, and "
        "the same with a refresh of all alphas."
    )
    return Table("An epoch with temp_balance", note, rows)
