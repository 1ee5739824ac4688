"""A ViT on scikit-learn's 8x8 digits, alone and taught by a ResNet18, in minutes on a CPU.

python -m vit_jax.main --config=configs/digits_distill.py
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.digits_vit()
    config.model.pool = "mean"
    config.train.update(epochs=20.0, num_seeds=5)
    return config


def sweep():
    """Name the variants: the teacher, and the ViT without and with it."""
    shift = {"augment.kind": "baseline", "augment.crop_padding": 1, "augment.flip": False}
    return {
        "resnet18": presets.as_resnet18(get_config()) | {"model.hidden_size": 16} | shift,
        "vit": {},
        # On the images that it was trained on, a teacher is nearly certain: a high temperature
        # shows which other classes it considers.
        "vit_distilled": {"train.teacher": "resnet18", "train.distill_temperature": 8.0},
    }
