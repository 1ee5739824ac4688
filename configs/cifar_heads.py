"""Number of attention heads of a small ViT on CIFAR-10, at fixed width.

python -m vit_jax.main --config=configs/cifar_heads.py
"""

from vit_jax.config import presets


def get_config(profile=""):
    """Build the base config of all variants."""
    return presets.cifar10_vit(profile)


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {f"heads_{number}": {"model.num_heads": number} for number in (1, 2, 4, 8, 16)}
