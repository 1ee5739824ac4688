"""A tiny ViT on the digits, for the tests."""

from vit_jax import config as settings
from vit_jax.config.rules import validate


def make_config(**overrides):
    """Make a resolved, valid config; optim__name="sgd" overrides optim.name."""
    keys = {
        "data.name": "digits",
        "data.image_size": 8,
        "data.channels": 1,
        "augment.crop_padding": 1,
        "model.patch_size": 4,
        "model.hidden_size": 16,
        "model.depth": 1,
        "model.num_heads": 2,
        "model.mlp_dim": 32,
        "train.epochs": 1.0,
    }
    if overrides.get("model__name") == "resnet18":
        keys = {key: value for key, value in keys.items() if not key.startswith("model.")}
        keys["model.hidden_size"] = 4
    keys |= {key.replace("__", "."): value for key, value in overrides.items()}
    config = settings.resolve(settings.with_overrides(settings.get_config(), keys, "a test"))
    validate(config)
    return config
