"""Remedies for class imbalance, on 8x8 digits whose largest class is 20 times the smallest.

python -m vit_jax.main --config=configs/digits_imbalance.py
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.digits_vit()
    config.data.imbalance_ratio = 20.0  # 125 training images of a 0, 6 of a 9
    # Longer runs memorise all 426 images, with any weights of the classes.
    config.train.update(epochs=0.0, steps=100, eval_every_epochs=0.0, eval_every_steps=20)
    config.train.num_seeds = 5
    return config


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {
        "plain": {},
        "class_weights": {"train.class_weights": "balanced"},
        "sampling": {"train.sampling": "balanced"},
        "focal": {"train.focal_gamma": 2.0},
    }
