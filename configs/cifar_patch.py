"""Patch sizes 2, 4 and 8 of a small ViT on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_patch.py
"""

from vit_jax import config as defaults


def get_config():
    """Returns the experiment's settings."""
    config = defaults.get_config()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.kind = "baseline"
    config.model.patch_size = 4
    config.model.hidden_size = 256
    config.model.depth = 8
    config.model.num_heads = 8
    config.model.mlp_dim = 512
    config.model.dropout_rate = 0.1
    config.optim.learning_rate = 1e-3
    config.optim.warmup_epochs = 5.0
    config.optim.weight_decay = 0.05
    config.optim.grad_clip_norm = 1.0
    config.train.epochs = 100.0
    config.train.batch_size = 128
    config.train.num_seeds = 3
    config.train.label_smoothing = 0.1
    return config


def sweep():
    """Returns the variants."""
    return {f"patch_{size}": {"model.patch_size": size} for size in (2, 4, 8)}
