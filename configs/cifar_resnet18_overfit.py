"""ResNet18 overfitted on 100 images of each CIFAR-10 class.

python -m vit_jax.main --config=configs/cifar_resnet18_overfit.py

Shows the gap between training and test accuracy, and how training changes the kernels: their
magnitudes before and after, layer by layer, are in summary.json and figures/kernel_magnitudes.png.
The last checkpoint is evaluated, not the best by validation, because overfitting is the aim.

Measured on two CPU cores: docs/results/cifar_resnet18_overfit.md.
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.cifar10()
    config.data.examples_per_class = 100
    config.augment.kind = "none"
    config.model.name = "resnet18"
    config.model.stem = "cifar"
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.02
    config.optim.warmup_epochs = 1.0
    config.train.epochs = 15.0
    config.train.batch_size = 20
    config.train.eval_every_epochs = 5.0
    config.train.select = "last"
    config.log.every_steps = 10
    config.log.kernel_magnitudes = True
    return config
