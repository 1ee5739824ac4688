"""A ViT on 400 of scikit-learn's digits, alone and taught by a ResNet18, in minutes on a CPU.

python -m vit_jax.main --config=configs/digits_distill.py
"""

from vit_jax.config import presets

LADDER = True


def get_config():
    """Build the base config of all variants."""
    config = presets.digits_vit()
    config.model.pool = "mean"
    config.data.train_examples = 400  # few, so that the ViT overfits
    config.train.update(epochs=60.0, num_seeds=5)
    return config


def sweep():
    """Name the variants: the teacher, and the ViT without and with it."""
    shift = {"augment.kind": "baseline", "augment.crop_padding": 1, "augment.flip": False}
    return {
        "resnet18": {"model.name": "resnet18", "model.hidden_size": 16} | shift,
        "vit": {},
        # On the images that it was trained on, a teacher is nearly certain: a high temperature
        # makes the other classes' probabilities count.
        "vit_distilled": {
            "train.teacher": "resnet18",
            "train.distill_temperature": 16.0,
            "train.distill_weight": 0.9,
        },
    }
