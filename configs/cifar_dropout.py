"""Placement of dropout in a small ViT on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_dropout.py
"""

from vit_jax.config import presets


def get_config(profile=""):
    """Build the base config of all variants."""
    return presets.cifar10_vit(profile)


def sweep():
    """Name the variants: settings that differ from the base config."""
    keys = ("model.dropout_rate", "model.attention_dropout_rate")
    rates = {
        "none": (0.0, 0.0),
        "residual": (0.1, 0.0),  # after the embedding, the attention and both MLP layers
        "attention": (0.0, 0.1),  # on the attention weights
        "everywhere": (0.1, 0.1),
    }
    return {name: dict(zip(keys, pair, strict=True)) for name, pair in rates.items()}
