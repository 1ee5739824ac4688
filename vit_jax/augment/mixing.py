"""Cutout, random erasing, mixup and CutMix."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def _inside(top, left, rows, columns, images):
    """Mask the boxes, bool [b, height, width, 1]."""
    _, height, width, _ = images.shape
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    corners = top, left, top + rows, left + columns
    top, left, bottom, right = (side[:, None, None, None] for side in corners)
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def _centred_anywhere(key, rows, columns, images):
    """Mask boxes whose centre is any pixel with equal probability."""
    b, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)
    top = jax.random.randint(row_key, (b,), 0, height) - rows // 2
    left = jax.random.randint(column_key, (b,), 0, width) - columns // 2
    return _inside(top, left, rows, columns, images)


def cutout(key: Array, images: Array, length: int) -> Array:
    """Set a square of `length` pixels a side, which may cross the border, to 0, the dataset's mean.

    DeVries & Taylor 2017. `images` are normalised float [b, height, width, channels].
    """
    return jnp.where(_centred_anywhere(key, length, length, images), 0.0, images)


def erase(key: Array, images: Array, rate: float) -> Array:
    """Set a rectangle of the fraction `rate` of the images to 0 (Zhong et al. 2020).

    Its fraction of the area is uniform in [0.02, 0.4], the logarithm of its aspect ratio uniform
    between those of 0.3 and 1 / 0.3; a side longer than the image is cut to it. `images` are
    normalised float [b, height, width, channels].
    """
    b, height, width, _ = images.shape
    rate_key, area_key, ratio_key, corner_key = jax.random.split(key, 4)
    erased = jax.random.bernoulli(rate_key, rate, (b,))
    area = jax.random.uniform(area_key, (b,), minval=0.02, maxval=0.4) * height * width
    limit = jnp.log(1 / 0.3)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (b,), minval=-limit, maxval=limit))
    rows = jnp.clip(jnp.round(jnp.sqrt(area * ratio)), 1, height).astype(jnp.int32)
    columns = jnp.clip(jnp.round(jnp.sqrt(area / ratio)), 1, width).astype(jnp.int32)
    corner = jax.random.uniform(corner_key, (2, b))
    top = jnp.floor(corner[0] * (height - rows + 1)).astype(jnp.int32)
    left = jnp.floor(corner[1] * (width - columns + 1)).astype(jnp.int32)
    box = _inside(top, left, jnp.where(erased, rows, 0), columns, images)
    return jnp.where(box, 0.0, images)


def mix(
    key: Array,
    images: Array,
    targets: Array,
    mixup_alpha: float,
    cutmix_alpha: float,
    cutmix_rate: float,
    mix_rate: float,
) -> tuple[Array, Array]:
    """Mix each image with the next one of the batch, and the targets in the same proportion.

    mixup (Zhang et al. 2018) averages the two images; CutMix (Yun et al. 2019) pastes a box of the
    other one, and recomputes the proportion from the box as cut at the border. The proportion is
    drawn for every image from Beta(alpha, alpha).

    Args:
      key: random key of the step.
      images: float [b, height, width, channels].
      targets: float [b, classes], which sum to 1 with one class per image.
      mixup_alpha: 0 for no mixup.
      cutmix_alpha: 0 for no CutMix.
      cutmix_rate: fraction of CutMix among mixed images, if both alphas are above 0.
      mix_rate: fraction of the images that are mixed.
    """
    b, height, width, _ = images.shape
    ratio_key, cut_key, rate_key, box_key = jax.random.split(key, 4)
    if not (mixup_alpha and cutmix_alpha):
        cutmix_rate = 1.0 if cutmix_alpha else 0.0
    cut = jax.random.bernoulli(cut_key, cutmix_rate, (b,))
    quantile = jax.random.uniform(ratio_key, (b,))
    ratio = jnp.where(cut, _beta(quantile, cutmix_alpha), _beta(quantile, mixup_alpha))  # [b]
    ratio = jnp.where(jax.random.bernoulli(rate_key, mix_rate, (b,)), ratio, 1.0)
    side = jnp.sqrt(1 - ratio)
    rows, columns = (jnp.round(side * n).astype(jnp.int32) for n in (height, width))
    box = _centred_anywhere(box_key, rows, columns, images)
    weight = jnp.where(cut[:, None, None, None], 1.0 - box, ratio[:, None, None, None])
    # From a lookup table: compilers divide by a constant less exactly.
    fractions = np.linspace(1, 0, height * width + 1, dtype=np.float32)
    ratio = jnp.where(cut, jnp.asarray(fractions)[box.sum((1, 2, 3))], ratio)[:, None]
    # Examples are shuffled, so the next one is a random partner.
    return (
        weight * images + (1 - weight) * jnp.roll(images, -1, 0),
        ratio * targets + (1 - ratio) * jnp.roll(targets, -1, 0),
    )


def _beta(quantile, alpha):
    """Invert the distribution function of Beta(alpha, alpha).

    Rejection sampling, as in jax.random.beta, would synchronise all devices.
    """
    if not alpha:  # off
        return jnp.ones_like(quantile)
    import scipy.special  # costs a quarter of a second

    grid = np.linspace(0, 1, 4097)
    return jnp.interp(quantile, grid, scipy.special.betaincinv(alpha, alpha, grid))
