"""Softmax and differential attention at equal parameter counts, on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_diff_vit.py
"""

from vit_jax.config import presets

PUBLISHED = {
    "ViT, patch 4, CIFAR-10, 50 epochs, one run, parameters perhaps unequal (github.com/"
    "Arpit000007)": "differential 79.7 > plain 73.0",
}


def get_config(profile=""):
    """Build the base config of all variants."""
    return presets.cifar10_vit(profile)


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {
        "plain": {},
        # As in Ye et al. 2024, half the heads (each has two softmax maps) and no biases: parameter
        # counts differ by less than 1 %.
        "differential": {
            "model.attention": "differential",
            "model.num_heads": 4,
            "model.qkv_bias": False,
        },
    }
