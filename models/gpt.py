"""Small generative transformer over characters or tokens."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from models.layers import embedding, normal_dense
from spectral_jax.weights import Block

_STD = 0.02
_EPSILON = 1e-5


class Attention(nnx.Module):
    """Causal self-attention: softmax(q k^T / sqrt(d)) v per head, then an output projection."""

    def __init__(self, width: int, heads: int, out_std: float, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = normal_dense(width, width, _STD, rngs=rngs)
        self.key = normal_dense(width, width, _STD, rngs=rngs)
        self.value = normal_dense(width, width, _STD, rngs=rngs)
        self.out = normal_dense(width, width, out_std, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        q, k, v = (
            layer(x).reshape(*x.shape[:2], self.heads, -1)
            for layer in (self.query, self.key, self.value)
        )
        return self.out(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))


class Feedforward(nnx.Module):
    """Two dense layers with a GELU between, four times as wide inside."""

    def __init__(self, width: int, out_std: float, *, rngs: nnx.Rngs):
        self.up = normal_dense(width, 4 * width, _STD, rngs=rngs)
        self.down = normal_dense(4 * width, width, out_std, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.down(jax.nn.gelu(self.up(x)))


class TransformerBlock(nnx.Module):
    """Pre-LN: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, width: int, heads: int, out_std: float, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, epsilon=_EPSILON, use_fast_variance=False, rngs=rngs)
        self.attention = Attention(width, heads, out_std, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=_EPSILON, use_fast_variance=False, rngs=rngs)
        self.mlp = Feedforward(width, out_std, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nnx.Module):
    """GPT-2's architecture and initial weights (Radford et al. 2019), without dropout.

    Tokens ``[b, t]`` -> logits ``[b, t, classes]`` of the next one; `input_shape` is the context,
    ``(t,)``, and shorter inputs are allowed. Learned positions, pre-LN blocks, GELU (tanh form),
    weights N(0, 0.02^2), divided by sqrt(2 depth) where a block writes to the residual stream.
    `tied`: the token embedding is also the head; else the head is a dense layer without a bias.
    Width 768, depth 12, heads 12, context 1024 and 50,257 tokens make GPT-2 small: 124,439,808
    parameters. Whole numbers in float arrays are accepted as tokens.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        rngs: nnx.Rngs,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        tied: bool = True,
    ):
        if len(input_shape) != 1:
            raise ValueError(f"input_shape={input_shape} is not a sequence: use (context,)")
        if min(width, depth, heads) < 1 or width % heads:
            raise ValueError(
                f"width={width}, depth={depth}, heads={heads} must be positive, and heads must "
                "divide width"
            )
        out_std = _STD / math.sqrt(2 * depth)
        self.context = input_shape[0]
        self.token_embedding = embedding(classes, width, _STD, rngs=rngs)
        self.position_embedding = embedding(self.context, width, _STD, rngs=rngs)
        self.blocks = nnx.List(
            [TransformerBlock(width, heads, out_std, rngs=rngs) for _ in range(depth)]
        )
        self.norm = nnx.LayerNorm(width, epsilon=_EPSILON, use_fast_variance=False, rngs=rngs)
        self.tied = tied
        if not tied:
            self.head = normal_dense(width, classes, _STD, bias=False, rngs=rngs)

    def __call__(
        self, x: Shaped[Array, "b t"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b t c"]:
        if x.shape[1] > self.context:
            raise ValueError(
                f"x has {x.shape[1]} tokens but the context is {self.context}: pass the last "
                f"{self.context}, or set input_shape=({x.shape[1]},)"
            )
        positions = self.position_embedding(jnp.arange(x.shape[1]))
        y = self.token_embedding(x.astype(jnp.int32)) + positions
        for block in self.blocks:
            y = block(y)
        y = self.norm(y)
        return self.token_embedding.attend(y) if self.tied else self.head(y)

    @property
    def representations(self) -> tuple[str, ...]:
        """The residual stream where blocks read it, and what the head is given."""
        head = "token_embedding/attend" if self.tied else "head"
        return (*(f"blocks/{k}:input" for k in range(len(self.blocks))), f"{head}:input")

    def layout(self) -> tuple[Block, ...]:
        """Raise ValueError: attention multiplies activations, so no weight joins two units."""
        raise ValueError(
            "model 'gpt' has no graph: attention multiplies activations by each other; read its "
            "kernels one by one with spectral_jax.weights.matrices"
        )
