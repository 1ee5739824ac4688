"""Model definitions, and `build`: from a config to a module."""

import jax.numpy as jnp

from vit_jax.models.vit import VisionTransformer


def build(model_config, num_classes: int, dtype: jnp.dtype = jnp.float32) -> VisionTransformer:
    """Returns the module that a resolved `config.model` describes.

    Args:
      model_config: mapping with the keys of `config.model`.
      num_classes: width of the head.
      dtype: of the computation.
    """
    options = {key: value for key, value in model_config.items() if key != "size"}
    return VisionTransformer(num_classes=num_classes, dtype=dtype, **options)
