"""A small ViT on CIFAR-10 whose learning rate drops when the validation loss plateaus.

python -m vit_jax.main --config=configs/cifar_vit.py
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.cifar10_vit()
    config.model.dropout_rate = 0.2
    config.optim.warmup_epochs = 0.0
    config.optim.weight_decay = 0.01
    config.optim.grad_clip_norm = 0.0
    config.optim.schedule = "reduce_on_plateau"
    config.optim.decay_factor = 0.1
    config.optim.plateau_patience = 10
    config.train.label_smoothing = 0.0
    return config
