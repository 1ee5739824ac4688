"""Random brightness, contrast and saturation of uint8 batches."""

import jax
import jax.numpy as jnp
from jax import Array

from vit_jax.augment.ops import UNIT, blend, grey


def color_jitter(
    key: Array, images: Array, brightness: float, contrast: float, saturation: float
) -> Array:
    """Change brightness, contrast and saturation, in this order, by random factors.

    A factor is uniform in [1 - range, 1 + range]; a range is at most 1, and 0 changes nothing. It
    multiplies the pixels (brightness), their distance from the image's mean grey (contrast), and
    from their own grey (saturation, without effect on 1 channel), as in torchvision's ColorJitter
    but in a fixed order.
    """
    b, height, width, channels = images.shape
    planes = images.transpose(3, 0, 1, 2).reshape(channels, b, height * width)
    keys = jax.random.split(key, 3)

    def scale(key, other, planes, limit):
        limit = round(limit * UNIT)
        factor = UNIT + jax.random.randint(key, (b, 1), -limit, limit + 1)
        return blend(other, planes, factor)

    if brightness:
        planes = scale(keys[0], jnp.zeros_like(planes), planes, brightness)
    if contrast:
        mean = grey(planes).sum(1, keepdims=True) // (height * width)
        planes = scale(keys[1], mean, planes, contrast)
    if saturation:
        planes = scale(keys[2], grey(planes), planes, saturation)
    return planes.reshape(channels, b, height, width).transpose(1, 2, 3, 0)
