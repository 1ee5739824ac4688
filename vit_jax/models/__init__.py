"""Model definitions, and `build`: from a config to a module."""

import jax.numpy as jnp

from vit_jax.models.attention import differential_lambdas
from vit_jax.models.resnet import ResNet18
from vit_jax.models.vit import VisionTransformer

__all__ = ["ResNet18", "VisionTransformer", "build", "differential_lambdas"]

_MODELS = {"vit": VisionTransformer, "resnet18": ResNet18}


def build(
    model_config, num_classes: int, dtype: jnp.dtype = jnp.float32
) -> VisionTransformer | ResNet18:
    """Returns the module that a resolved `config.model` describes.

    Args:
      model_config: mapping with the keys of `config.model`.
      num_classes: width of the head.
      dtype: of the computation.
    """
    model = _MODELS[model_config["name"]]
    fields = model.__dataclass_fields__
    options = {key: value for key, value in model_config.items() if key in fields and key != "name"}
    return model(num_classes=num_classes, dtype=dtype, **options)
