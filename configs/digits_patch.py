"""Patch sizes 1, 2 and 4 on scikit-learn's 8x8 digits: the whole path with no download.

python -m vit_jax.main --config=configs/digits_patch.py

Measured on two CPU cores: docs/results/digits_patch.md; patch_4 97.6 % in two minutes.
"""

from vit_jax.config import presets


def get_config():
    """Returns the experiment's settings."""
    return presets.digits_vit()


def sweep():
    """Returns the variants."""
    return {f"patch_{size}": {"model.patch_size": size} for size in (1, 2, 4)}
