"""What augmentation does for scikit-learn's 8x8 digits: no download, minutes on a CPU.

python -m vit_jax.main --config=configs/digits_augment.py

Digits may be shifted and turned a little and still be the same digit, but not mirrored: so these
variants, instead of the policies made for photographs.

Measured on two CPU cores: docs/results/digits_augment.md.
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.digits_vit()
    config.augment.kind = "baseline"
    config.augment.crop_padding = 0
    config.augment.flip = False
    config.train.epochs = 60.0
    config.train.num_seeds = 3
    return config


def sweep():
    """Name the variants: settings that differ from the base config."""
    shift, turn = {"augment.crop_padding": 1}, {"augment.rotation_degrees": 15.0}
    return {
        "none": {"augment.kind": "none"},
        "shift": shift,
        "rotation": turn,
        "shift_rotation": shift | turn,
        "mixup": {"augment.mixup_alpha": 0.2, "augment.mix_rate": 1.0},
    }
