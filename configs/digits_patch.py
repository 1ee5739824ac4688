"""Patch sizes 1, 2 and 4 on scikit-learn's 8x8 digits: the whole path with no download.

python -m vit_jax.main --config=configs/digits_patch.py

Measured on two CPU cores: docs/results/digits_patch.md; patch_4 97.6 % in two minutes.
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    return presets.digits_vit()


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {f"patch_{size}": {"model.patch_size": size} for size in (1, 2, 4)}
