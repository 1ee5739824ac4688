"""Operations agree with Pillow, and policies draw them as published."""

import jax
import numpy as np
import pytest
from jitted import run
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from sklearn.datasets import load_sample_images

from vit_jax.augment import policies
from vit_jax.augment.ops import GEOMETRIC, apply_ops, make_ops

RNG = np.random.default_rng(0)


def sample_images():
    """200 random and 50 photographed images, 32 x 32 x 3; some of low contrast, some flat."""
    random = RNG.integers(0, 256, (150, 32, 32, 3))
    weak = RNG.integers(0, 200, (40, 1, 1, 3)) + RNG.integers(0, 40, (40, 32, 32, 3))
    flat = np.tile(RNG.integers(0, 256, (5, 1, 1, 3)), (1, 32, 32, 1))
    levels = RNG.integers(0, 256, (2, 5, 1, 1, 3))
    two_levels = np.where(RNG.random((5, 32, 32, 1)) < 0.3, *levels)
    photos = [
        photo[y : y + 32, x : x + 32]
        for photo in load_sample_images().images
        for y, x in RNG.integers(0, 390, (25, 2))
    ]
    return np.concatenate([random, weak, flat, two_levels, photos]).astype(np.uint8)


def with_pillow(name, magnitude, pixels, fill):
    """Apply an operation with Pillow, by the same calls as torchvision."""
    image = Image.fromarray(pixels.squeeze())
    fill = (fill,) * len(image.getbands()) if image.mode == "RGB" else fill
    matrix = {
        "ShearX": (1, magnitude, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, magnitude, 1, 0),
        "TranslateX": (1, 0, -int(magnitude), 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, -int(magnitude)),
    }
    if name in matrix:
        nearest = Image.Resampling.NEAREST
        affine = Image.Transform.AFFINE
        result = image.transform(image.size, affine, matrix[name], nearest, fillcolor=fill)
    elif name == "Rotate":
        result = image.rotate(magnitude, Image.Resampling.NEAREST, fillcolor=fill)
    elif name == "Posterize":
        result = ImageOps.posterize(image, int(magnitude))
    elif name == "Solarize":
        result = ImageOps.solarize(image, magnitude)
    elif name in policies.ENHANCEMENTS:
        result = getattr(ImageEnhance, name)(image).enhance(1 + magnitude)
    else:
        result = getattr(ImageOps, name.lower())(image)
    return np.asarray(result).reshape(pixels.shape)


MAGNITUDES = {
    **dict.fromkeys(("Invert", "AutoContrast", "Equalize"), (0,)),
    "Solarize": (0, 28.333, 128, 255),
    "Posterize": (1, 4, 7, 8),
    **dict.fromkeys(("Brightness", "Contrast", "Color", "Sharpness"), (-0.9, -0.3, 0.1, 0.99)),
    **dict.fromkeys(("ShearX", "ShearY"), (-0.99, -0.3, 0.1, 0.3)),
    **dict.fromkeys(("TranslateX", "TranslateY"), (-14.5, -1.6, 9, 32)),
    "Rotate": (-135, -10 / 3, 5, 30, 90),
}


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_agree_with_pillow(channels):
    images = sample_images()[:: 2 if channels == 3 else 5, ..., :channels]
    operations = [(name, float(m)) for name, list_ in MAGNITUDES.items() for m in list_]
    ops = make_ops(operations, 32, 32)
    apply = jax.jit(lambda images, row: apply_ops(images, ops, row, 77))
    for row, (name, magnitude) in enumerate(operations):
        result = np.asarray(apply(images, np.full((len(images), 1), row))).astype(int)
        expected = np.stack([with_pillow(name, magnitude, image, 77) for image in images])
        # Geometric operations are exact, including ties: coordinates are Pillow's fixed point.
        most = int(name in ("Contrast", "Color", "Sharpness"))
        assert abs(result - expected).max() <= most, (name, magnitude)
        assert (result != expected).mean() < 1e-4 * most + 1e-9, (name, magnitude)


