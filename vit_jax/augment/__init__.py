"""Random changes of image batches, on the device, and what evaluation does in their place.

What happens to image i depends on (key, i) alone, so not on how the batch is laid out over devices;
mixing also takes the image after it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.augment.geometry import center_crop, crop_and_flip, random_resized_crop, rotate
from vit_jax.augment.jitter import color_jitter
from vit_jax.augment.mixing import cutout, erase, mix
from vit_jax.augment.policies import (
    Policy,
    apply_policy,
    make_autoaugment,
    make_randaugment,
    make_trivialaugment,
)


def augment(
    key: jax.Array, images: jax.Array, labels: jax.Array, num_classes: int, config
) -> tuple[jax.Array, jax.Array]:
    """Augments and normalises a training batch as `config` says.

    In this order: crop and flip, rotation, the policy of `config.augment.kind`, colour jitter,
    normalisation, cutout, random erasing, mixup or CutMix.

    The kinds: "none" (normalisation only), "baseline" (crop and flip), "cutout" (baseline and a
    square of half the side: DeVries & Taylor's 16 pixels at 32), "autoaugment", "randaugment" and
    "trivialaugment" (baseline and that policy), and "strong", the recipe of Lee et al. 2021
    (arXiv:2112.13492) for small sets: autoaugment, random erasing of a quarter of the images, and
    mixup or CutMix, both with alpha 1, for half of them. Their label smoothing and stochastic depth
    of 0.1 are settings of their own, `train.label_smoothing` and `model.drop_path_rate`.

    Args:
      key: of this step.
      images: uint8 [b, side, side, channels], of any side.
      labels: int [b].
      num_classes: length of a target.
      config: resolved, with `augment` and `data`.

    Returns:
      float32 images [b, size, size, channels] of `config.data.image_size`, and the targets: float32
      [b, num_classes], which sum to 1.
    """
    settings, size = config.augment, config.data.image_size
    targets = jax.nn.one_hot(labels, num_classes)
    if settings.kind == "none":
        return normalize(center_crop(images, size), config), targets
    crop, turn, ops, jitter, cut, erasing, mixing = jax.random.split(key, 7)
    if settings.crop_min_area:
        images = random_resized_crop(crop, images, size, settings.crop_min_area, settings.flip)
    else:
        images = center_crop(images, size)
        images = crop_and_flip(crop, images, settings.crop_padding, settings.flip, settings.fill)
    if settings.rotation_degrees:
        images = rotate(turn, images, settings.rotation_degrees, settings.fill)
    if (policy := make_policy(settings, size)) is not None:
        images = apply_policy(ops, images, policy, settings.fill)
    ranges = settings.brightness, settings.contrast, settings.saturation
    if any(ranges):
        images = color_jitter(jitter, images, *ranges)
    images = normalize(images, config)
    if settings.cutout_length:
        images = cutout(cut, images, settings.cutout_length)
    if settings.erasing_rate:
        images = erase(erasing, images, settings.erasing_rate)
    if settings.mixup_alpha or settings.cutmix_alpha:
        images, targets = mix(
            mixing,
            images,
            targets,
            settings.mixup_alpha,
            settings.cutmix_alpha,
            settings.cutmix_rate,
            settings.mix_rate,
        )
    return images, targets


def make_policy(settings, size: int) -> Policy | None:
    """Returns the policy of `config.augment` for images of `size` pixels a side, None if none."""
    if settings.kind in ("autoaugment", "strong"):
        return make_autoaugment(settings.policy, size, size)
    if settings.kind == "randaugment":
        return make_randaugment(settings.num_ops, settings.magnitude, size, size)
    if settings.kind == "trivialaugment":
        return make_trivialaugment(size, size)
    return None


def preprocess(images: jax.Array, config) -> jax.Array:
    """Returns what evaluation feeds the model: the central crop, resized and normalised.

    Args:
      images: uint8 [b, side, side, channels], of any side.
      config: with `data`.

    Returns:
      float32 [b, size, size, channels] of `config.data.image_size`.
    """
    return normalize(center_crop(images, config.data.image_size, config.data.eval_crop), config)


def normalize(images: jax.Array, config) -> jax.Array:
    """Maps uint8 pixels to (x / 255 - mean) / std, float32, with `config.data`'s mean and std."""
    mean, std = (np.array(config.data[key]) for key in ("mean", "std"))
    channels = images.shape[-1]
    # A table, because compilers round this arithmetic in more than one way.
    table = np.broadcast_to((np.arange(256)[:, None] / 255 - mean) / std, (256, channels))
    place = jnp.asarray(table, jnp.float32).at[images, jnp.arange(channels)]
    return place.get(mode="promise_in_bounds")
