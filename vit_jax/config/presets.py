"""Base configs shared by several experiments."""

from vit_jax.config import get_config
from vit_jax.runtime.errors import UserError


def check_profile(profile: str) -> None:
    """Raise UserError if a profile is not "" (a GPU) or "cpu"."""
    if profile not in ("", "cpu"):
        raise UserError(f"unknown profile {profile!r}: use cpu, or none for a GPU")


def digits_vit():
    """A tiny ViT for scikit-learn's 8x8 digits, which need no download."""
    config = get_config()
    config.data.update(name="digits", image_size=8, channels=1)
    config.augment.kind = "none"  # a shifted or mirrored digit can be another digit
    config.model.update(patch_size=2, hidden_size=64, depth=2, num_heads=4, mlp_dim=128)
    config.optim.update(learning_rate=2e-3, warmup_epochs=5.0, weight_decay=0.05)
    config.train.update(epochs=30.0, batch_size=64, eval_every_epochs=5.0, num_seeds=2)
    return config


def cifar10(profile: str = ""):
    """CIFAR-10 without a model; raises UserError if the profile is not "" or "cpu"."""
    check_profile(profile)
    config = get_config()
    config.data.update(name="cifar10", image_size=32)
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.kind = "baseline"
    config.train.batch_size = 128
    return config


def cifar10_vit(profile: str = ""):
    """The small ViT on CIFAR-10, the base of the sweeps.

    Args:
      profile: "" for a GPU; "cpu" for a smaller ViT and a recipe for few
        epochs (`--config=configs/cifar_patch.py:cpu`).

    Raises:
      UserError: unknown profile.
    """
    config = cifar10(profile)
    config.model.update(patch_size=4, hidden_size=256, depth=8, num_heads=8, mlp_dim=512)
    config.model.dropout_rate = 0.1
    config.optim.update(learning_rate=1e-3, warmup_epochs=5.0)
    config.optim.update(weight_decay=0.05, grad_clip_norm=1.0)
    config.train.update(epochs=100.0, num_seeds=3, label_smoothing=0.1)
    if profile == "cpu":  # chosen by validation accuracy after three epochs on two cores
        config.model.update(hidden_size=192, depth=6, num_heads=6, mlp_dim=384, dropout_rate=0.0)
        # Mimetic initialisation is made for these position embeddings.
        config.model.update(init="mimetic", pos_embed="sincos_2d", pool="mean")
        config.optim.update(name="muon", warmup_epochs=0.2)
        config.train.update(batch_size=64, epochs=6.0, num_seeds=2)
        config.log.every_steps = 100
    return config


def mnist_vit():
    """A ViT of 0.9 M parameters on MNIST, with the recipe of `cifar10_vit` for few epochs."""
    config = get_config()
    config.data.update(name="mnist", image_size=28, channels=1, mean=(0.1307,), std=(0.3081,))
    config.augment.update(kind="baseline", crop_padding=2, rotation_degrees=10.0)
    config.augment.flip = False  # a mirrored digit is another character
    config.model.update(patch_size=4, hidden_size=128, depth=6, num_heads=4, mlp_dim=256)
    config.model.update(init="mimetic", pos_embed="sincos_2d", pool="mean")
    config.optim.update(name="muon", learning_rate=1e-3, warmup_epochs=0.5)
    config.optim.update(weight_decay=0.05, grad_clip_norm=1.0)
    config.train.update(epochs=8.0, batch_size=64, num_seeds=3, label_smoothing=0.1)
    config.log.every_steps = 100
    return config


def finetune(profile: str = ""):
    """Fine-tuning of a pretrained ViT, which defines the model's shape and the image size.

    With the profile "cpu", images have 112 pixels, which patches of 14 and of 16 divide. Raises
    UserError if the profile is unknown.
    """
    check_profile(profile)
    config = get_config()
    config.data.image_size = 112 if profile else 0  # 0: from the weights
    config.optim.update(warmup_percent=5.0, weight_decay=0.05, grad_clip_norm=1.0)
    config.train.batch_size = 128  # if memory is short: accumulation_steps, remat
    config.log.every_steps = 20
    return config


def ladder(augmented: dict[str, dict]) -> dict[str, dict]:
    """Make the rungs from a plain ViT to a distilled one, each with what the ones before it added.

    Args:
      augmented: {name: overrides} of the rung that adds augmentation.
    """
    return accumulate(
        {"plain": {}}
        | augmented
        | {
            "conv_stem": {"model.patchify": "conv_stem"},
            # Mimetic initialisation is made for these positions.
            "mimetic": {"model.init": "mimetic", "model.pos_embed": "sincos_2d"},
            "muon": {"optim.name": "muon"},
            "norms": {"model.qk_norm": True, "model.norm": "rms"},
            "patch_dropout": {"model.patch_drop_rate": 0.25, "train.patch_drop_percent": 80.0},
            "distilled": {"train.teacher": "resnet18"},  # a variant of the sweep
        }
    )


def accumulate(rungs: dict[str, dict]) -> dict[str, dict]:
    """Let every variant keep the overrides of the ones before it."""
    variants, kept = {}, {}
    for name, added in rungs.items():
        variants[name] = kept = kept | added
    return variants
