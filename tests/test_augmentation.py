"""Crops and flips move pixels and change nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.augmentation import crop_flip

KEY = jax.random.key(3)
rng = np.random.default_rng(0)
# No pixel is zero, so that what moved in can be told from what was there.
IMAGES = rng.integers(1, 256, (64, 6, 5, 2), np.uint8)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("images", [IMAGES, IMAGES[..., 0]])
def test_every_image_is_one_of_its_shifts_mirrored_or_not(images):
    found = np.asarray(jax.jit(lambda key, x: crop_flip(key, x, padding=1))(KEY, images))
    assert found.dtype == images.dtype and found.shape == images.shape
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), *[(0, 0)] * (images.ndim - 3)])
    seen = set()
    for i, image in enumerate(found):
        for down in range(3):
            for right in range(3):
                shifted = padded[i, down : down + 6, right : right + 5]
                for flipped, candidate in ((False, shifted), (True, shifted[:, ::-1])):
                    if np.array_equal(image, candidate):
                        seen.add((i, down, right, flipped))
    assert {entry[0] for entry in seen} == set(range(len(images)))
    # 64 draws of 18 outcomes: all shifts and both orientations come up.
    assert {entry[1:3] for entry in seen} == {(d, r) for d in range(3) for r in range(3)}
    assert {entry[3] for entry in seen} == {False, True}


def test_without_padding_images_are_at_most_mirrored():
    found = np.asarray(crop_flip(KEY, IMAGES, padding=0))
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(found, IMAGES, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(found, IMAGES, strict=True)]
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    assert any(mirrored) and any(same)


def test_the_key_decides():
    again = crop_flip(KEY, IMAGES)
    np.testing.assert_array_equal(crop_flip(KEY, IMAGES), again)
    assert not np.array_equal(crop_flip(jax.random.key(4), IMAGES), again)


def test_seeds_side_by_side_draw_as_each_alone():
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(crop_flip, in_axes=(0, None))(keys, jnp.asarray(IMAGES))
    for key, images in zip(keys, together, strict=True):
        np.testing.assert_array_equal(crop_flip(key, jnp.asarray(IMAGES)), images)
