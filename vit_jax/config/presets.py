"""Base configs that several experiments share."""

from vit_jax.config import get_config
from vit_jax.runtime.errors import UserError


def digits_vit():
    """A tiny ViT for scikit-learn's 8x8 digits, which need no download."""
    config = get_config()
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.augment.kind = "none"  # a shifted or mirrored digit can be another digit
    config.model.patch_size = 2
    config.model.hidden_size = 64
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.mlp_dim = 128
    config.optim.learning_rate = 2e-3
    config.optim.warmup_epochs = 5.0
    config.optim.weight_decay = 0.05
    config.train.epochs = 30.0
    config.train.batch_size = 64
    config.train.eval_every_epochs = 5.0
    config.train.num_seeds = 2
    return config


def cifar10():
    """CIFAR-10 without a model."""
    config = get_config()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.kind = "baseline"
    config.train.batch_size = 128
    return config


def cifar10_vit(profile: str = ""):
    """The small ViT on CIFAR-10 of which each sweep varies one setting.

    Args:
      profile: "" for a GPU; "cpu" for a smaller ViT and a recipe that learns in few passes over all
        training images (`--config=configs/cifar_patch.py:cpu`).

    Raises:
      UserError: unknown profile.
    """
    if profile not in ("", "cpu"):
        raise UserError(f"the profile {profile!r} is unknown: use cpu, or none for a GPU")
    config = cifar10()
    config.model.patch_size = 4
    config.model.hidden_size = 256
    config.model.depth = 8
    config.model.num_heads = 8
    config.model.mlp_dim = 512
    config.model.dropout_rate = 0.1
    config.optim.learning_rate = 1e-3
    config.optim.warmup_epochs = 5.0
    config.optim.weight_decay = 0.05
    config.optim.grad_clip_norm = 1.0
    config.train.epochs = 100.0
    config.train.num_seeds = 3
    config.train.label_smoothing = 0.1
    if profile == "cpu":
        _shrink_for_cpu(config)
    return config


def _shrink_for_cpu(config):
    """Choose a ViT and a recipe for two CPU cores, by validation accuracy after three passes."""
    config.model.hidden_size = 192
    config.model.depth = 6
    config.model.num_heads = 6
    config.model.mlp_dim = 384
    config.model.pos_embed = "sincos_2d"  # what mimetic initialisation is made for
    config.model.pool = "mean"
    config.model.dropout_rate = 0.0
    config.model.init = "mimetic"
    config.optim.name = "muon"
    config.optim.warmup_epochs = 0.2
    config.train.batch_size = 64
    config.train.epochs = 20.0
    config.train.num_seeds = 2
    config.log.every_steps = 100


def mnist_vit():
    """A ViT of about 140,000 parameters on MNIST."""
    config = get_config()
    config.data.name = "mnist"
    config.data.image_size = 28
    config.data.channels = 1
    config.data.mean = (0.1307,)
    config.data.std = (0.3081,)
    config.augment.kind = "baseline"
    config.augment.crop_padding = 2
    config.augment.flip = False  # a mirrored digit is another character
    config.model.patch_size = 4
    config.model.hidden_size = 64
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.mlp_dim = 128
    config.model.pos_embed = "rope_2d"
    config.model.pool = "mean"
    config.optim.learning_rate = 1.5e-3
    config.optim.warmup_epochs = 1.0
    config.optim.weight_decay = 0.05
    config.optim.grad_clip_norm = 1.0
    config.train.epochs = 10.0
    config.train.batch_size = 64
    return config


def finetune():
    """Fine-tuning of a pretrained ViT, which sets the model's shape and the image size."""
    config = get_config()
    config.data.image_size = 0  # that of the weights
    config.optim.warmup_percent = 5.0
    config.optim.weight_decay = 0.05
    config.optim.grad_clip_norm = 1.0
    config.train.batch_size = 128  # with little memory: accumulation_steps, remat
    config.log.every_steps = 20
    return config
