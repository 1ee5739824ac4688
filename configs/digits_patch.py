"""Patch sizes 1, 2 and 4 on scikit-learn's 8x8 digits, in minutes on a CPU.

python -m vit_jax.main --config=configs/digits_patch.py
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    return presets.digits_vit()


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {f"patch_{size}": {"model.patch_size": size} for size in (1, 2, 4)}
