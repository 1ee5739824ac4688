"""Model definitions, and `build`: from a config to a module."""

from collections.abc import Set

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention import differential_lambdas
from vit_jax.models.gradients import attention_gradients
from vit_jax.models.resnet import ResNet18
from vit_jax.models.vit import VisionTransformer

__all__ = [
    "Head",
    "ResNet18",
    "VisionTransformer",
    "attention_gradients",
    "build",
    "differential_lambdas",
]

_MODELS = {"vit": VisionTransformer, "resnet18": ResNet18}


def build(
    model_config,
    num_classes: int,
    dtype: jnp.dtype = jnp.float32,
    frozen_norms: Set[str] = frozenset(),
    remat: bool = False,
) -> VisionTransformer | ResNet18:
    """Returns the module that a resolved `config.model` describes.

    Args:
      model_config: mapping with the keys of `config.model`.
      num_classes: width of the head.
      dtype: of the computation.
      frozen_norms: resnet18: norms that keep their statistics, such as "layer1_0/bn1".
      remat: recompute the activations of each block in the backward pass.
    """
    model = _MODELS[model_config["name"]]
    fields = model.__dataclass_fields__
    options = {key: value for key, value in model_config.items() if key in fields and key != "name"}
    if "frozen_norms" in fields:
        options["frozen_norms"] = frozenset(frozen_norms)
    return model(num_classes=num_classes, dtype=dtype, remat=remat, **options)


class Head(nn.Module):
    """The last layer of either model alone, under the same name.

    Attributes:
      num_classes: its width.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, features: jax.Array, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Maps the models' "features" [b, d] to float32 logits [b, num_classes]."""
        del train, keys
        return nn.Dense(self.num_classes, name="head")(features.astype(jnp.float32))
