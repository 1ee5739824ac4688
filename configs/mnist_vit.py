"""A small ViT on MNIST.

python -m vit_jax.main --config=configs/mnist_vit.py
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.mnist_vit()
    config.model.patchify = "conv_stem"  # overlapping patches
    return config
