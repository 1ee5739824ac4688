"""The ladder of configs/cifar_ladder.py on scikit-learn's 8x8 digits, in minutes on a CPU.

python -m vit_jax.main --config=configs/digits_ladder.py
"""

from vit_jax.config import presets

LADDER = True


def get_config():
    """Build the base config of all variants, which is that of `plain`."""
    config = presets.digits_vit()
    config.model.pool = "mean"
    config.train.update(epochs=20.0, num_seeds=5)
    return config


def sweep():
    """Name the variants: the teacher, then rungs that keep what the ones before them added."""
    shift = {"augment.kind": "baseline", "augment.crop_padding": 1, "augment.flip": False}
    resnet18 = {"model.name": "resnet18", "model.hidden_size": 16} | shift
    return {"resnet18": resnet18} | presets.ladder({"shift": shift})
