"""A ViT on scikit-learn's 8x8 digits, alone and taught by a ResNet18, in minutes on a CPU.

python -m vit_jax.main --config=configs/digits_distill.py
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.digits_vit()
    config.augment.update(kind="baseline", crop_padding=1, flip=False)
    config.model.pool = "mean"
    config.train.update(epochs=20.0, num_seeds=5)
    return config


def sweep():
    """Name the variants: the teacher, and the ViT without and with it."""
    return {
        "resnet18": presets.as_resnet18(get_config()) | {"model.hidden_size": 16},
        "vit": {},
        "vit_distilled": {"train.teacher": "resnet18"},
    }
