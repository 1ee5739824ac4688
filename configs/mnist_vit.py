"""A small ViT on MNIST: 99.0 % after ten epochs, seed 0, about 15 minutes on two CPU cores.

python -m vit_jax.main --config=configs/mnist_vit.py
"""

from configs import common


def get_config():
    """Returns the experiment's settings."""
    return common.mnist_vit()
