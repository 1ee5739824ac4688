"""Augmentations for a small ViT on CIFAR-10: baseline, cutout, policies, mixup and CutMix.

python -m vit_jax.main --config=configs/cifar_augment.py
"""

from vit_jax.config import presets

PUBLISHED = {
    "WRN-28-10 (Lim et al. 2019; RandAugment: github.com/ildoonet/pytorch-randaugment)": (
        "autoaugment 97.4, randaugment 97.3 > cutout 96.9 > baseline 96.1"
    ),
}


def get_config(profile=""):
    """Build the base config of all variants."""
    config = presets.cifar10_vit(profile)
    config.train.epochs = 8.0 if profile else 200.0  # harder images take longer to learn
    return config


def sweep():
    """Name the variants: settings that differ from the base config."""
    grey = {"augment.fill": 128}  # fill uncovered areas with grey: black borders would stand out
    return {
        "baseline": {"augment.kind": "baseline"},
        "strong": {"augment.kind": "strong", "model.drop_path_rate": 0.1} | grey,
        "cutout": {"augment.kind": "cutout"},
        "autoaugment": {"augment.kind": "autoaugment"} | grey,
        "randaugment": {"augment.kind": "randaugment"} | grey,
        "mixup_cutmix": {
            "augment.kind": "baseline",
            "augment.mixup_alpha": 0.8,
            "augment.cutmix_alpha": 1.0,
            "augment.mix_rate": 1.0,
        },
    }
