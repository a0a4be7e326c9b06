"""What the suite measures on: networks, data, and how much of everything."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data as datasets
from experiments.errors import MISSING, UserError
from experiments.training.task import Data
from models import Network, network
from spectral_jax import weights

SEED = 0
TOLERANCE = 1e-3  # the default of `graphs.fiedler`
CAP = 400  # its default `max_matvecs`
MNIST_PIXELS = 784


class Net(NamedTuple):
    inputs: int
    hidden: tuple[int, ...]
    classes: int

    def __str__(self) -> str:
        return "-".join(map(str, (self.inputs, *self.hidden, self.classes)))


class Size(NamedTuple):
    """The first net is the one that trains."""

    nets: tuple[Net, ...]
    narrow: Net
    laplacians: tuple[str, ...]
    dtypes: tuple[str, ...]
    tolerances: tuple[float, ...]
    arms: tuple[str, ...]
    seed_arms: tuple[str, ...]
    ks: tuple[int, ...]
    starts: tuple[str, ...]
    train_size: int
    batch: int
    warm_steps: int
    refresh_every: int
    seeds: int
    seed_steps: tuple[int, int]
    repeats: int
    rounds: int


FULL = Size(
    nets=(
        Net(MNIST_PIXELS, (500, 500, 500), 10),
        Net(20531, (50, 50, 50), 5),
        Net(2308, (50, 50, 50), 4),
    ),
    narrow=Net(MNIST_PIXELS, (32,), 10),
    laplacians=("L", "normalised"),
    dtypes=("float32", "float64"),
    tolerances=(TOLERANCE, TOLERANCE / 10),
    arms=(
        "penalty, scheduled",
        "penalty, on residual",
        "proximal, scheduled",
        "proximal, on residual",
    ),
    seed_arms=("none", "penalty, scheduled"),
    ks=(1, 3, 6),
    starts=("none", "guesses", "warm"),
    train_size=60_000,
    batch=100,
    warm_steps=100,
    refresh_every=100,
    seeds=5,
    seed_steps=(20, 200),
    repeats=15,
    rounds=5,
)
SMOKE = Size(
    nets=(Net(40, (30,), 10),),
    narrow=Net(40, (4,), 10),
    laplacians=("L",),
    dtypes=("float32",),
    tolerances=(TOLERANCE,),
    arms=("penalty, scheduled",),
    seed_arms=("none",),
    ks=(1,),
    starts=("guesses",),
    train_size=40,
    batch=10,
    warm_steps=4,
    refresh_every=2,
    seeds=2,
    seed_steps=(4, 4),
    repeats=2,
    rounds=1,
)


@cache
def functions(net: Net) -> Network:
    """The network as pure functions; kept, so that arms share compiled code."""
    return network("mlp", input_shape=(net.inputs,), classes=net.classes, hidden=net.hidden)


@cache
def initial(net: Net) -> tuple[np.ndarray, ...]:
    """The graph's blocks at initialisation, float32."""
    params, _ = functions(net).init(jax.random.key(SEED))
    blocks = weights.graph_weights(params, functions(net).layout)
    return tuple(np.asarray(block) for block in blocks)


@cache
def training_data(size: Size) -> tuple[Data, str]:
    """MNIST if it is here, else random examples; and which it was."""
    if size.nets[0].inputs != MNIST_PIXELS:
        return _random_data(size), "random examples"
    try:
        mnist = datasets.load("mnist")
    except UserError as error:
        if error.exit_code != MISSING:
            raise
        return _random_data(size), "random examples, MNIST not found (set SPECTRAL_JAX_DATA)"
    flat = mnist.train_x.reshape(len(mnist.train_x), -1)
    return _data(flat, mnist.train_y, mnist.shift.ravel(), mnist.scale.ravel()), "MNIST"


def _random_data(size: Size) -> Data:
    net, random = size.nets[0], np.random.default_rng(SEED)
    x = random.normal(size=(size.train_size, net.inputs)).astype(np.float32)
    y = random.integers(net.classes, size=size.train_size).astype(np.int32)
    return _data(x, y, np.zeros(1, np.float32), np.ones(1, np.float32))


def _data(x: np.ndarray, y: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> Data:
    examples = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    return Data(examples, {"shift": jnp.asarray(shift), "scale": jnp.asarray(scale)})
