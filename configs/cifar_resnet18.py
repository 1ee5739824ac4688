"""ResNet18 on CIFAR-10, the convolutional baseline.

python -m vit_jax.main --config=configs/cifar_resnet18.py
"""

from vit_jax.config import presets

PUBLISHED = {
    "ResNet18, crop and flip (DeVries & Taylor 2017, github.com/uoguelph-mlrg/Cutout)": "95.3",
}


def get_config(profile=""):
    """Build the base config of all variants."""
    config = presets.cifar10(profile)
    config.model.name = "resnet18"
    config.model.stem = "cifar"
    config.optim.name = "sgd"
    config.optim.nesterov = True
    config.optim.learning_rate = 0.1
    config.optim.warmup_epochs = 5.0
    config.optim.weight_decay = 5e-4
    config.train.epochs = 100.0
    config.train.num_seeds = 3
    if profile == "cpu":
        config.optim.warmup_epochs = 3.0
        config.train.update(epochs=15.0, num_seeds=1, label_smoothing=0.1)
    return config
