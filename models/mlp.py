"""Multilayer perceptron."""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models import layers
from spectral_jax.weights import Block

ACTIVATIONS = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}


class MLP(nnx.Module):
    """Perceptron, dropout after each hidden activation (the protocol of arXiv 2003.00992).

    dropout: the rate; None where every call that trains is given it, as ``dropout(rate)``, so that
      networks of several rates are one program.
    gain: of the initial weights, N(0, gain^2 / inputs of the layer), with biases 0; sqrt(2) keeps
      the size of what passes through ReLUs. None is torch's initialisation.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        rngs: nnx.Rngs,
        hidden: Sequence[int] = (500, 500, 500),
        dropout: float | None = 0.0,
        activation: Literal["relu", "sigmoid", "tanh"] = "relu",
        gain: float | None = None,
    ):
        widths = (prod(input_shape), *hidden, classes)
        if min(widths) < 1:
            raise ValueError(f"widths {widths} must be positive: correct hidden or input_shape")
        if gain is not None and not gain > 0:
            raise ValueError(f"gain={gain} must be above 0, or None for torch's initial weights")
        self.layers = nnx.List(
            [_dense(m, n, gain, rngs) for m, n in zip(widths, widths[1:], strict=False)]
        )
        self.dropout = layers.dropout_rate(dropout)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation={activation!r} is unknown: use {' or '.join(ACTIVATIONS)}"
            )
        self.activation = activation

    def __call__(
        self,
        x: Float[Array, "b ..."],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        dropout: layers.Dropout | None = None,
    ) -> Float[Array, "b c"]:
        x = x.reshape(x.shape[0], -1)
        hidden = [layer.out_features for layer in self.layers[:-1]]
        scales = layers.dropout_scales(
            len(x), hidden, self.dropout, train=train, rngs=rngs, given=dropout
        )
        activate = ACTIVATIONS[self.activation]
        for layer, scale in zip(self.layers[:-1], scales, strict=True):
            x = activate(layer(x)) * scale
        return self.layers[-1](x)

    @property
    def representations(self) -> tuple[str, ...]:
        """The inputs of all layers but the first."""
        last = len(self.layers) - 1
        return tuple(f"layers/{i}:input" for i in range(min(1, last), last + 1))

    def layout(self) -> tuple[Block, ...]:
        """Return the chain of layers."""
        return tuple(Block(f"layers/{i}/kernel", i, i + 1) for i in range(len(self.layers)))


def _dense(inputs: int, outputs: int, gain: float | None, rngs: nnx.Rngs) -> nnx.Linear:
    if gain is None:
        return layers.dense(inputs, outputs, rngs=rngs)
    return layers.normal_dense(inputs, outputs, gain / sqrt(inputs), rngs=rngs)
