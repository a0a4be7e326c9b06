"""The networks by name. A new one is a file and a line here."""

import inspect
from difflib import get_close_matches
from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Shaped

from models.gpt import GPT
from models.layers import draw
from models.lenet import LeNet, TanhLeNet
from models.mlp import MLP
from models.resnet import ImageNetResNet, ResNet
from models.vgg import VGG
from models.wide_resnet import WideResNet
from spectral_jax.weights import Block

MODELS: dict[str, type[Any]] = {
    "mlp": MLP,
    "lenet": LeNet,
    "lenet_tanh": TanhLeNet,
    "resnet": ResNet,
    "resnet_imagenet": ImageNetResNet,
    "vgg": VGG,
    "wide_resnet": WideResNet,
    "gpt": GPT,
}

_ALWAYS = {"self", "input_shape", "classes", "rngs"}


@runtime_checkable
class Model(Protocol):
    """What every network here is, besides an `nnx.Module`."""

    def __call__(
        self, x: Shaped[Array, "b ..."], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *positions c"]:
        """Return the logits; only ``train=True`` drops out and updates statistics."""
        ...

    @property
    def representations(self) -> tuple[str, ...]:
        """Points of `spectral_jax.nnx.tap` from first to last: that is the input of the head."""
        ...

    def layout(self) -> tuple[Block, ...]:
        """Return the blocks of the network's graph, or raise ValueError where it has none."""
        ...


def options(name: str) -> tuple[str, ...]:
    """Return the options that model `name` takes besides input_shape, classes and rngs."""
    parameters = inspect.signature(_find(name).__init__).parameters
    return tuple(option for option in parameters if option not in _ALWAYS)


def build(
    name: str, *, input_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs, **choices: Any
) -> Model:
    """Build model `name` for inputs of `input_shape` (one example) and `classes` outputs.

    Raises:
        ValueError: the name or an option is unknown, or an option's value is out of range.
    """
    model = _find(name)
    for option in choices:
        if option not in options(name):
            known = ", ".join(options(name))
            raise ValueError(f"model {name!r} has no option {option!r}: it takes {known}")
    built = model(input_shape=input_shape, classes=classes, rngs=rngs, **choices)
    draw(rngs.params(), built)
    return built


def _find(name: str) -> type[Any]:
    if name in MODELS:
        return MODELS[name]
    close = get_close_matches(name, MODELS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(MODELS)}"
    raise ValueError(f"unknown model name {name!r}: {hint}")
