"""Patch sizes 2, 4 and 8 of a small ViT on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_patch.py

Measured so far, reduced, on two CPU cores: docs/results/cifar_patch.md.
"""

from vit_jax.config import presets

PUBLISHED = {
    "ViT-Lite-7, 300 epochs (Hassani et al. 2021)": "patch_4 93.6 > patch_8 89.1",
}


def get_config():
    """Returns the experiment's settings."""
    return presets.cifar10_vit()


def sweep():
    """Returns the variants."""
    return {f"patch_{size}": {"model.patch_size": size} for size in (2, 4, 8)}
