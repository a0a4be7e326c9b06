"""VGG with batch-norm for small images."""

from itertools import accumulate

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.layers import batch_norm, conv, dense, image_shape, max_pool
from spectral_jax.weights import Block

# Convolutions per stage; the stages have 1, 2, 4, 8 and 8 times the width in channels.
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_MULTIPLES = (1, 2, 4, 8, 8)
_SHRINKS = 2 ** len(_MULTIPLES)


class VGG(nnx.Module):
    """VGG-11, 13, 16 or 19 (arXiv 1409.1556) with batch-norm and one dense layer as its head.

    The form used on CIFAR: a 2 x 2 max-pooling after each stage leaves one position of a 32 x 32
    image, and a single dense layer takes the place of the three for ImageNet; what is left of a
    larger image is averaged. Convolutions have no bias, which the norm would remove.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        rngs: nnx.Rngs,
        depth: int = 16,
        width: int = 64,
    ):
        if depth not in _STAGES:
            raise ValueError(f"depth={depth} is not one of {', '.join(map(str, _STAGES))}")
        if width < 1:
            raise ValueError(f"width={width} must be positive: 64 is the published network")
        *sides, channels = image_shape(input_shape)
        if min(sides) < _SHRINKS:
            raise ValueError(
                f"input_shape={input_shape} is smaller than {_SHRINKS} x {_SHRINKS}, which five "
                "poolings reduce to one position: enlarge the images"
            )
        self.stages = _STAGES[depth]
        outputs = [
            width * multiple
            for multiple, count in zip(_MULTIPLES, self.stages, strict=True)
            for _ in range(count)
        ]
        inputs = [channels, *outputs[:-1]]
        self.convs = nnx.List(
            [
                conv(i, o, 3, padding=1, bias=False, rngs=rngs)
                for i, o in zip(inputs, outputs, strict=True)
            ]
        )
        self.norms = nnx.List([batch_norm(o, rngs=rngs) for o in outputs])
        self.head = dense(outputs[-1], classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b ..."], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b c"]:
        x = x.reshape(*x.shape[:3], -1)
        layers = iter(zip(self.convs, self.norms, strict=True))
        for count in self.stages:
            for _ in range(count):
                conv, norm = next(layers)
                x = jax.nn.relu(norm(conv(x), use_running_average=not train))
            x = max_pool(x)
        return self.head(jnp.mean(x, axis=(1, 2)))

    @property
    def representations(self) -> tuple[str, ...]:
        """The inputs of the stages behind the first, and of the head."""
        starts = accumulate(self.stages[:-1])
        return (*(f"convs/{start}:input" for start in starts), "head:input")

    def layout(self) -> tuple[Block, ...]:
        """Return the chain of convolutions with their norms, then the head."""
        last = len(self.convs)
        chain = [Block(f"convs/{i}/kernel", i, i + 1, norm=f"norms/{i}") for i in range(last)]
        return (*chain, Block("head/kernel", last, last + 1))
