"""Number of encoder blocks of a small ViT on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_depth.py

Measured so far, reduced, on two CPU cores: docs/results/cifar_depth.md.
"""

from vit_jax.config import presets


def get_config():
    """Returns the experiment's settings."""
    return presets.cifar10_vit()


def sweep():
    """Returns the variants."""
    return {f"depth_{number}": {"model.depth": number} for number in (2, 4, 6, 8, 12)}
