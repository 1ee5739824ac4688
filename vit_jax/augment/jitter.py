"""Random brightness, contrast and saturation of uint8 batches."""

import jax
import jax.numpy as jnp

from vit_jax.augment.ops import UNIT, blend, grey


def color_jitter(
    key: jax.Array, images: jax.Array, brightness: float, contrast: float, saturation: float
) -> jax.Array:
    """Changes brightness, then contrast, then saturation, each by a random factor.

    A factor is uniform in [1 - range, 1 + range]. It multiplies the pixels (brightness), their
    distance from the image's mean grey (contrast), and from their own grey (saturation), as in
    torchvision's ColorJitter but in a fixed order.

    Args:
      key: of this step.
      images: uint8 [b, height, width, channels].
      brightness: range of its factor, at most 1; 0 leaves it alone.
      contrast: likewise.
      saturation: likewise; it changes nothing if there is 1 channel.

    Returns:
      uint8 images of the same shape.
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
