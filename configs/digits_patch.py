"""Patch sizes 1, 2 and 4 on scikit-learn's 8x8 digits: the whole path with no download.

python -m vit_jax.main --config=configs/digits_patch.py
"""

from vit_jax import config as defaults


def get_config():
    """Returns the experiment's settings."""
    config = defaults.get_config()
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.augment.kind = "none"  # a shifted or mirrored digit can be another digit
    config.model.patch_size = 2
    config.model.hidden_size = 64
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.mlp_dim = 128
    config.optim.learning_rate = 2e-3
    config.optim.warmup_epochs = 5.0
    config.optim.weight_decay = 0.05
    config.train.epochs = 30.0
    config.train.batch_size = 64
    config.train.eval_every_epochs = 5.0
    config.train.num_seeds = 2
    return config


def sweep():
    """Returns the variants."""
    return {f"patch_{size}": {"model.patch_size": size} for size in (1, 2, 4)}
