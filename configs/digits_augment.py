"""What augmentation does for scikit-learn's 8x8 digits: no download, minutes on a CPU.

python -m vit_jax.main --config=configs/digits_augment.py

Digits may be shifted and turned a little and still be the same digit, but not mirrored: so these
variants, instead of the policies made for photographs.
Expected: accuracies have not been measured yet.
"""

from vit_jax import config as defaults


def get_config():
    """Returns the experiment's settings."""
    config = defaults.get_config()
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.augment.kind = "baseline"
    config.augment.crop_padding = 0
    config.augment.flip = False
    config.model.patch_size = 2
    config.model.hidden_size = 64
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.mlp_dim = 128
    config.optim.learning_rate = 2e-3
    config.optim.warmup_epochs = 5.0
    config.optim.weight_decay = 0.05
    config.train.epochs = 60.0
    config.train.batch_size = 64
    config.train.eval_every_epochs = 5.0
    config.train.num_seeds = 3
    return config


def sweep():
    """Returns the variants."""
    shift, turn = {"augment.crop_padding": 1}, {"augment.rotation_degrees": 15.0}
    return {
        "none": {"augment.kind": "none"},
        "shift": shift,
        "rotation": turn,
        "shift_rotation": shift | turn,
        "mixup": {"augment.mixup_alpha": 0.2, "augment.mix_rate": 1.0},
    }
