"""Networks for the experiments, written in Flax NNX and handed out as pure functions."""

from models.factored import factored
from models.functional import Functional, Network, functional, init, network
from models.layers import Dropout, dropout
from models.moving import moving
from models.pretrained import PRETRAINED, load_pretrained
from models.registry import MODELS, Model, build, options

__all__ = [
    "MODELS",
    "PRETRAINED",
    "Dropout",
    "Functional",
    "Model",
    "Network",
    "build",
    "dropout",
    "factored",
    "functional",
    "init",
    "load_pretrained",
    "moving",
    "network",
    "options",
]
