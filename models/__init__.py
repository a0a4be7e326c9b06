"""Networks for the experiments, written in Flax NNX and handed out as pure functions."""

from models.functional import Functional, Network, functional, init, network
from models.registry import MODELS, Model, build, options

__all__ = [
    "MODELS",
    "Functional",
    "Model",
    "Network",
    "build",
    "functional",
    "init",
    "network",
    "options",
]
