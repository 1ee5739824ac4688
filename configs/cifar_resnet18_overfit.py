"""ResNet18 overfitted on 100 images per CIFAR-10 class.

python -m vit_jax.main --config=configs/cifar_resnet18_overfit.py
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
    config.train.select = "last"  # not the best on validation: overfitting is the aim
    config.log.every_steps = 10
    config.log.kernel_magnitudes = True  # per layer, before and after training
    return config
