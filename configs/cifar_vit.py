"""A small ViT on CIFAR-10 whose learning rate drops when the validation loss plateaus.

python -m vit_jax.main --config=configs/cifar_vit.py
"""

from vit_jax.config import presets


def get_config(profile=""):
    """Build the base config of all variants."""
    config = presets.cifar10_vit(profile)
    config.model.update(hidden_size=256, depth=8, num_heads=8, mlp_dim=512, dropout_rate=0.2)
    config.optim.warmup_epochs = 0.0
    config.optim.weight_decay = 0.01
    config.optim.grad_clip_norm = 0.0
    config.optim.schedule = "reduce_on_plateau"
    config.optim.decay_factor = 0.1
    config.optim.plateau_patience = 10
    config.train.label_smoothing = 0.0
    if profile == "cpu":  # few epochs
        config.optim.update(decay_factor=0.3, plateau_patience=0, warmup_epochs=0.2)
        config.train.update(epochs=12.0, num_seeds=1)
    return config
