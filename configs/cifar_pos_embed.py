"""Position embeddings of a small ViT on CIFAR-10: none, absolute, rotary and relative.

python -m vit_jax.main --config=configs/cifar_pos_embed.py
"""

from vit_jax.config import presets

KINDS = (
    "none",
    "learned_1d",
    "learned_2d",
    "sinusoidal",
    "sincos_2d",
    "rope_2d",
    "relative_bias",
)

PUBLISHED = {
    "ViT-B/16, ImageNet 5-shot (Dosovitskiy et al. 2021, table 8)": (
        "learned_1d 64.2 > relative 64.0 = learned_2d 64.0 > none 61.4"
    ),
    "ViT of 820,000 parameters, CIFAR-10 (github.com/s-chh/2D-Positional-Encoding-Vision-"
    "Transformer)": "relative 90.6 > RoPE 88.5 > learned 86.5 > sinusoidal 86.1 > none 79.6",
}


def get_config(profile=""):
    """Build the base config of all variants."""
    return presets.cifar10_vit(profile)


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {kind: {"model.pos_embed": kind} for kind in KINDS}
