"""Parts left out (cutout, random erasing) and pairs of images mixed (mixup, CutMix)."""

import jax
import jax.numpy as jnp
import numpy as np


def _inside(top, left, bottom, right, images):
    """Returns bool [b, height, width, 1], True in the boxes; each side is [b], ends excluded."""
    _, height, width, _ = images.shape
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    top, left, bottom, right = (side[:, None, None, None] for side in (top, left, bottom, right))
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def cutout(key: jax.Array, images: jax.Array, length: int) -> jax.Array:
    """Sets a square of every image to 0 (DeVries & Taylor 2017).

    Its centre is any pixel with equal chance, so that it may reach beyond the border.

    Args:
      key: of this step.
      images: float [b, height, width, channels], normalised: 0 is the mean of the set.
      length: of the square's side, pixels.
    """
    b, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)
    top = jax.random.randint(row_key, (b,), 0, height) - length // 2
    left = jax.random.randint(column_key, (b,), 0, width) - length // 2
    return jnp.where(_inside(top, left, top + length, left + length, images), 0.0, images)


def erase(key: jax.Array, images: jax.Array, rate: float) -> jax.Array:
    """Sets a rectangle of some images to 0 (Zhong et al. 2020, random erasing).

    Its share of the area is uniform in [0.02, 0.4], the logarithm of its aspect ratio uniform
    between those of 0.3 and 1 / 0.3; a side longer than the image is cut to it.

    Args:
      key: of this step.
      images: float [b, height, width, channels], normalised: 0 is the mean of the set.
      rate: share of the images that it is done to.
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
    box = _inside(top, left, top + jnp.where(erased, rows, 0), left + columns, images)
    return jnp.where(box, 0.0, images)


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    mixup_alpha: float,
    cutmix_alpha: float,
    cutmix_rate: float,
    mix_rate: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixes images with the next one of the batch, and their targets by the same shares.

    mixup (Zhang et al. 2018) adds the two images; CutMix (Yun et al. 2019) puts a box of the other
    one into the image, and the share kept is recomputed from the box as cut at the border. The
    share is drawn for every image from Beta(alpha, alpha).

    Args:
      key: of this step.
      images: float [b, height, width, channels].
      targets: float [b, classes], which sum to 1.
      mixup_alpha: 0 for no mixup.
      cutmix_alpha: 0 for no CutMix.
      cutmix_rate: share of the mixed images that CutMix takes, if both alphas are above 0.
      mix_rate: share of the images that are mixed.

    Returns:
      Images and targets of the same shapes.
    """
    b, height, width, _ = images.shape
    share_key, cut_key, rate_key, box_key = jax.random.split(key, 4)
    if not (mixup_alpha and cutmix_alpha):
        cutmix_rate = 1.0 if cutmix_alpha else 0.0
    cut = jax.random.bernoulli(cut_key, cutmix_rate, (b,))
    chance = jax.random.uniform(share_key, (b,))
    kept = jnp.where(cut, _beta(chance, cutmix_alpha), _beta(chance, mixup_alpha))  # [b]
    kept = jnp.where(jax.random.bernoulli(rate_key, mix_rate, (b,)), kept, 1.0)
    box = _inside(*_box(box_key, 1 - kept, height, width), images)
    weight = jnp.where(cut[:, None, None, None], 1.0 - box, kept[:, None, None, None])
    # From a table: compilers divide by a constant less exactly.
    shares = np.linspace(1, 0, height * width + 1, dtype=np.float32)
    kept = jnp.where(cut, jnp.asarray(shares)[box.sum((1, 2, 3))], kept)[:, None]
    # The order of the examples is random anyway, so the next one is as good as any.
    return (
        weight * images + (1 - weight) * jnp.roll(images, -1, 0),
        kept * targets + (1 - kept) * jnp.roll(targets, -1, 0),
    )


def _beta(chance, alpha):
    """Returns the value of Beta(alpha, alpha) below which a share `chance` of it lies.

    Drawing by rejection, as jax.random.beta does, would have all devices wait for one another.
    """
    if not alpha:  # off
        return jnp.ones_like(chance)
    import scipy.special  # costs a quarter of a second, so only where it is used

    grid = np.linspace(0, 1, 4097)
    return jnp.interp(chance, grid, scipy.special.betaincinv(alpha, alpha, grid))


def _box(key, area, height, width):
    """Returns the sides [b] of boxes with a share `area` of the image, about any pixel."""
    row_key, column_key = jax.random.split(key)
    rows, columns = (jnp.round(jnp.sqrt(area) * n).astype(jnp.int32) for n in (height, width))
    top = jax.random.randint(row_key, area.shape, 0, height) - rows // 2
    left = jax.random.randint(column_key, area.shape, 0, width) - columns // 2
    return top, left, top + rows, left + columns
