"""Wide residual network."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.layers import batch_norm, conv, dense, image_shape
from spectral_jax.weights import Block


class PreActivationBlock(nnx.Module):
    """``x + F(x)``, F: norm, ReLU and a 3 x 3 convolution, twice.

    Where the channels change, a 1 x 1 convolution of the first activation takes the place of x.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, rngs: nnx.Rngs):
        self.norm1 = batch_norm(inputs, rngs=rngs)
        self.conv1 = conv(inputs, outputs, 3, stride=stride, padding=1, bias=False, rngs=rngs)
        self.norm2 = batch_norm(outputs, rngs=rngs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, bias=False, rngs=rngs)
        self.projects = stride > 1 or inputs != outputs
        if self.projects:
            self.shortcut = conv(inputs, outputs, 1, stride=stride, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b _ _ o"]:
        active = jax.nn.relu(self.norm1(x, use_running_average=not train))
        y = jax.nn.relu(self.norm2(self.conv1(active), use_running_average=not train))
        return self.conv2(y) + (self.shortcut(active) if self.projects else x)


class WideResNet(nnx.Module):
    """WRN-`depth`-`widen` for small images (arXiv 1605.07146), without dropout.

    Depth 6n + 4: three stages of n pre-activation blocks with 16, 32 and 64 times `widen` channels,
    then norm, ReLU, global average pooling. WRN-28-10 on CIFAR-10 has 36,479,194 parameters.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        rngs: nnx.Rngs,
        depth: int = 28,
        widen: int = 10,
    ):
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth} is not 6n + 4 with n >= 1: use 10, 16, 22, 28, ...")
        if widen < 1:
            raise ValueError(f"widen={widen} must be positive: 10 is the published WRN-28-10")
        self.stem = conv(image_shape(input_shape)[2], 16, 3, padding=1, bias=False, rngs=rngs)
        per_stage = (depth - 4) // 6
        outputs = [width * widen for width in (16, 32, 64) for _ in range(per_stage)]
        strides = [2 if k in (per_stage, 2 * per_stage) else 1 for k in range(len(outputs))]
        self.blocks = nnx.List(
            [
                PreActivationBlock(i, o, stride=stride, rngs=rngs)
                for (i, o), stride in zip(pairwise((16, *outputs)), strides, strict=True)
            ]
        )
        self.norm = batch_norm(outputs[-1], rngs=rngs)
        self.head = dense(outputs[-1], classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b ..."], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b c"]:
        x = self.stem(x.reshape(*x.shape[:3], -1))
        for block in self.blocks:
            x = block(x, train=train)
        x = jax.nn.relu(self.norm(x, use_running_average=not train))
        return self.head(jnp.mean(x, axis=(1, 2)))

    @property
    def representations(self) -> tuple[str, ...]:
        """The inputs of the blocks, and of the head."""
        return (*(f"blocks/{k}:input" for k in range(len(self.blocks))), "head:input")

    def layout(self) -> tuple[Block, ...]:
        """Raise ValueError: its norms scale what a kernel reads, a block's norm what it writes."""
        raise ValueError(
            "model 'wide_resnet' has no graph: a norm before a convolution cannot be folded into "
            "the channels after it; use model 'resnet' or 'resnet_imagenet'"
        )
