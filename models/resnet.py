"""CIFAR ResNet."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.layers import conv, dense, image_shape
from spectral_jax.weights import BATCH_NORM_EPSILON, Block

_WIDTHS = (16, 32, 64)


class ResidualBlock(nnx.Module):
    """Two 3 x 3 convolutions and a parameter-free skip: ``relu(F(x) + shortcut(x))``."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, rngs: nnx.Rngs):
        self.stride = stride
        self.conv1 = conv(inputs, outputs, 3, stride=stride, padding=1, bias=False, rngs=rngs)
        self.norm1 = _batch_norm(outputs, rngs=rngs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, bias=False, rngs=rngs)
        self.norm2 = _batch_norm(outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b _ _ o"]:
        y = jax.nn.relu(self.norm1(self.conv1(x), use_running_average=not train))
        y = self.norm2(self.conv2(y), use_running_average=not train)
        shortcut = x[:, :: self.stride, :: self.stride]
        new_channels = y.shape[-1] - x.shape[-1]
        return jax.nn.relu(y + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, new_channels))))


class ResNet(nnx.Module):
    """ResNet of depth 6n + 2 for small images (arXiv 1512.03385, section 4.2).

    Three stages of n residual blocks with 16, 32 and 64 channels, batch-norm, option-A shortcuts
    (subsample, new channels zero), global average pooling. ResNet-20 on CIFAR-10 has 269,722
    trainable parameters; 272,474 belongs to option B, with 1 x 1 projections.
    """

    def __init__(
        self, *, input_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs, depth: int = 20
    ):
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth} is not 6n + 2 with n >= 1: use 8, 14, 20, 32, 44, ...")
        channels = image_shape(input_shape)[2]
        self.stem = conv(channels, _WIDTHS[0], 3, padding=1, bias=False, rngs=rngs)
        self.stem_norm = _batch_norm(_WIDTHS[0], rngs=rngs)
        per_stage = (depth - 2) // 6
        outputs = [width for width in _WIDTHS for _ in range(per_stage)]
        inputs = [_WIDTHS[0], *outputs[:-1]]
        self.blocks = nnx.List(
            [
                ResidualBlock(i, o, stride=1 if i == o else 2, rngs=rngs)
                for i, o in zip(inputs, outputs, strict=True)
            ]
        )
        self.head = dense(_WIDTHS[-1], classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b ..."], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b c"]:
        x = self.stem(x.reshape(*x.shape[:3], -1))
        x = jax.nn.relu(self.stem_norm(x, use_running_average=not train))
        for block in self.blocks:
            x = block(x, train=train)
        return self.head(jnp.mean(x, axis=(1, 2)))

    def layout(self) -> tuple[Block, ...]:
        """Return stem, then per residual block two folded convolutions and the skip, then head.

        Group 1 is the stem's output; residual block k adds its inner channels (2k + 2) and its
        output channels (2k + 3).
        """
        blocks = [Block("stem/kernel", 0, 1, norm="stem_norm")]
        for k in range(len(self.blocks)):
            entry, inner, output = 2 * k + 1, 2 * k + 2, 2 * k + 3
            blocks += [
                Block(f"blocks/{k}/conv1/kernel", entry, inner, norm=f"blocks/{k}/norm1"),
                Block(f"blocks/{k}/conv2/kernel", inner, output, norm=f"blocks/{k}/norm2"),
                Block(None, entry, output),
            ]
        last = blocks[-1].target
        return (*blocks, Block("head/kernel", last, last + 1))


def _batch_norm(channels: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(
        channels,
        momentum=0.9,
        epsilon=BATCH_NORM_EPSILON,
        # E[x^2] - E[x]^2 cancels in float32 when a channel's mean outgrows its spread.
        use_fast_variance=False,
        rngs=rngs,
    )
