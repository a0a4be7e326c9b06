"""Random inputs by NumPy, which compiles nothing: signatures as in ``jax.random``."""

import jax
import numpy as np


def normal(key, shape=(), dtype="float32"):
    return np.asarray(_generator(key).standard_normal(shape), dtype)


def uniform(key, shape=(), dtype="float32", minval=0.0, maxval=1.0):
    return np.asarray(_generator(key).uniform(minval, maxval, shape), dtype)


def bernoulli(key, p=0.5, shape=()):
    return _generator(key).random(shape) < p


def _generator(key):
    # With a number of their own, or those of key 0 would be the draws of `default_rng(0)`.
    return np.random.default_rng([2026, *np.asarray(jax.random.key_data(key))])


def changed(array, place, value):
    """A copy with another value in one place."""
    copy = np.array(array)
    copy[place] = value
    return copy
