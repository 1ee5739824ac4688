"""Augmentations move, cut and mix pixels as defined, on any number of devices."""

import jax
import numpy as np
import pytest
from jitted import run
from PIL import Image, ImageOps
from scipy import stats
from tiny_configs import make_config

from vit_jax import models
from vit_jax.augment import augment, normalize, preprocess
from vit_jax.augment.geometry import (
    center_crop,
    crop_and_flip,
    gather_pixels,
    random_resized_crop,
    rotate,
    select_pixels,
)
from vit_jax.augment.mixing import cutout, erase, mix
from vit_jax.augment.ops import color_jitter
from vit_jax.augment.policies import apply_policy, make_autoaugment, make_randaugment
from vit_jax.data.sources import open_source
from vit_jax.runtime import sharding
from vit_jax.training import optim, step

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (64, 6, 7, 3), np.uint8)


def placements(image, result, padding, fill):
    """Find every (row offset, column offset, flipped) that maps `image` to `result`."""
    sides = ((padding, padding), (padding, padding), (0, 0))
    padded = np.pad(image, sides, constant_values=fill)
    return [
        (i, j, flipped)
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
        for flipped in (False, True)
        if np.array_equal(padded[i : i + 6, j : j + 7][:, :: -1 if flipped else 1], result)
    ]


@pytest.mark.parametrize("fill", [0, 128])
def test_every_image_is_a_crop_of_itself(fill):
    results = run(crop_and_flip, jax.random.key(0), IMAGES, 2, True, fill)
    assert results.dtype == np.uint8
    found = [placements(*pair, 2, fill) for pair in zip(IMAGES, results, strict=True)]
    assert all(len(options) == 1 for options in found)
    rows, columns, flips = zip(*(options[0] for options in found), strict=True)
    assert set(rows) == set(columns) == set(range(5))
    assert 16 < sum(flips) < 48


def test_crops_for_tpus_are_products_with_the_same_pixels():
    """A TPU loops over the pixels of a gather."""
    traced = jax.jit(crop_and_flip, static_argnums=(2, 3)).trace(jax.random.key(0), IMAGES, 2, True)
    text = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu")}
    assert "stablehlo.gather" in text["cpu"] and "stablehlo.gather" not in text["tpu"]
    images = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    rows, columns = RNG.integers(0, 8, (2, 5)), RNG.integers(0, 16, (2, 6))
    expected = run(gather_pixels, images, rows, columns)
    np.testing.assert_array_equal(run(select_pixels, images, rows, columns), expected)


def test_without_flip_nothing_is_flipped():
    results = run(crop_and_flip, jax.random.key(0), IMAGES, 1, False)
    for pair in zip(IMAGES, results, strict=True):
        assert [flipped for *_, flipped in placements(*pair, 1, 0)] == [False]


def strong(key, images, targets):
    """What the settings of the test below mean, of images of 12 pixels."""
    crop, _, ops, _, _, erasing, mixing = jax.random.split(key, 7)
    images = crop_and_flip(crop, images, 2, False, 128)
    images = apply_policy(ops, images, make_autoaugment("imagenet", 12, 12), 128)
    images = erase(erasing, normalize(images, make_config()), 0.5)
    return mix(mixing, images, targets, 0.4, 0.7, 0.3, 0.8)


def randaugment(key, images, targets):
    """What its other settings mean."""
    crop, turn, ops, jitter, cut, *_ = jax.random.split(key, 7)
    images = random_resized_crop(crop, images, 12, 0.3, False)
    images = rotate(turn, images, 20.0, 9)
    images = apply_policy(ops, images, make_randaugment(1, 20, 12, 12), 9)
    images = color_jitter(jitter, images, 0.3, 0.2, 0.1)
    return cutout(cut, normalize(images, make_config()), 4), targets


SETTINGS = {
    strong: dict(
        **dict(crop_padding=2, flip=False, fill=128, policy="imagenet", erasing_rate=0.5),
        **dict(mixup_alpha=0.4, cutmix_alpha=0.7, cutmix_rate=0.3, mix_rate=0.8),
    ),
    randaugment: dict(
        **dict(crop_min_area=0.3, flip=False, rotation_degrees=20.0, fill=9, num_ops=1),
        **dict(magnitude=20, brightness=0.3, contrast=0.2, saturation=0.1, cutout_length=4),
    ),
}


