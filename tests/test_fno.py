"""A Fourier neural operator is a function of fields, not of their grids."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.fno import FNO, SpectralConv
from models.functional import functional
from models.layers import draw

pytestmark = pytest.mark.usefixtures("quick_compilation")
MODES = 4


@cache
def operator():
    model = FNO(width=6, modes=MODES, depth=2, hidden=8, rngs=nnx.Rngs(0))
    draw(jax.random.key(1), model)
    apply, *rest = functional(model)
    return jax.jit(apply), *rest


def field(points, *, waves=3):
    """A band-limited field, which any grid of 7 points or more holds exactly."""
    x = np.arange(points) / points
    k = np.arange(1, waves + 1)
    phase = 2 * np.pi * k[:, None] * x
    return jnp.asarray((np.cos(phase).sum(0) + 0.5 * np.sin(phase[0]))[None, :, None], jnp.float32)


def run(x):
    apply, params, state, _ = operator()
    return apply(params, state, x)[0]


def test_a_finer_grid_shows_the_same_function():
    # The nonlinearity makes every wave, so grids agree as fast as its spectrum falls off.
    coarse, fine, finest = (run(field(n))[:, :: n // 16] for n in (16, 64, 128))
    np.testing.assert_allclose(fine, finest, atol=2e-5)
    assert np.abs(coarse - finest).max() < 0.02 * np.abs(finest).max()


def test_a_shift_of_the_input_is_a_shift_of_the_output():
    x = field(32)
    np.testing.assert_allclose(run(jnp.roll(x, 5, axis=1)), jnp.roll(run(x), 5, axis=1), atol=1e-5)


def test_a_spectral_layer_is_a_matrix_per_mode_and_nothing_above():
    layer = SpectralConv(3, MODES, rngs=nnx.Rngs(0))
    draw(jax.random.key(2), layer)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 3)).astype(np.float32)
    weights = np.asarray(layer.real[...]) + 1j * np.asarray(layer.imag[...])
    spectrum = np.zeros((2, 9, 3), complex)
    spectrum[:, :MODES] = np.einsum("bki,kio->bko", np.fft.rfft(x, axis=1)[:, :MODES], weights)
    np.testing.assert_allclose(layer(jnp.asarray(x)), np.fft.irfft(spectrum, 16, axis=1), atol=1e-5)


def test_it_draws_every_parameter_and_its_gradients_are_real():
    apply, params, state, _ = operator()
    x = field(16)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(apply(p, state, x)[0] ** 2)))(params)
    for name in ("real", "imag"):
        weights = params["spectral"]["0"][name]
        np.testing.assert_allclose(np.std(weights), (0.5 / 6) ** 0.5, rtol=0.2)
    assert all(np.isrealobj(g) and np.any(g) for g in jax.tree.leaves(grads))
    assert all(np.any(p) for p in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: FNO(modes=0, rngs=nnx.Rngs(0)), "modes=0"),
        (lambda: run(field(7)), "x has 7 points for modes=4"),
        (lambda: FNO(rngs=nnx.Rngs(0)).layout(), "FNO has no graph"),
    ],
)
def test_misuse_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
