"""Three shapes of a ViT with about the same number of parameters, on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_model.py

config_1 has 8 blocks of width 256 and 8 heads (4.2 million parameters), the model of the other
CIFAR-10 sweeps; config_2 is shallow and wide, 4 blocks of width 384 and 6 heads (4.8 million);
config_3 is deep and narrow, 14 blocks of width 192 and 6 heads (4.2 million).

Measured so far, reduced (docs/results/cifar_model.md): early in training the shape hardly matters.
"""

from vit_jax.config import presets


def get_config(profile=""):
    """Build the base config of all variants."""
    return presets.cifar10_vit(profile)


def sweep(profile=""):
    """Name the variants: settings that differ from the base config."""
    shapes = {
        "config_1": (8, 256, 8, 512),
        "config_2": (4, 384, 6, 768),
        "config_3": (14, 192, 6, 384),
    }
    if profile == "cpu":
        shapes = {
            "config_1": (6, 192, 6, 384),
            "config_2": (3, 288, 6, 576),
            "config_3": (10, 144, 6, 288),
        }
    keys = ("model.depth", "model.hidden_size", "model.num_heads", "model.mlp_dim")
    return {name: dict(zip(keys, shape, strict=True)) for name, shape in shapes.items()}
