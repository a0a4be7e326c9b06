"""Layers with the initialisation of the published protocols."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from spectral_jax.weights import BATCH_NORM_EPSILON


def dense(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Fully connected layer; `draw` gives it torch's initial kernel and bias."""
    bound = {"bound": 1 / math.sqrt(inputs)}
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=nnx.initializers.zeros,
        kernel_metadata=bound,
        bias_metadata=bound,
        rngs=rngs,
    )


def conv(
    inputs: int,
    outputs: int,
    size: int,
    *,
    rngs: nnx.Rngs,
    stride: int = 1,
    padding: int | Literal["SAME"] = 0,
    bias: bool = True,
) -> nnx.Conv:
    """Square convolution; `draw` gives it torch's initial kernel and bias.

    `padding` zeros go on every side. "SAME", as Keras has it, pads a strided convolution of an even
    side at the end only, so the two read different pixels.
    """
    bound = {"bound": 1 / math.sqrt(inputs * size * size)}
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=padding if padding == "SAME" else ((padding, padding), (padding, padding)),
        use_bias=bias,
        kernel_init=nnx.initializers.zeros,
        kernel_metadata=bound,
        bias_metadata=bound,
        rngs=rngs,
    )


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
    """The largest of every square of 2 x 2 pixels; a last row or column without a partner is lost.

    By slices: the derivative of `nnx.max_pool` is a scatter that XLA runs pixel by pixel on a CPU,
    6 to 30 times as long as this, and most of the backward pass of a LeNet.
    """
    corners = [x[:, i : x.shape[1] - 1 + i : 2, j : x.shape[2] - 1 + j : 2]
               for i in (0, 1) for j in (0, 1)]  # fmt: skip
    return reduce(jnp.maximum, corners)


def batch_norm(channels: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch-norm over all axes but the channels, with torch's epsilon and running mean."""
    return nnx.BatchNorm(
        channels,
        momentum=0.9,
        epsilon=BATCH_NORM_EPSILON,
        # E[x^2] - E[x]^2 cancels in float32 when a channel's mean outgrows its spread.
        use_fast_variance=False,
        rngs=rngs,
    )


def normal_dense(
    inputs: int, outputs: int, std: float, *, rngs: nnx.Rngs, bias: bool = True
) -> nnx.Linear:
    """Fully connected layer; `draw` makes its kernel N(0, std^2), its bias stays 0."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=nnx.initializers.zeros,
        kernel_metadata={"std": std},
        rngs=rngs,
    )


def embedding(rows: int, width: int, std: float, *, rngs: nnx.Rngs) -> nnx.Embed:
    """Table of vectors, one per token or position; `draw` makes it N(0, std^2)."""
    return nnx.Embed(
        rows,
        width,
        embedding_init=nnx.initializers.zeros,
        embedding_metadata={"std": std},
        rngs=rngs,
    )


def draw(key: Key[Array, ""], model: nnx.Module) -> None:
    """Set each parameter that has a "bound" to U(-bound, bound), a "std" to N(0, std^2), in place.

    One draw per distribution for the whole model: XLA takes about half a second to compile each
    draw on a CPU, and more under vmap, so one per parameter would keep a deep network waiting for a
    minute.
    """
    variables = jax.tree.leaves(
        nnx.state(model, nnx.Param), is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    bounded = [variable for variable in variables if "bound" in variable.get_metadata()]
    if bounded:
        size = sum(variable.size for variable in bounded)
        _fill(bounded, "bound", jax.random.uniform(key, (size,), jnp.float32, -1.0, 1.0))
    spread = [variable for variable in variables if "std" in variable.get_metadata()]
    if spread:
        size = sum(variable.size for variable in spread)
        _fill(spread, "std", jax.random.normal(jax.random.fold_in(key, 1), (size,), jnp.float32))


def _fill(variables: Sequence[nnx.Variable], scale: str, draws: Float[Array, " n"]) -> None:
    ends = np.cumsum([variable.size for variable in variables])
    for variable, piece in zip(variables, jnp.split(draws, ends[:-1]), strict=True):
        variable.set_value(variable.get_metadata(scale) * piece.reshape(variable.shape))


class Dropout(NamedTuple):
    """How probable it is that a unit is kept, and what it is multiplied by then."""

    keep: float | Array
    scale: float | Array


def dropout_scales(
    batch: int,
    widths: Sequence[int],
    rate: float | None,
    *,
    train: bool,
    rngs: nnx.Rngs | None,
    given: Dropout | None = None,
) -> Sequence[Float[Array, "b _"] | float]:
    """Return one factor per hidden layer: 0 with probability `rate`, else 1 / (1 - rate).

    Outside training every factor is 1. Where ``rate`` is None it is ``given``.

    A function, not a module, which would carry a random stream in the model's state; all layers in
    one draw, for the reason given in `draw`.
    """
    if train and rate is not None and given is not None:
        raise ValueError(
            f"dropout= is given to a network that was built with dropout={rate}, which it would "
            "ignore: build it with dropout=None"
        )
    if not train or rate == 0 or not widths:
        return [1.0] * len(widths)
    if rngs is None:
        raise ValueError("train=True with dropout needs a random key: pass key=jax.random.key(...)")
    if rate is not None:
        given = dropout(rate)
    if given is None:
        raise ValueError(
            "train=True of a network that was built with dropout=None needs the rate: pass "
            "dropout=models.dropout(rate), whose numbers may be traced"
        )
    kept = jax.random.bernoulli(rngs.dropout(), given.keep, (batch, sum(widths)))
    scales = jnp.where(kept, given.scale, 0.0)
    return jnp.split(scales, np.cumsum(widths)[:-1], axis=1)


def dropout(rate: float) -> Dropout:
    """The numbers of a rate; computed here, for in float32 their last digits would be others.

    Raises ValueError outside of 0 <= rate < 1, where the rate is no traced one.
    """
    if not isinstance(rate, jax.core.Tracer) and not 0 <= rate < 1:
        raise ValueError(f"rate={rate} is out of range: use 0 <= rate < 1")
    return Dropout(1.0 - rate, 1 / (1.0 - rate))


def dropout_rate(rate: float | None) -> float | None:
    """Return `rate` if it is one, or None for one that calls are given, else raise ValueError."""
    if rate is None:
        return None
    if not 0 <= rate < 1:
        raise ValueError(f"dropout={rate} is out of range: use 0 <= dropout < 1, or None")
    return float(rate)


def image_shape(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Read (height, width) or (height, width, channels) as the latter."""
    if len(input_shape) == 2:
        return (*input_shape, 1)  # type: ignore[return-value]
    if len(input_shape) == 3:
        return input_shape  # type: ignore[return-value]
    raise ValueError(
        f"input_shape={input_shape} is not an image: use (height, width) or "
        "(height, width, channels), or model 'mlp' for features"
    )
