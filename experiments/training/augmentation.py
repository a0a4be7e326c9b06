"""Random changes of training images that leave their label right, inside the compiled step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PADDING = 4


def crop(key: Array, x: Array, *, padding: int = PADDING) -> Array:
    """Shift every image of ``[b, h, w]`` or ``[b, h, w, c]`` by up to ``padding`` pixels either
    way, zeros moving in.

    Every image has its own draw. Holds under ``jit`` and ``vmap``; keeps the dtype.
    """
    return _cropped(key, x, padding, jnp.zeros((len(x), 1), bool))


def crop_flip(key: Array, x: Array, *, padding: int = PADDING) -> Array:
    """`crop`, and mirror every other image, by chance, left to right.

    Source: He et al. 2015 (arXiv 1512.03385), section 4.2.
    """
    shift_key, flip_key = jax.random.split(key)
    mirrored = jax.random.bernoulli(flip_key, shape=(len(x), 1))
    return _cropped(shift_key, x, padding, mirrored)


def _cropped(key: Array, x: Array, padding: int, mirrored: Array) -> Array:
    batch, height, width = x.shape[:3]
    rest = ((0, 0),) * (x.ndim - 3)
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), *rest))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)
    rows = corners[:, :1] + jnp.arange(height)
    columns = corners[:, 1:] + jnp.arange(width)
    columns = jnp.where(mirrored, columns[:, ::-1], columns)
    return padded[jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def of_images(change: Callable[[Array, Array], Array]) -> Callable[[Array, Any], Any]:
    """A change of images as one of labelled examples, as a ``Task`` takes it."""

    def augment(key, examples):
        return {**examples, "x": change(key, examples["x"])}

    return augment


AUGMENTATIONS = {"crop_flip": of_images(crop_flip)}
