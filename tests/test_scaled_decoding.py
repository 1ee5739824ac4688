"""JPEG files are decoded at a reduced scale where data.scaled_decoding asks for it, only there."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageFilter
from tiny_datasets import write_tfds
from tiny_images import encode, noise, read, tfds_config

from vit_jax.data.images import read_image
from vit_jax.data.sources import open_source

WIDTH, HEIGHT = 200, 128


def photo(seed=0):
    """Draw smooth noise, uint8 [HEIGHT, WIDTH, 3]."""
    small = Image.fromarray(noise(seed, (HEIGHT // 8, WIDTH // 8, 3)))
    return np.asarray(small.resize((WIDTH, HEIGHT)).filter(ImageFilter.GaussianBlur(2)))


def both(content, size, channels=3):
    """Read an encoded image at full and at reduced scale."""
    return [
        read_image(io.BytesIO(content), size, channels, scaled_decoding=scaled)
        for scaled in (False, True)
    ]


@pytest.mark.parametrize(
    ("size", "scale"),
    [(128, 1), (65, 1), (64, 2), (33, 2), (32, 4), (17, 4), (16, 8), (9, 8), (8, 8), (3, 8)],
)
def test_the_smallest_scale_that_is_large_enough_is_decoded(size, scale):
    content = encode(photo(), "jpeg", quality=95)
    image = Image.open(io.BytesIO(content))
    image.draft(None, (WIDTH // scale, HEIGHT // scale))
    assert image.size == (WIDTH // scale, HEIGHT // scale)
    expected = encode(np.asarray(image))  # a PNG file of that scale
    np.testing.assert_array_equal(both(content, size)[1], both(expected, size)[0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [64, 50, 32, 20])
def test_pixels_differ_little_from_full_decoding(size, orientation, channels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    full, scaled = both(encode(photo(), "jpeg", quality=95, exif=exif), size, channels)
    difference = np.abs(full.astype(int) - scaled)
    assert 0 < difference.mean() < 2 and difference.max() <= 16


@pytest.mark.parametrize(
    "content",
    [encode(photo(), kind) for kind in ("png", "webp", "bmp")]
    + [encode(photo()[:63], "jpeg"), encode(noise(0), "jpeg")],
    ids=["png", "webp", "bmp", "less than twice as large", "smaller"],
)
def test_other_formats_and_small_images_are_unaffected(content):
    np.testing.assert_array_equal(*both(content, 32))


def test_every_source_decodes_as_its_setting_says(tmp_path):
    contents = [encode(photo(i), "jpeg") for i in range(4)]
    for i, content in enumerate(contents):
        path = tmp_path / "folder" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    kinds = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["a", "b"]),
    }
    rows = [{"image": c, "label": i % 2} for i, c in enumerate(contents)]
    write_tfds(tmp_path, kinds, {"train": rows})
    for scaled in (False, True):
        keys = {"image_size": 24, "scaled_decoding": scaled}
        expected = [both(content, 24)[scaled] for content in contents]
        found = read(tmp_path / "folder", **keys)
        np.testing.assert_array_equal(found, [expected[i] for i in (0, 2, 1, 3)])
        examples = open_source(tfds_config(tmp_path, **keys)).examples("train")
        np.testing.assert_array_equal([image for image, _ in examples.read(range(4))], expected)
