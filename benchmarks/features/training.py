"""What it costs to watch what a network learns, beside the training that is watched."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
from spectral_jax import features
from spectral_jax.features import Head
from spectral_jax.linalg.moments import Method

PIXELS, CLASSES = 784, 10
PROBE, DIAGONALISED, DECAYED = Target("<=", 0.01), Target("<=", 0.05), Target("<=", 1.05)
FORGET = 0.99
METHODS: tuple[Method, ...] = ("gram", "gram64")
OPTIMIZER = optax.adam(1e-3)


class Size(NamedTuple):
    examples: int  # that are trained on: an epoch of MNIST is `epoch` times as many
    epoch: int
    probed: int  # inputs of the probe
    width: int
    depths: tuple[int, ...]  # hidden layers of the networks that sum moments as they train
    steps: int  # of those
    batch: int
    repeats: int


FULL = Size(6000, 10, 1024, 512, (5, 8), 30, 128, 5)
SMOKE = Size(64, 1, 16, 8, (5,), 2, 16, 1)


def watching(size: Size) -> Table:
    """A probe in epochs of the network it measures, and moments of every batch in steps."""
    with one_core():
        rows = [*_probe(size), *_decays(size)]
    note = (
        f"float32, one core, Adam, batches of {size.batch}. Probe: forward on {size.probed} fixed "
        f"inputs of 784-{size.width}x3-10, then `richness` of the penultimate features and their "
        "head, and with the eigendecomposition `diagonalize` in its place; the peer is an epoch of "
        f"that network, {size.epoch} times as long as on {size.examples} images, which is timed. "
        "Decayed: "
        "moments of the penultimate features of every training batch, `update(decay(m, .99), x)` "
        "in the compiled step, in float32 (`gram`) or summed in float64 (`gram64`); the peer is "
        "the step without, and the ratio is of the two."
    )
    return Table("Watching, in epochs and in steps", note, rows)


def _probe(size: Size) -> list[tuple[str, ...]]:
    net = _network(3, size.width)
    data = _images(size.examples)
    seen = data[0][: size.probed]
    state = net, OPTIMIZER.init(net)
    calls = {
        "epoch": lambda: _epoch(state, data, size.batch),
        "richness": lambda: _richness(net, seen),
        "diagonalize": lambda: _diagonalize(net, seen),
    }
    times = interleaved(calls, repeats=size.repeats)
    of_examples = times["epoch"]
    epoch = f"{size.epoch * of_examples.median:.2f} s"
    rows = []
    for name, what, target in (
        ("richness", "", PROBE),
        ("diagonalize", ", with the eigendecomposition", DIAGONALISED),
    ):
        share = ratio_of(times[name], of_examples) / size.epoch
        told = with_first(times[name]), epoch, f"{100 * share:.2f} %"
        rows.append(row(f"probe of D_LR{what}", *told, target, share))
    return rows


def _decays(size: Size) -> Iterator[tuple[str, ...]]:
    data = _images(size.steps * size.batch)
    for depth in size.depths:
        net = _network(depth, size.width)
        state = net, OPTIMIZER.init(net)
        calls = {"plain": partial(_epoch, state, data, size.batch)}
        for method in METHODS:
            empty = features.zero(size.width, method=method)
            calls[method] = partial(_watched_epoch, state, empty, data, size.batch)
        times = interleaved(calls, repeats=size.repeats)
        for method in METHODS:
            told = [f"{1e3 * times[each].median / size.steps:.3g} ms a step"
                    for each in (method, "plain")]  # fmt: skip
            what = f"decayed moments in the step, {depth} hidden layers of {size.width}, `{method}`"
            ratio = ratio_of(times[method], times["plain"])
            text = ratio_text(times[method], times["plain"])
            yield row(what, *told, text, DECAYED, ratio)


def _network(depth: int, width: int) -> list[Head]:
    rng = np.random.default_rng(0)
    sides = [PIXELS, *[width] * depth, CLASSES]
    return [
        Head(jnp.asarray(rng.standard_normal((m, k)) * (2 / m) ** 0.5, "f"), jnp.zeros(k, "f"))
        for m, k in zip(sides, sides[1:], strict=False)
    ]


def _images(n: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.random((n, PIXELS), "f")), jnp.asarray(rng.integers(CLASSES, size=n))


def _penultimate(net: Sequence[Head], x: jax.Array) -> jax.Array:
    for layer in net[:-1]:
        x = jax.nn.relu(x @ layer.kernel + layer.bias)
    return x


@jax.jit
def _richness(net: Sequence[Head], x: jax.Array) -> Any:
    return features.richness(_penultimate(net, x), head=net[-1])


@jax.jit
def _diagonalize(net: Sequence[Head], x: jax.Array) -> Any:
    return features.diagonalize(_penultimate(net, x), head=net[-1])


@partial(jax.jit, static_argnames="batch")
def _epoch(state: Any, data: Any, batch: int) -> Any:
    return jax.lax.scan(lambda state, rows: (_step(state, rows)[0], None), state,
                        _in_batches(data, batch))[0]  # fmt: skip


@partial(jax.jit, static_argnames="batch")
def _watched_epoch(state: Any, moments: Any, data: Any, batch: int) -> Any:
    def step(carry: Any, rows: Any) -> tuple[Any, None]:
        state, m = carry
        state, seen = _step(state, rows)
        return (state, features.update(features.decay(m, FORGET), seen)), None

    return jax.lax.scan(step, (state, moments), _in_batches(data, batch))[0]


def _in_batches(data: Any, batch: int) -> Any:
    return jax.tree.map(lambda x: x[: len(x) // batch * batch].reshape(-1, batch, *x.shape[1:]),
                        data)  # fmt: skip


def _step(state: Any, rows: Any) -> tuple[Any, jax.Array]:
    net, momenta = state
    x, labels = rows

    def loss(net: Sequence[Head]) -> tuple[jax.Array, jax.Array]:
        seen = _penultimate(net, x)
        logits = seen @ net[-1].kernel + net[-1].bias
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), seen

    slope, seen = jax.grad(loss, has_aux=True)(net)
    change, momenta = OPTIMIZER.update(slope, momenta, net)
    return (optax.apply_updates(net, change), momenta), seen
