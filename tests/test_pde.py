"""The Burgers solver meets the closed form of Cole and Hopf, and keeps what the equation keeps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data.pde import burgers, random_fields

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def cole_hopf(x, time, viscosity, *, offset, wave=1):
    """``u = -2 nu phi_x / phi`` for ``phi = offset + exp(-nu k^2 t) cos(k x)``, a heat solution."""
    k = 2 * math.pi * wave
    decay = np.exp(-viscosity * k**2 * time)
    return 2 * viscosity * k * decay * np.sin(k * x) / (offset + decay * np.cos(k * x))


def grid(points):
    return np.arange(points) / points


def solve(initial, **options):
    return burgers(jnp.asarray(initial), **options)


@settings(max_examples=8, deadline=None)
@given(viscosity=st.floats(0.02, 0.3), offset=st.floats(1.2, 3.0), wave=st.sampled_from([1, 2]))
def test_it_meets_cole_and_hopf(viscosity, offset, wave):
    x, time = grid(96), 0.2
    initial = cole_hopf(x, 0.0, viscosity, offset=offset, wave=wave)
    truth = cole_hopf(x, time, viscosity, offset=offset, wave=wave)
    found = solve(initial, viscosity=viscosity, time=time, steps=256)
    assert found.resolved
    np.testing.assert_allclose(found.values, truth, atol=2e-6 * np.abs(initial).max())


def test_halving_the_step_divides_the_error_by_sixteen():
    x, options = grid(64), {"viscosity": 0.05, "time": 0.5}
    initial = np.sin(2 * np.pi * x) + 0.5 * np.cos(4 * np.pi * x)
    truth = solve(initial, steps=2048, **options).values
    errors = [
        float(jnp.max(jnp.abs(solve(initial, steps=steps, **options).values - truth)))
        for steps in (32, 64, 128)
    ]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 4, atol=0.25)


def test_a_short_wave_decays_as_heat_does():
    x = grid(32)
    found = solve(1e-9 * np.cos(6 * np.pi * x), viscosity=0.1, time=0.3, steps=1)
    decay = np.exp(-0.1 * (6 * np.pi) ** 2 * 0.3)
    np.testing.assert_allclose(found.values, 1e-9 * decay * np.cos(6 * np.pi * x), atol=1e-17)


def test_mean_is_kept_energy_falls_and_moving_frames_agree():
    initial = np.asarray(random_fields(KEY, 3, 64))
    options = {"viscosity": 0.05, "time": 0.25, "steps": 256}
    still = solve(initial, **options).values
    np.testing.assert_allclose(still.mean(-1), initial.mean(-1), atol=1e-14)
    assert np.all(np.sum(np.square(still), -1) < np.sum(initial**2, -1))
    moving = solve(initial + 1.0, **options).values  # the frame moves by a quarter of the circle
    np.testing.assert_allclose(moving - 1, np.roll(still, 16, axis=-1), atol=1e-6)


def test_another_length_is_another_unit():
    initial = np.asarray(random_fields(KEY, 1, 48))
    one = solve(initial, viscosity=0.1, time=0.2, steps=100)
    stretched = solve(initial, viscosity=0.3, time=0.6, steps=100, length=3.0)
    other = solve(initial, viscosity=0.9, time=0.6, steps=100, length=3.0)
    np.testing.assert_allclose(stretched.values, one.values, atol=1e-12)
    assert float(jnp.max(jnp.abs(other.values - one.values))) > 1e-3


def test_a_shock_too_thin_and_a_step_too_long_are_flagged():
    initial = np.asarray(random_fields(KEY, 4, 64))
    assert solve(initial, viscosity=0.05, time=1.0, steps=400).resolved.all()
    assert not solve(10 * initial, viscosity=1e-3, time=1.0, steps=4000).resolved.any()
    assert not solve(100 * initial, viscosity=1e-3, time=1.0, steps=5).resolved.any()


def test_gradient_and_vmap_are_those_of_a_plain_function():
    initial = jnp.asarray(random_fields(KEY, 2, 16))

    def energy(viscosity):
        return jnp.sum(burgers(initial, viscosity=viscosity, time=0.1, steps=8).values ** 2)

    slope = (energy(0.05 + 1e-6) - energy(0.05 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(energy)(0.05), slope, rtol=1e-6)
    rows = jax.vmap(lambda u: burgers(u, viscosity=0.05, time=0.1, steps=8).values)(initial)
    together = burgers(initial, viscosity=0.05, time=0.1, steps=8).values
    np.testing.assert_allclose(rows, together, atol=1e-14)


def test_fields_have_the_covariance_of_the_prior_and_do_not_know_the_grid():
    fields = np.asarray(random_fields(KEY, 4000, 64))
    np.testing.assert_allclose(random_fields(KEY, 4000, 128)[:, ::2], fields, atol=1e-12)
    power = np.mean(np.abs(np.fft.rfft(fields, norm="forward")) ** 2, axis=0)
    k = np.arange(1, 6)
    expected = 625 / ((2 * np.pi * k) ** 2 + 25) ** 2
    np.testing.assert_allclose(power[1:6], expected, rtol=0.1)
    np.testing.assert_allclose(power[0], 0, atol=1e-20)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: solve(np.ones(4), viscosity=1, time=1, steps=1), "initial has 4 points"),
        (lambda: solve(np.ones(8), viscosity=1, time=1, steps=0), "steps=0"),
        (lambda: random_fields(KEY, 1, 4), "points=4"),
    ],
)
def test_misuse_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
