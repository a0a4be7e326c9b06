"""Layers with the initialisation of the published protocols."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key


def dense(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Fully connected layer; `draw_uniform` gives it torch's initial kernel and bias."""
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
    padding: int = 0,
    bias: bool = True,
) -> nnx.Conv:
    """Square convolution; `draw_uniform` gives it torch's initial kernel and bias."""
    bound = {"bound": 1 / math.sqrt(inputs * size * size)}
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        # Explicit, because "SAME" pads a strided convolution on one side only.
        padding=((padding, padding), (padding, padding)),
        use_bias=bias,
        kernel_init=nnx.initializers.zeros,
        kernel_metadata=bound,
        bias_metadata=bound,
        rngs=rngs,
    )


def draw_uniform(key: Key[Array, ""], model: nnx.Module) -> None:
    """Set every parameter that has a bound to U(-bound, bound), bound = 1/sqrt(fan_in), in place.

    One draw for the whole model: XLA takes about half a second to compile each draw on a CPU, and
    more under vmap, so one per parameter would keep a deep network waiting for a minute.
    """
    variables = jax.tree.leaves(
        nnx.state(model, nnx.Param), is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    drawn = [variable for variable in variables if "bound" in variable.get_metadata()]
    ends = np.cumsum([variable.size for variable in drawn])
    draws = jax.random.uniform(key, (ends[-1],), jnp.float32, -1.0, 1.0)
    pieces = jnp.split(draws, ends[:-1])
    for variable, piece in zip(drawn, pieces, strict=True):
        bound = variable.get_metadata("bound")
        variable.set_value(bound * piece.reshape(variable.shape))


def dropout_scales(
    batch: int,
    widths: Sequence[int],
    rate: float,
    *,
    train: bool,
    rngs: nnx.Rngs | None,
) -> Sequence[Float[Array, "b _"] | float]:
    """Return one factor per hidden layer: 0 with probability `rate`, else 1 / (1 - rate).

    Outside training every factor is 1. A function, not a module, which would carry a random stream
    in the model's state; all layers in one draw, for the reason given in `draw_uniform`.
    """
    if not train or rate == 0 or not widths:
        return [1.0] * len(widths)
    if rngs is None:
        raise ValueError("train=True with dropout needs a random key: pass key=jax.random.key(...)")
    keep = jax.random.bernoulli(rngs.dropout(), 1 - rate, (batch, sum(widths)))
    scale = jnp.where(keep, 1 / (1 - rate), 0.0)
    return jnp.split(scale, np.cumsum(widths)[:-1], axis=1)


def dropout_rate(rate: float) -> float:
    """Return `rate` if it is one, else raise ValueError."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout={rate} is out of range: use 0 <= dropout < 1")
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