@pytest.mark.parametrize("expected", SETTINGS, ids=lambda function: function.__name__)
def test_settings_decide_the_pixels_on_any_number_of_devices(expected):
    options = {"kind": expected.__name__} | SETTINGS[expected]
    overrides = {f"augment__{key}": value for key, value in options.items()}
    config = make_config(data__channels=3, data__image_size=12, **overrides)
    images = RNG.integers(0, 256, (32, 12, 12, 3), np.uint8)
    labels = RNG.integers(0, 10, 32).astype(np.int32)
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    program = jax.jit(
        lambda k, x, y: augment(k, x, y, 10, config), out_shardings=sharding.split(mesh)
    )
    batch = sharding.shard_batch(mesh, (images, labels))
    pixels, targets = program(jax.device_put(jax.random.key(3), sharding.replicated(mesh)), *batch)
    on_one = jax.jit(expected)(jax.random.key(3), images, np.eye(10, dtype=np.float32)[labels])
    np.testing.assert_array_equal(pixels, on_one[0])
    np.testing.assert_array_equal(targets, on_one[1])


def make_step(config):
    """Make functions for the initial state and for one step, not compiled yet."""
    model = models.build(config.model, 10)
    optimizer = optim.make_optimizer(config.optim, lambda step: 1e-3)
    data = config.data
    images = np.zeros((1, data.image_size, data.image_size, data.channels), np.float32)
    init = step.make_init(model, optimizer, config)
    return lambda: init(jax.random.key(0), images), step.make_train_step(model, optimizer, config)


def test_resumed_run_sees_the_same_pixels():
    init, step = make_step(make_config(augment__kind="strong", optim__name="sgd"))
    step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
    batches = [
        {
            "image": RNG.integers(0, 256, (16, 8, 8, 1), np.uint8),
            "label": RNG.integers(0, 10, 16).astype(np.int32),
        }
        for _ in range(3)
    ]
    states = [jax.jit(init)()]
    for batch in batches:
        states.append(step(states[-1], jax.random.key(1), batch))
    resumed = jax.device_put(jax.device_get(states[1]))
    for batch in batches[1:]:
        resumed = step(resumed, jax.random.key(1), batch)
    jax.tree.map(np.testing.assert_array_equal, resumed, states[-1])
    assert float(states[1].sums.loss.total) != float(states[2].sums.loss.total)


@pytest.mark.parametrize("length", [5, 16])
def test_cutout_is_a_square_cut_at_the_border(length):
    result = run(cutout, jax.random.key(0), np.ones((4000, 32, 32, 2), np.float32), length)
    assert ((result == 0) | (result == 1)).all() and (result[..., 0] == result[..., 1]).all()
    holes = result[..., 0] == 0
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)  # of the zeroed box
    np.testing.assert_array_equal(holes.sum((1, 2)), rows * columns)
    assert rows.max() == columns.max() == length
    assert rows.min() == columns.min() == length - length // 2  # the centre is in the image
    # For each of the 32 centres: `length`, minus the pixels beyond the border.
    middle = np.arange(32) - length // 2
    expected = np.mean(np.minimum(middle + length, 32) - np.maximum(middle, 0))
    assert rows.mean() == pytest.approx(expected, rel=0.02)


def test_erasing_changes_its_fraction_of_the_images():
    result = run(erase, jax.random.key(0), np.ones((4000, 32, 32, 1), np.float32), 0.25)
    holes = result[..., 0] == 0
    erased = holes.any((1, 2))
    assert erased.mean() == pytest.approx(0.25, abs=0.03)
    area = holes[erased].mean((1, 2))
    rows, columns = holes[erased].any(2).sum(1), holes[erased].any(1).sum(1)
    np.testing.assert_array_equal(holes[erased].sum((1, 2)), rows * columns)
    assert 0.01 < area.min() < 0.03 and 0.36 < area.max() < 0.44
    assert area.mean() == pytest.approx(0.21, abs=0.02)
    assert (rows > 2 * columns).any() and (columns > 2 * rows).any()


