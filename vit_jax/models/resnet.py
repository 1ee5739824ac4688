"""ResNet18 (He et al. 2016, arXiv:1512.03385), with names after torchvision's."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import convolve


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5, left).

    The first has the stride; the shortcut is a projection where shapes differ. For the other
    attributes see `ResNet18`; `frozen_norms` omit the block's name here.
    """

    channels: int
    stride: int
    zero_init_residual: bool
    frozen_norms: frozenset[str]
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [b, height, width, c] to [b, height / stride, width / stride, channels]."""
        norm = functools.partial(
            _norm, train, self.frozen_norms, axis_name=self.axis_name, dtype=self.dtype
        )
        y = Conv(self.channels, 3, self.stride, self.dtype, name="conv1")(x)
        y = nn.relu(norm("bn1")(y))
        y = Conv(self.channels, 3, 1, self.dtype, name="conv2")(y)
        init = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        y = norm("bn2", scale_init=init)(y)
        if x.shape != y.shape:
            x = Conv(self.channels, 1, self.stride, self.dtype, name="downsample_conv")(x)
            x = norm("downsample_bn")(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """Image classifier of four stages of two blocks; for the attributes see `models.build`.

    The first stage has `hidden_size` channels, each further one twice as many. The stem is "cifar"
    (3x3, stride 1, no pooling) or "imagenet" (7x7, stride 2, then 3x3 max pooling).
    `zero_init_residual` starts the scale of each block's last norm at 0, as an identity.

    Batch statistics cover the whole batch: over the devices of the mesh axis `axis_name` where a
    batch is sharded by `jax.shard_map`, else None. Parameters, statistics and logits are float32.
    """

    config: Mapping[str, Any]
    num_classes: int
    frozen_norms: frozenset[str]
    dtype: jnp.dtype
    remat: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        capture: bool = False,
        keys: jax.Array | None = None,
    ):
        """Classify normalised images [b, height, width, channels].

        With `train`, normalises by batch statistics and updates the running ones, the collection
        "batch_stats", which must be mutable. `keys`, as for the ViT, are ignored.

        Returns:
          float32 logits [b, num_classes]; with `capture` also a dict of "feature_maps" ({name:
          [b, height, width, c]}, after the stem and each block) and "features" [b, c], the head's
          input.
        """
        del keys
        width, is_imagenet = self.config["hidden_size"], self.config["stem"] == "imagenet"
        x, (size, stride) = images.astype(self.dtype), (7, 2) if is_imagenet else (3, 1)
        x = Conv(width, size, stride, self.dtype, name="conv1")(x)
        own: Any = dict(axis_name=self.axis_name, dtype=self.dtype)
        x = nn.relu(_norm(train, self.frozen_norms, "bn1", **own)(x))
        maps = {"stem": x}
        if is_imagenet:
            # Zero padding is equivalent to -inf: no value is negative after the ReLU.
            x = nn.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
        basic_block = nn.remat(BasicBlock, static_argnums=(2,)) if self.remat else BasicBlock
        for stage in range(4):
            for block in range(2):
                name = f"layer{stage + 1}_{block}"
                inside = [n for n in self.frozen_norms if n.startswith(f"{name}/")]
                x = basic_block(
                    channels=width * 2**stage,
                    stride=2 if stage and not block else 1,
                    zero_init_residual=self.config["zero_init_residual"],
                    frozen_norms=frozenset(n.split("/")[1] for n in inside),
                    name=name,
                    **own,
                )(x, train)
                maps[name] = x
        x = x.mean((1, 2))
        # Weights without a head have no classes, by whose number lecun_normal divides.
        init = nn.initializers.lecun_normal() if self.num_classes else nn.initializers.zeros
        logits = nn.Dense(self.num_classes, kernel_init=init, name="head")(x.astype(jnp.float32))
        return (logits, {"feature_maps": maps, "features": x}) if capture else logits


class Conv(nn.Module):
    """A square convolution without bias, with the parameters of `nn.Conv`."""

    channels: int
    size: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [b, height, width, c] to [b, height / stride, width / stride, channels]."""
        shape = (self.size, self.size, x.shape[-1], self.channels)
        # He et al. 2015, fan-out.
        init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
        kernel = self.param("kernel", init, shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        # Padding as in PyTorch; "SAME" would differ at stride 2.
        return convolve(x, kernel, self.stride, self.size // 2)


def _norm(train, frozen, name, **options):
    average = not train or name in frozen
    return nn.BatchNorm(average, momentum=0.9, epsilon=1e-5, name=name, **options)
