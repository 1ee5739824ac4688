"""Augmentation of training batches and preprocessing of evaluation batches, on the device.

The augmentation of image i depends only on (key, i), not on the sharding of the batch; mixing also
reads the next image. In this package `key` is the step's random key and, unless stated otherwise,
`images` are uint8 [b, height, width, channels] and the result has the same shape and dtype.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vit_jax.augment.geometry import center_crop, crop_and_flip, random_resized_crop, rotate
from vit_jax.augment.mixing import cutout, erase, mix
from vit_jax.augment.ops import color_jitter
from vit_jax.augment.policies import (
    apply_policy,
    make_autoaugment,
    make_randaugment,
    make_trivialaugment,
)
from vit_jax.config import resized_side


def augment(
    key: Array, images: Array, labels: Array, num_classes: int, config
) -> tuple[Array, Array]:
    """Augment and normalise a training batch according to `config.augment` and `config.data`.

    In this order: crop and flip, rotation, policy, colour jitter, normalisation, cutout, random
    erasing, mixup or CutMix. The kind "strong" is the recipe of Lee et al. 2021 (arXiv:2112.13492)
    for small datasets: autoaugment, random erasing of a quarter of the images, and mixup or CutMix,
    both with alpha 1, for half of them. Their label smoothing and stochastic depth of 0.1 are
    `train.label_smoothing` and `model.drop_path_rate`.

    Args:
      key: random key of the step.
      images: uint8 [b, side, side, channels], of any side.
      labels: int [b]; for several per image, 0 and 1 [b, num_classes].
      num_classes: length of a target.
      config: resolved.

    Returns:
      Images, float32 [b, size, size, channels] of `config.data.image_size`, and targets, float32
      [b, num_classes], which sum to 1 for one label per image.
    """
    aug, size = config.augment, config.data.image_size
    targets = to_targets(labels, num_classes)
    whole = config.data.resize_mode == "fit"
    if aug.kind == "none":
        return preprocess(images, config), targets
    if not aug.crop_min_area:
        images = center_crop(images, size) if whole else evaluation_crop(images, config.data)
    crop, turn, ops, jitter, cut, erasing, mixing = jax.random.split(key, 7)
    if aug.crop_min_area:
        images = random_resized_crop(crop, images, size, aug.crop_min_area, aug.flip)
    else:
        images = crop_and_flip(crop, images, aug.crop_padding, aug.flip, aug.fill)
    if aug.rotation_degrees:
        images = rotate(turn, images, aug.rotation_degrees, aug.fill)
    if policy := _make_policy(aug, size):
        images = apply_policy(ops, images, policy, aug.fill)
    ranges = aug.brightness, aug.contrast, aug.saturation
    if any(ranges):
        images = color_jitter(jitter, images, *ranges)
    images = normalize(images, config)
    if aug.cutout_length:
        images = cutout(cut, images, aug.cutout_length)
    if aug.erasing_rate:
        images = erase(erasing, images, aug.erasing_rate)
    alphas = aug.mixup_alpha, aug.cutmix_alpha
    if any(alphas):
        return mix(mixing, images, targets, *alphas, aug.cutmix_rate, aug.mix_rate)
    return images, targets


def to_targets(labels: Array, num_classes: int) -> Array:
    """Convert labels [b], or several per image as 0 and 1 [b, classes], to float32 [b, classes]."""
    if labels.ndim == 2:
        return labels.astype(jnp.float32)
    return jax.nn.one_hot(labels, num_classes)


def _make_policy(aug, size):
    if aug.kind in ("autoaugment", "strong"):
        return make_autoaugment(aug.policy, size, size)
    if aug.kind == "randaugment":
        return make_randaugment(aug.num_ops, aug.magnitude, size, size)
    return make_trivialaugment(size, size) if aug.kind == "trivialaugment" else None


def preprocess(images: Array, config) -> Array:
    """Crop the centre, resize and normalise for evaluation.

    Returns float32 [b, size, size, channels] of `config.data.image_size`, for images of any side.
    """
    return normalize(evaluation_crop(images, config.data), config)


def evaluation_crop(images: Array, data) -> Array:
    """Crop the centre of images [b, side, side, c] and resize to `image_size` of `config.data`."""
    side, size = images.shape[1], data.image_size
    if data.resize_mode == "fit" or side != resized_side(data):
        return center_crop(images, size, data.eval_crop)
    start = round((side - size) / 2)  # as CenterCrop of torchvision
    return images[:, start : start + size, start : start + size]


def normalize(images: Array, config) -> Array:
    """Map uint8 pixels to (x / 255 - mean) / std, float32, of `config.data`."""
    mean, std = (255 * np.array(config.data[key]) for key in ("mean", "std"))
    # Subtracted first: compilers may round x * a + b once or twice, which would make the pixels
    # depend on the platform and on the number of devices.
    return (images.astype(jnp.float32) - np.float32(mean)) * np.float32(1 / std)
