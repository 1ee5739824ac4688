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
    rungs = {
        "plain": {},
        "shift": shift,
        "conv_stem": {"model.patchify": "conv_stem"},
        # Mimetic initialisation is made for these positions.
        "mimetic": {"model.init": "mimetic", "model.pos_embed": "sincos_2d"},
        "muon": {"optim.name": "muon"},
        "norms": {"model.qk_norm": True, "model.norm": "rms"},
        "patch_dropout": {"model.patch_drop_rate": 0.25, "train.patch_drop_percent": 80.0},
        "distilled": {"train.teacher": "resnet18"},
    }
    resnet18 = {"model.name": "resnet18", "model.hidden_size": 16} | shift
    return {"resnet18": resnet18} | presets.accumulate(rungs)
