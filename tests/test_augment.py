"""Crop and flip move pixels as said, whatever the number of devices."""

import jax
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.augment import augment, crop_and_flip
from vit_jax.config import get_config

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 6, 7, 3), np.uint8)


def placements(image, result, padding):
    """Returns every (row offset, column offset, flipped) that turns `image` into `result`."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return [
        (i, j, flipped)
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
        for flipped in (False, True)
        if np.array_equal(padded[i : i + 6, j : j + 7][:, :: -1 if flipped else 1], result)
    ]


def test_every_image_is_a_crop_of_itself():
    results = np.asarray(crop_and_flip(jax.random.key(0), IMAGES, padding=2, flip=True))
    assert results.dtype == np.uint8
    found = [placements(*pair, 2) for pair in zip(IMAGES, results, strict=True)]
    assert all(len(options) == 1 for options in found)
    rows, columns, flips = zip(*(options[0] for options in found), strict=True)
    assert set(rows) == set(columns) == set(range(5))
    assert 16 < sum(flips) < 48


def test_without_flip_nothing_is_mirrored():
    results = np.asarray(crop_and_flip(jax.random.key(0), IMAGES, padding=1, flip=False))
    for pair in zip(IMAGES, results, strict=True):
        assert [flipped for *_, flipped in placements(*pair, 1)] == [False]


def test_same_pixels_on_one_device_and_on_eight():
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    split = jax.jit(
        lambda key, images: crop_and_flip(key, images, 2, True), out_shardings=sharding.split(mesh)
    )
    one = crop_and_flip(jax.random.key(3), IMAGES, 2, True)
    np.testing.assert_array_equal(one, split(jax.random.key(3), sharding.put_split(mesh, IMAGES)))


@pytest.mark.parametrize("kind", ["none", "baseline"])
def test_kinds(kind):
    config = get_config().augment
    config.kind = kind
    same = np.array_equal(augment(jax.random.key(0), IMAGES, config), IMAGES)
    assert same == (kind == "none")
