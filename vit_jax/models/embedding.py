"""Patch embeddings, and dropout of patches."""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.config import num_kept
from vit_jax.models.layers import Kernel, build_norm, dense
from vit_jax.models.resnet import Conv

PADDING: Any = ((1, 1), (1, 1))  # Flax annotates it as a string
SHIFTS = ((-1, -1), (-1, 1), (1, -1), (1, 1))  # rows and columns, in half patches


def embed_patches(config: Mapping[str, Any], images: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Embed images [b, height, width, c] as `config["patchify"]` says: [b, rows, columns, d].

    "conv" and "manual" are the same linear map of patches, with the kernel of a convolution or of a
    dense layer. "spt" is shifted patch tokenization (Lee et al. 2021, arXiv:2112.13492): each patch
    also has the channels of four copies of the image, shifted diagonally by half a patch and filled
    with 0, and is normalised. "conv_stem" is `ConvStem`. To be called within a compact method.
    """
    kind, p = config["patchify"], config["patch_size"]
    if kind == "conv_stem":
        return ConvStem(config["hidden_size"], p, dtype, name="embedding")(images)
    if kind == "spt":
        images = _with_shifted(images, p // 2)
    b, height, width, channels = images.shape
    # The kernel has the shape of a convolution's or of a dense layer's. Both are computed as a
    # product with flat patches, which is faster than a convolution on a CPU.
    inputs = (p * p * channels,) if kind == "manual" else (p, p, channels)
    init = nn.linear.default_kernel_init
    layer = Kernel(inputs, (config["hidden_size"],), kernel_init=init, name="embedding")
    x = images.reshape(b, height // p, p, width // p, p, channels)
    x = x.swapaxes(2, 3).reshape(b * height * width // p**2, p * p * channels)
    if kind == "spt":
        x = build_norm(config, dtype, "embedding_norm")(x)
    return dense(x, *layer(), dtype).reshape(b, height // p, width // p, -1)


def _with_shifted(images, s):
    """Append the channels of four copies, shifted by (+-s, +-s) pixels and filled with 0."""
    _, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (s, s), (s, s), (0, 0)))
    starts = [(s - s * down, s - s * right) for down, right in SHIFTS]
    shifted = [padded[:, y : y + height, x : x + width] for y, x in starts]
    return jnp.concatenate([images, *shifted], -1)


class ConvStem(nn.Module):
    """Convolutional tokenizer of CCT (Hassani et al. 2021, arXiv:2104.05704).

    log2(patch_size) times a 3x3 convolution without bias, ReLU, and 3x3 max pooling with stride 2.
    All convolutions but the last have 64 outputs.
    """

    features: int
    patch_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [b, height, width, c] to [b, height / patch_size, width / patch_size, features]."""
        depth = int(math.log2(self.patch_size))
        for i in range(depth):
            width = self.features if i == depth - 1 else 64
            x = nn.relu(Conv(width, 3, 1, self.dtype, name=f"conv_{i}")(x))
            x = nn.max_pool(x, (3, 3), (2, 2), PADDING)
        return x


class PatchDropout(nn.Module):
    """Drop random patches, of each image as many (Liu et al. 2022, arXiv:2208.07220).

    The first `num_prefix` tokens are kept. The keys make it independent of the sharding.
    """

    rate: float
    num_prefix: int

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Map tokens [b, n, d] to the kept ones, with the images' keys [b]; all without keys."""
        if keys is None or not self.rate:
            return x
        own = zlib.crc32("/".join(self.path).encode())
        patches = x.shape[1] - self.num_prefix
        kept = num_kept(patches, self.rate)

        def choose(key):
            order = jax.random.permutation(jax.random.fold_in(key, own), patches)
            return jnp.concatenate([jnp.arange(self.num_prefix), self.num_prefix + order[:kept]])

        indices = jax.vmap(choose)(keys)[:, :, None]
        return jnp.take_along_axis(x, indices, 1, mode="promise_in_bounds")
