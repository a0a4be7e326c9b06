"""Inside of ``jax.shard_map`` each device has a network of its own: the numbers are those alone."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from spectral_jax import linalg, tails
from spectral_jax.optim import METRICS, spectral_penalty, temp_balance
from spectral_jax.prune import Policy, prune_spectra, svd_prune

pytestmark = pytest.mark.usefixtures("quick_compilation")
DEVICES = 2


def on_each(function, *trees, check_vma=True):
    """The function of each member of the trees, a device each; and of all by ``vmap``."""
    mesh = jax.make_mesh((DEVICES,), ("seed",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("seed")

    def one(*stacks):
        found = function(*jax.tree.map(lambda x: x[0], stacks))
        return jax.tree.map(lambda x: x[None], found)

    apart = jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    return jax.jit(apart)(*trees), jax.jit(jax.vmap(function))(*trees)


def matrices(*shape):
    return jax.random.normal(jax.random.key(0), (DEVICES, *shape))


def squares(w):
    return linalg.svdvals(w, method="lapack") ** 2


OF_MATRIX = {
    **{name: METRICS[name]() for name in ("hill", "debiased", "shape_only")},
    "farms": METRICS["farms"](window=8),
    "singular values": linalg.svdvals,
    "power law": lambda w: tails.power_law_fit(squares(w)).alpha,
    "hill fit": lambda w: tails.hill_fit(squares(w)).alpha,
    "metrics": lambda w: tails.spectral_metrics(squares(w), w.shape).stable_rank,
    "pruning": lambda w: prune_spectra({"w": w}, Policy()).params,
}


@pytest.mark.parametrize("name", OF_MATRIX)
def test_a_number_of_a_matrix_is_the_same_on_a_device_of_its_own(name):
    found, expected = on_each(OF_MATRIX[name], matrices(24, 16))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


STEERING = {
    "fiedler": lambda: spectral_penalty("fiedler", 0.1),
    "spectral_norm": lambda: spectral_penalty("spectral_norm", 0.1),
    "balance": lambda: temp_balance(refresh_every=1, metric="hill", min_eigenvalues=2),
    "prune": lambda: svd_prune(Policy(), steps_per_epoch=1, every=1),
}


@pytest.mark.parametrize("name", STEERING)
def test_seeds_on_devices_of_their_own_are_steered_as_under_vmap(name):
    transformation = STEERING[name]()
    params = {"a": {"kernel": matrices(24, 16)}, "b": {"kernel": matrices(16, 24)}}
    state = jax.vmap(transformation.init)(params)

    def step(params, state):
        updates = jax.tree.map(lambda leaf: 0.01 * leaf, params)
        return optax.apply_updates(params, transformation.update(updates, state, params)[0])

    # The loops of the eigensolver start from constants, which the check takes for a fault.
    found, expected = on_each(step, params, state, check_vma=name != "fiedler")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )
