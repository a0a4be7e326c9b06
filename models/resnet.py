"""Residual networks with the norm after each convolution: CIFAR and ImageNet families."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.layers import batch_norm, conv, dense, image_shape
from spectral_jax.weights import Block

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_BOTTLENECKS_FROM = 50


class ResidualBlock(nnx.Module):
    """``relu(F(x) + shortcut(x))``; F: convolutions, a norm after each, ReLU between.

    The stride is that of the first 3 x 3 convolution. Where the shape changes, the shortcut is
    either free of parameters (option A: subsample, new channels zero) or a 1 x 1 convolution with
    a norm (option B); elsewhere it is the identity.
    """

    def __init__(
        self,
        widths: Sequence[int],
        sizes: Sequence[int],
        *,
        stride: int,
        projects: bool,
        rngs: nnx.Rngs,
        padding: Literal["symmetric", "same"] = "symmetric",
    ):
        self.stride, self.depth = stride, len(sizes)
        strided = sizes.index(3)
        for i, (size, (inputs, outputs)) in enumerate(zip(sizes, pairwise(widths), strict=True)):
            layer = conv(
                inputs,
                outputs,
                size,
                stride=stride if i == strided else 1,
                padding="SAME" if padding == "same" else size // 2,
                bias=False,
                rngs=rngs,
            )
            setattr(self, f"conv{i + 1}", layer)
            setattr(self, f"norm{i + 1}", batch_norm(outputs, rngs=rngs))
        self.projects = projects and (stride > 1 or widths[0] != widths[-1])
        if self.projects:
            self.shortcut = conv(widths[0], widths[-1], 1, stride=stride, bias=False, rngs=rngs)
            self.shortcut_norm = batch_norm(widths[-1], rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b _ _ o"]:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"conv{i}")(jax.nn.relu(y) if i > 1 else y)
            y = getattr(self, f"norm{i}")(y, use_running_average=not train)
        return jax.nn.relu(y + self._shortcut(x, y.shape[-1], train=train))

    def _shortcut(self, x: Array, channels: int, *, train: bool) -> Array:
        if self.projects:
            return self.shortcut_norm(self.shortcut(x), use_running_average=not train)
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))

    def layout(self, path: str, entry: int) -> tuple[Block, ...]:
        """Return F's chain from group `entry` on, then the shortcut to the chain's last group."""
        last = entry + self.depth
        chain = [
            Block(f"{path}/conv{i}/kernel", entry + i - 1, entry + i, norm=f"{path}/norm{i}")
            for i in range(1, self.depth + 1)
        ]
        if not self.projects:
            return (*chain, Block(None, entry, last))
        shortcut = Block(f"{path}/shortcut/kernel", entry, last, norm=f"{path}/shortcut_norm")
        return (*chain, shortcut)


class _Residual(nnx.Module):
    """Stem, residual blocks, global average pooling, dense head."""

    stem: nnx.Conv
    stem_norm: nnx.BatchNorm
    blocks: nnx.List
    head: nnx.Linear
    pools: bool = False

    def __call__(
        self, x: Float[Array, "b ..."], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b c"]:
        x = self.stem(x.reshape(*x.shape[:3], -1))
        x = jax.nn.relu(self.stem_norm(x, use_running_average=not train))
        if self.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x, train=train)
        return self.head(jnp.mean(x, axis=(1, 2)))

    @property
    def representations(self) -> tuple[str, ...]:
        """The inputs of the blocks, and of the head."""
        return (*(f"blocks/{k}:input" for k in range(len(self.blocks))), "head:input")

    def layout(self) -> tuple[Block, ...]:
        """Return stem, then per residual block its folded convolutions and the skip, then head.

        Group 1 is the stem's output; each residual block adds its inner channels, then its output.
        """
        blocks = [Block("stem/kernel", 0, 1, norm="stem_norm")]
        for k, block in enumerate(self.blocks):
            blocks += block.layout(f"blocks/{k}", blocks[-1].target)
        last = blocks[-1].target
        return (*blocks, Block("head/kernel", last, last + 1))


class ResNet(_Residual):
    """ResNet of depth 6n + 2 for small images (arXiv 1512.03385, section 4.2).

    Three stages of n residual blocks with 16, 32 and 64 channels, batch-norm, global average
    pooling. `shortcut`: "A" subsamples and pads with zero channels, "B" projects by 1 x 1
    convolutions. ResNet-20 on CIFAR-10 has 269,722 trainable parameters with A, 272,474 with B.
    `padding`: "symmetric" as in torch, or "same" for weights trained with Keras.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        rngs: nnx.Rngs,
        depth: int = 20,
        shortcut: Literal["A", "B"] = "A",
        padding: Literal["symmetric", "same"] = "symmetric",
    ):
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f"depth={depth} is not 6n + 2 with n >= 1: use 8, 14, 20, 32, 44, ...; "
                "18, 34 and 50 are depths of model 'resnet_imagenet'"
            )
        _choose("shortcut", shortcut, ("A", "B"))
        _choose("padding", padding, ("symmetric", "same"))
        self.stem = conv(image_shape(input_shape)[2], 16, 3, padding=1, bias=False, rngs=rngs)
        self.stem_norm = batch_norm(16, rngs=rngs)
        outputs = [width for width in (16, 32, 64) for _ in range((depth - 2) // 6)]
        self.blocks = nnx.List(
            [
                ResidualBlock(
                    (i, o, o),
                    (3, 3),
                    stride=1 if i == o else 2,
                    projects=shortcut == "B",
                    padding=padding,
                    rngs=rngs,
                )
                for i, o in pairwise((16, *outputs))
            ]
        )
        self.head = dense(64, classes, rngs=rngs)


class ImageNetResNet(_Residual):
    """ResNet-18, 34 (two 3 x 3 convolutions per block) or 50 (bottlenecks), option-B shortcuts.

    Four stages of 1, 2, 4 and 8 times `width` channels (arXiv 1512.03385, table 1), bottlenecks
    strided at their 3 x 3 convolution as in torchvision. `stem`: "imagenet" is a 7 x 7 convolution
    of stride 2 and a max-pooling, "cifar" one 3 x 3 convolution for images of 32 x 32 (the network
    of TempBalance and of kuangliu's CIFAR code).
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        rngs: nnx.Rngs,
        depth: int = 18,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        width: int = 64,
    ):
        if depth not in _STAGES:
            raise ValueError(
                f"depth={depth} is not one of {', '.join(map(str, _STAGES))}; "
                "depths 6n + 2 are those of model 'resnet'"
            )
        _choose("stem", stem, ("imagenet", "cifar"))
        if width < 1:
            raise ValueError(f"width={width} must be positive: 64 is the published network")
        channels = image_shape(input_shape)[2]
        self.pools = stem == "imagenet"
        size, stride = (7, 2) if self.pools else (3, 1)
        self.stem = conv(
            channels, width, size, stride=stride, padding=size // 2, bias=False, rngs=rngs
        )
        self.stem_norm = batch_norm(width, rngs=rngs)
        self.blocks = nnx.List(_stages(depth, width, rngs=rngs))
        self.head = dense(_outputs(depth, 8 * width), classes, rngs=rngs)


def _stages(depth: int, width: int, *, rngs: nnx.Rngs) -> list[ResidualBlock]:
    sizes = (1, 3, 1) if depth >= _BOTTLENECKS_FROM else (3, 3)
    blocks, inputs = [], width
    for stage, count in enumerate(_STAGES[depth]):
        inner = width * 2**stage
        outputs = _outputs(depth, inner)
        for k in range(count):
            widths = (inputs, *[inner] * (len(sizes) - 1), outputs)
            stride = 2 if stage and not k else 1
            blocks.append(ResidualBlock(widths, sizes, stride=stride, projects=True, rngs=rngs))
            inputs = outputs
    return blocks


def _outputs(depth: int, inner: int) -> int:
    return 4 * inner if depth >= _BOTTLENECKS_FROM else inner


def _choose(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{option}={value!r} is unknown: use {' or '.join(map(repr, known))}")