def numbered_images(count):
    """Images [count, 8, 12, 1] of constant index, and their one-hot targets."""
    numbers = np.arange(count, dtype=np.float32)
    return np.broadcast_to(numbers[:, None, None, None], (count, 8, 12, 1)), np.eye(count)


def test_cutmix_targets_match_the_pasted_area():
    images, targets = numbered_images(300)
    mixed, soft = run(mix, jax.random.key(0), images, targets, 0.0, 1.0, 0.5, 1.0)
    own = np.arange(300)
    partner = (own + 1) % 300
    unchanged = (mixed == images).mean((1, 2, 3))
    pasted = (mixed == images[partner]).mean((1, 2, 3))
    np.testing.assert_array_equal(unchanged + pasted, 1)
    np.testing.assert_array_equal(soft[own, own], unchanged.astype(np.float32))
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    assert unchanged.min() < 0.2 and unchanged.max() > 0.95 and len(set(unchanged)) > 40
    boxes = (mixed != images)[..., 0]
    np.testing.assert_array_equal(boxes.sum((1, 2)), boxes.any(2).sum(1) * boxes.any(1).sum(1))


def test_mixup_mixes_images_and_targets_alike():
    images, targets = numbered_images(3000)
    mixed, soft = run(mix, jax.random.key(0), images, targets, 0.4, 0.0, 0.5, 1.0)
    ratio = np.diag(soft)
    expected = ratio * np.arange(3000) + (1 - ratio) * (np.arange(1, 3001) % 3000)
    np.testing.assert_allclose(mixed[:, 0, 0, 0], expected, atol=1e-3)
    assert np.ptp(mixed, axis=(1, 2, 3)).max() == 0
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    assert stats.kstest(ratio, stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_mix_rate_and_cutmix_rate():
    images, targets = numbered_images(4000)
    mixed, soft = run(mix, jax.random.key(0), images, targets, 1.0, 1.0, 0.3, 0.5)
    uniform = np.ptp(mixed, axis=(1, 2, 3)) == 0
    untouched = np.diag(soft) == 1
    np.testing.assert_array_equal(mixed[untouched], images[untouched])
    # An empty box leaves further images unchanged, 1 in 30 of CutMix.
    assert untouched.mean() == pytest.approx(0.5, abs=0.03)
    assert (uniform & ~untouched).sum() / (~untouched).sum() == pytest.approx(0.7, abs=0.04)


def test_random_resized_crop_of_a_ramp_is_a_sub_ramp():
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[:, None, None], (200, 60, 60, 1))
    ramp = np.concatenate([ramp, ramp.swapaxes(1, 2)], -1)  # values encode row and column
    result = run(random_resized_crop, jax.random.key(0), ramp, 24, 0.25, False).astype(int)
    assert result.shape == (200, 24, 24, 2)
    for channel, axis in ((0, 1), (1, 2)):
        lines = result[..., channel].mean(3 - axis)
        steps_ = np.diff(lines, axis=1)[:, 2:-2]
        assert steps_.min() > 0  # no wrap-around, no flip, no pixels from outside
        assert (np.ptp(steps_, axis=1) <= 2).all()
    sides = [np.diff(result[..., c].mean(2 - c), axis=1)[:, 2:-2].mean(1) * 24 / 4 for c in (0, 1)]
    area = sides[0] * sides[1] / 60**2
    assert area.min() > 0.22 and area.max() < 1.05 and 0.5 < area.mean() < 0.7
    assert 0.7 < (sides[0] / sides[1]).min() < 0.85 and 1.2 < (sides[0] / sides[1]).max() < 1.4
    flipped = run(random_resized_crop, jax.random.key(0), ramp, 24, 0.25, True).astype(int)
    falls = flipped[:, 12, -1, 1] < flipped[:, 12, 0, 1]
    assert 0.4 < falls.mean() < 0.6


