"""LeNet-5."""

from collections.abc import Callable
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models import layers
from spectral_jax.weights import Block

_SIDE = 32


class LeNet(nnx.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU, max-pooling and full connections between maps.

    Images smaller than 32 x 32 are zero-padded to it, as LeCun pads the 28 x 28 digits, so that
    every data set gets the same network. Dropout follows each hidden dense activation.
    """

    activation: Callable[[Array], Array] = staticmethod(jax.nn.relu)
    pool: Callable[[Array], Array] = staticmethod(layers.max_pool)
    padded = True
    representations = ("convs/1:input", "dense/0:input", "dense/1:input", "dense/2:input")

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        rngs: nnx.Rngs,
        dropout: float | None = 0.0,
    ):
        height, width, channels = layers.image_shape(input_shape)
        if max(height, width) > _SIDE:
            raise ValueError(
                f"input_shape={input_shape} is larger than {_SIDE} x {_SIDE}: downsample first"
            )
        self.convs = nnx.List(
            [layers.conv(channels, 6, 5, rngs=rngs), layers.conv(6, 16, 5, rngs=rngs)]
        )
        sides = (_SIDE, _SIDE) if self.padded else (height, width)
        self.positions = prod(((side - 4) // 2 - 4) // 2 for side in sides)
        if self.positions < 1:
            raise ValueError(f"input_shape={input_shape} is too small: two convolutions leave none")
        widths = (self.positions * 16, 120, 84, classes)
        self.dense = nnx.List(
            [layers.dense(m, n, rngs=rngs) for m, n in zip(widths, widths[1:], strict=False)]
        )
        self.dropout = layers.dropout_rate(dropout)

    def __call__(
        self,
        x: Float[Array, "b ..."],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        dropout: layers.Dropout | None = None,
    ) -> Float[Array, "b c"]:
        x = x.reshape(*x.shape[:3], -1)
        x = _pad(x) if self.padded else x
        for conv in self.convs:
            x = self.pool(self.activation(conv(x)))
        x = x.reshape(x.shape[0], -1)
        hidden = [layer.out_features for layer in self.dense[:-1]]
        scales = layers.dropout_scales(
            len(x), hidden, self.dropout, train=train, rngs=rngs, given=dropout
        )
        for layer, scale in zip(self.dense[:-1], scales, strict=True):
            x = self.activation(layer(x)) * scale
        return self.dense[-1](x)

    def layout(self) -> tuple[Block, ...]:
        """Return the chain of layers; the first dense one reads some positions per channel."""
        return (
            Block("convs/0/kernel", 0, 1),
            Block("convs/1/kernel", 1, 2),
            Block("dense/0/kernel", 2, 3, positions=self.positions),
            Block("dense/1/kernel", 3, 4),
            Block("dense/2/kernel", 4, 5),
        )


class TanhLeNet(LeNet):
    """LeNet-5 with tanh, average pooling and no padding, as in arXiv 2110.14163.

    44,426 parameters for 28 x 28 images and ten classes.
    """

    activation = staticmethod(jnp.tanh)
    pool = staticmethod(partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2)))
    padded = False


def _pad(x: Float[Array, "b h w c"]) -> Float[Array, "b 32 32 c"]:
    missing = [_SIDE - side for side in x.shape[1:3]]
    sides = [(side // 2, side - side // 2) for side in missing]
    return jnp.pad(x, ((0, 0), *sides, (0, 0)))
