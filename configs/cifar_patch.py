"""Patch sizes 2, 4 and 8 of a small ViT on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_patch.py
"""

from vit_jax.config import presets

PUBLISHED = {
    "ViT-Lite-7, 300 epochs (Hassani et al. 2021)": "patch_4 93.6 > patch_8 89.1",
}


def get_config(profile=""):
    """Build the base config of all variants."""
    config = presets.cifar10_vit(profile)
    if profile == "cpu":
        config.train.epochs = 12.0  # 16 tokens make an epoch short, and need more of them
    return config


def sweep(profile=""):
    """Name the variants: settings that differ from the base config."""
    variants = {f"patch_{size}": {"model.patch_size": size} for size in (2, 4, 8)}
    if profile == "cpu":  # where 256 tokens take hours
        variants["patch_2"]["train.num_seeds"] = 1
    return variants
