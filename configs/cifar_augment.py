"""Augmentations from crop and flip to AutoAugment, mixup and CutMix, for one ViT on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_augment.py

Shows what stronger augmentation is worth to the patch 4 model of configs/cifar_patch.py. Published
results for convolutional networks order them baseline < cutout < randaugment, autoaugment; the gain
comes with long training, and after 50 epochs or less the strong ones can still be behind.
Expected: accuracies have not been measured yet.
"""

from vit_jax import config as defaults


def get_config():
    """Returns the experiment's settings."""
    config = defaults.get_config()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
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
    config.train.epochs = 200.0
    config.train.batch_size = 128
    config.train.num_seeds = 3
    config.train.label_smoothing = 0.1
    return config


def sweep():
    """Returns the variants."""
    grey = {"augment.fill": 128}  # what moved pixels uncover; black borders would stand out
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
