"""Depth of a small ViT on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_depth.py
"""

from vit_jax.config import presets


def get_config(profile=""):
    """Build the base config of all variants."""
    return presets.cifar10_vit(profile)


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {f"depth_{number}": {"model.depth": number} for number in (2, 4, 6, 8, 12)}
