"""A model with every kind of state that compiles quickly."""

import flax.linen as nn

from vit_jax.models.layers import Dropout


class Net(nn.Module):
    """Two dense layers with BatchNorm and dropout."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train=False, keys=None):
        x = nn.Dense(8)(images.reshape(len(images), -1))
        x = nn.BatchNorm(not train)(x)
        return nn.Dense(10, name="head")(Dropout(0.1)(nn.relu(x), keys))
