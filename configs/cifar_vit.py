"""A ViT of width 256 and depth 8 on CIFAR-10, its rate lowered when validation stalls.

python -m vit_jax.main --config=configs/cifar_vit.py

Measured so far, reduced, on two CPU cores: docs/results/cifar_vit.md.
"""

from configs import common


def get_config():
    """Returns the experiment's settings."""
    config = common.cifar10()
    config.model.patch_size = 4
    config.model.hidden_size = 256
    config.model.depth = 8
    config.model.num_heads = 8
    config.model.mlp_dim = 512
    config.model.dropout_rate = 0.2
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.01
    config.optim.schedule = "reduce_on_plateau"
    config.optim.decay_factor = 0.1
    config.optim.plateau_patience = 10
    config.train.epochs = 100.0
    config.train.num_seeds = 3
    return config
