"""From a plain patch-4 ViT on CIFAR-10 to a distilled one: each variant adds one or two parts.

python -m vit_jax.main --config=configs/cifar_ladder.py
"""

from vit_jax.config import presets

LADDER = True


def get_config(profile=""):
    """Build the base config of all variants, which is that of `plain`."""
    config = presets.cifar10_vit(profile)
    config.augment.kind = "none"
    config.model.update(pool="mean", pos_embed="learned_1d", init="default", dropout_rate=0.0)
    config.optim.name = "adamw"
    if profile == "cpu":
        config.train.update(epochs=10.0, num_seeds=2)  # about an hour per run on one core
    return config


def sweep(profile=""):
    """Name the variants: the teacher, then rungs that keep what the ones before them added."""
    resnet18 = {
        "model.name": "resnet18",
        "model.hidden_size": 64,
        "augment.kind": "baseline",
        "optim.name": "sgd",
        "optim.nesterov": True,
        "optim.learning_rate": 0.05,
        "optim.weight_decay": 5e-4,
    }
    if profile == "cpu":  # half the width: a quarter of the time; one seed teaches all students
        resnet18 |= {"model.hidden_size": 32, "train.num_seeds": 1}
    return {"resnet18": resnet18} | presets.ladder({"crop_flip": {"augment.kind": "baseline"}})
