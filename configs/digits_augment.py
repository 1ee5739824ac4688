"""Augmentations for scikit-learn's 8x8 digits, in minutes on a CPU and without a download.

python -m vit_jax.main --config=configs/digits_augment.py
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
    # Digits tolerate small shifts and rotations, but not the mirroring of the policies for photos.
    shift, turn = {"augment.crop_padding": 1}, {"augment.rotation_degrees": 15.0}
    return {
        "none": {"augment.kind": "none"},
        "shift": shift,
        "rotation": turn,
        "shift_rotation": shift | turn,
        "mixup": {"augment.mixup_alpha": 0.2, "augment.mix_rate": 1.0},
    }
