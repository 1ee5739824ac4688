"""Model definitions."""

from collections.abc import Set

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from vit_jax.config import has_cls as has_cls
from vit_jax.models.attention import differential_lambdas as differential_lambdas
from vit_jax.models.resnet import ResNet18
from vit_jax.models.vit import VisionTransformer
from vit_jax.models.vit import attention_gradients as attention_gradients


def build(
    model_config,
    num_classes: int,
    dtype: jnp.dtype = jnp.float32,
    frozen_norms: Set[str] = frozenset(),
    remat: bool | str = False,
    fused_attention: bool = False,
) -> VisionTransformer | ResNet18:
    """Build the module that a resolved `config.model` describes.

    Args:
      model_config: mapping with the keys of `config.model`.
      num_classes: output width of the head.
      dtype: compute dtype.
      frozen_norms: norms of a ResNet18, such as "layer1_0/bn1", that use their running statistics
        during training, without updating them.
      remat: recompute the activations of each block in the backward pass; "dense": those of a ViT
        other than the outputs of dense layers.
      fused_attention: compute attention in one kernel where its weights are not returned and the
        kernel supports it. It needs an NVIDIA GPU.
    """
    config = FrozenDict(model_config)
    if config["name"] == "resnet18":
        return ResNet18(config, num_classes, frozenset(frozen_norms), dtype, remat is True)
    return VisionTransformer(config, num_classes, dtype, remat, fused_attention)


class Head(nn.Module):
    """The classification head of every model, always named "head"."""

    num_classes: int

    @nn.compact
    def __call__(
        self, features: jax.Array, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Map features [b, d] to float32 logits [b, num_classes]."""
        del train, keys
        return nn.Dense(self.num_classes, name="head")(features.astype(jnp.float32))
