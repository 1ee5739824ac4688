"""Three ViT shapes of similar parameter count, on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_model.py
"""

from vit_jax.config import presets


def get_config(profile=""):
    """Build the base config of all variants."""
    return presets.cifar10_vit(profile)


def sweep(profile=""):
    """Name the variants: settings that differ from the base config."""
    shapes = {
        "config_1": (8, 256, 8, 512),  # 4.2 M parameters, as in the other CIFAR-10 sweeps
        "config_2": (4, 384, 6, 768),  # shallow and wide, 4.8 M parameters
        "config_3": (14, 192, 6, 384),  # deep and narrow, 4.2 M parameters
    }
    if profile == "cpu":
        shapes = {
            "config_1": (6, 192, 6, 384),
            "config_2": (3, 288, 6, 576),
            "config_3": (10, 144, 6, 288),
        }
    keys = ("model.depth", "model.hidden_size", "model.num_heads", "model.mlp_dim")
    return {name: dict(zip(keys, shape, strict=True)) for name, shape in shapes.items()}