def test_rotation_is_about_the_centre():
    images = np.zeros((200, 21, 21, 1), np.uint8)
    images[:, 10, 10:] = 255  # a clock hand that points right
    result = run(rotate, jax.random.key(0), images, 30.0, 0).astype(float)[..., 0]
    assert result[:, 10, 10].min() > 250
    y, x = np.mgrid[:21, :21] - 10
    angles = np.degrees(np.arctan2((result * y).sum((1, 2)), (result * x).sum((1, 2))))
    assert -30.5 < angles.min() < -27 and 27 < angles.max() < 30.5 and abs(angles.mean()) < 3
    border = run(rotate, jax.random.key(0), images, 180.0, 77)[:, 0, 0, 0]
    assert np.median(border) == 77


def test_the_mean_of_a_large_bright_image_does_not_overflow():
    images = np.full((1, 3000, 3000, 1), 250, np.uint8)
    result = run(color_jitter, jax.random.key(0), images, 0.0, 0.5, 0.0)
    assert (result == 250).all()  # at no distance from the mean


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
def test_colour_jitter_scales_the_distance_from_grey(kind):
    images = RNG.integers(100, 150, (300, 9, 9, 3), np.uint8)  # no factor exceeds 0 ... 255
    ranges = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0} | {kind: 0.4}
    result = run(color_jitter, jax.random.key(0), images, *ranges.values()).astype(float)
    grey = images @ np.array([0.299, 0.587, 0.114])
    centre = {
        "brightness": np.zeros((300, 1, 1, 1)),
        "contrast": grey.mean((1, 2))[:, None, None, None],
        "saturation": grey[..., None],
    }[kind]
    away = images - centre
    factor = ((result - centre) * away).sum((1, 2, 3)) / (away**2).sum((1, 2, 3))
    expected = centre + factor[:, None, None, None] * away
    assert abs(result - expected).max() < 1.6  # result, grey and mean are rounded
    assert 0.59 < factor.min() < 0.63 and 1.37 < factor.max() < 1.41


def test_center_crop_keeps_the_middle():
    images = RNG.integers(0, 256, (3, 20, 20, 3), np.uint8)
    np.testing.assert_array_equal(run(center_crop, images, 20), images)
    np.testing.assert_array_equal(run(center_crop, images, 10, 0.5), images[:, 5:15, 5:15])
    bilinear = Image.Resampling.BILINEAR  # antialiased, unlike in most other libraries
    smaller = [np.asarray(Image.fromarray(image).resize((10, 10), bilinear)) for image in images]
    np.testing.assert_allclose(run(center_crop, images, 10).astype(int), smaller, atol=1)
    flat = np.full((1, 16, 16, 1), 77, np.uint8)
    np.testing.assert_array_equal(run(center_crop, flat, 40, 0.875), 77)


def test_image_size_may_differ_from_stored_size():
    sizes = {"data__image_size": 16, "data__stored_size": 24, "data__eval_crop": 0.5}
    config = make_config(data__name="digits", **sizes)
    images, _ = open_source(config.data).examples("").take(np.array([3, 5])).decode_all(1)
    assert images.shape == (2, 24, 24, 1)
    labels = np.array([1, 2])
    pixels, _ = jax.eval_shape(lambda k: augment(k, images, labels, 10, config), jax.random.key(0))
    assert pixels.shape == (2, 16, 16, 1)
    middle = run(center_crop, images, 16, 0.5)
    np.testing.assert_array_equal(preprocess(images, config), normalize(middle, config))


def test_none_only_normalises():
    config = make_config(augment__kind="none")
    images = RNG.integers(0, 256, (4, 8, 8, 1), np.uint8)
    pixels, targets = augment(jax.random.key(0), images, np.arange(4), 10, config)
    np.testing.assert_array_equal(pixels, normalize(images, config))
    np.testing.assert_array_equal(targets, np.eye(10)[:4])


def test_flips_agree_with_pillow():
    images = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), np.uint8)
    found = np.asarray(crop_and_flip(jax.random.key(0), images, 0, True))
    mirrored = np.stack([np.asarray(ImageOps.mirror(Image.fromarray(image))) for image in images])
    is_mirrored = (found == mirrored).all((1, 2, 3))
    np.testing.assert_array_equal(found[~is_mirrored], images[~is_mirrored])
    assert 70 < is_mirrored.sum() < 130
