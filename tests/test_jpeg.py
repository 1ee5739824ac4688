"""JPEG compression of small images is noticed, with its quality and subsampling."""

import io

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.jpeg import describe_compression


def encoded(size=32, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95])
def test_quality_is_estimated(quality):
    files = [encoded(format="JPEG", quality=quality)] * 3
    text = describe_compression(files)
    found = int(text.split("quality ")[1].split()[0].rstrip(","))
    assert abs(found - quality) <= 2


@pytest.mark.parametrize(("subsampling", "name"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_subsampling_is_named(subsampling, name):
    text = describe_compression([encoded(format="JPEG", quality=75, subsampling=subsampling)])
    assert f"with {name} chroma subsampling" in text


def test_grey_images_have_no_chroma():
    text = describe_compression([encoded(mode="L", format="JPEG", quality=75)])
    assert "chroma" not in text and "quality 75" in text


@pytest.mark.parametrize("options", [dict(format="PNG"), dict(format="JPEG", size=65)])
def test_lossless_and_larger_images_are_no_matter(options):
    assert describe_compression([encoded(**options)]) is None