def test_slots_apply_in_order_and_per_image():
    images = sample_images()[:40, :20, :31]
    names = ["Rotate", "Equalize", "Sharpness", "Invert", "ShearX"]
    operations = [("Identity", 0.0)] + [(name, 0.3) for name in names]
    rows = RNG.integers(0, len(operations), (40, 3))
    ops = make_ops(operations, 20, 31)
    results = run(lambda images, rows: apply_ops(images, ops, rows, 0), images, rows)
    for image, row, changed in zip(images, rows, results, strict=True):
        for number in row[row > 0]:
            image = with_pillow(*operations[number], image, 0)
        np.testing.assert_allclose(changed.astype(int), image, atol=1)


RANGES = {
    **dict.fromkeys(("ShearX", "ShearY"), ((0, 0.3), (0, 0.99))),
    "TranslateX": ((0, 64 * 150 / 331), (0, 32)),
    "TranslateY": ((0, 32 * 150 / 331), (0, 32)),
    "Rotate": ((0, 30), (0, 135)),
    **dict.fromkeys(("Brightness", "Contrast", "Color", "Sharpness"), ((0, 0.9), (0, 0.99))),
    "Solarize": ((255, 0), (255, 0)),
}


def magnitude_of(name, level, levels, wide):
    if name == "Posterize":
        return 8 - round(level * (6 if wide else 4) / (levels - 1))
    low, high = RANGES.get(name, ((0, 0), (0, 0)))[wide]
    return low + (high - low) * level / (levels - 1)


def assert_rows_are(policy, choice, slot, name, magnitude):
    signed = name in GEOMETRIC or name in policies.ENHANCEMENTS
    for negative in (0, 1):
        expected = make_ops([(name, -magnitude if signed and negative else magnitude)], 32, 64)
        row = policy.rows[choice, slot, negative]
        for column in vars(expected):
            found = getattr(policy.ops, column)[row]
            np.testing.assert_array_equal(found, getattr(expected, column)[0])


def draw(seed, policy):
    return run(lambda key: policies.draw(key, policy, 100_000), jax.random.key(seed))


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_autoaugment_follows_its_table(name):
    policy = policies.make_autoaugment(name, 32, 64)
    assert policy.rates.shape == (25, 2)
    for choice, pair in enumerate(policies.POLICIES[name]):
        for slot, (op, _, level) in enumerate(pair):
            assert_rows_are(policy, choice, slot, op, magnitude_of(op, level, 10, False))
    choices, applied, negative = draw(0, policy)
    assert (choices[:, 0] == choices[:, 1]).all()
    counts = np.zeros((25, 2, 2))
    np.add.at(counts, (choices[:, 0], *applied.T.astype(int)), 1)
    rates = np.array([[rate for _, rate, _ in pair] for pair in policies.POLICIES[name]])
    chances = np.stack([1 - rates, rates], -1)  # [sub-policy, slot, applied]
    expected = 100_000 / 25 * chances[:, 0, :, None] * chances[:, 1, None, :]
    possible = expected > 0
    assert not counts[~possible].any()
    assert stats.chisquare(counts[possible], expected[possible]).pvalue > 0.01
    assert abs(negative.mean(0) - 0.5).max() < 0.01


@pytest.mark.parametrize(("num_ops", "level"), [(2, 9), (3, 30)])
def test_randaugment_draws_operations_uniformly(num_ops, level):
    policy = policies.make_randaugment(num_ops, level, 32, 64)
    assert set(policies.ALL) == {"Identity", "Posterize", "AutoContrast", "Equalize"} | set(RANGES)
    for choice, op in enumerate(policies.ALL):
        for slot in range(num_ops):
            assert_rows_are(policy, choice, slot, op, magnitude_of(op, level, 31, False))
    choices, applied, _ = draw(1, policy)
    assert applied.all()
    pairs = np.zeros((14, 14))
    np.add.at(pairs, (choices[:, 0], choices[:, 1]), 1)
    assert stats.chisquare(pairs.ravel()).pvalue > 0.01


def test_trivialaugment_draws_operations_and_levels_uniformly():
    policy = policies.make_trivialaugment(32, 64)
    pairs = [(op, level) for op in policies.ALL for level in range(31)]
    for choice, (op, level) in enumerate(pairs):
        assert_rows_are(policy, choice, 0, op, magnitude_of(op, level, 31, True))
    choices, applied, _ = draw(2, policy)
    assert applied.all() and choices.shape == (100_000, 1)
    assert stats.chisquare(np.bincount(choices[:, 0], minlength=14 * 31)).pvalue > 0.01
