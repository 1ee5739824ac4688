"""Fine-tuning of a pretrained ViT on a folder of photographs of 100 sports: head, last blocks, all.

python -m vit_jax.main --config=configs/sports_finetune.py --config.init_from=weights/vit_b16

On a CPU, with smaller images: --config=configs/sports_finetune.py:cpu
"""

from vit_jax.config import presets


def get_config(profile=""):
    """Build the base config of all variants; the profile "cpu" is for two cores."""
    config = presets.finetune(profile)
    config.data.name = "folder"
    config.data.dir = "sports100"
    config.data.stored_size = 256  # between the smallest and the largest random crop
    config.augment.kind = "baseline"
    config.augment.crop_min_area = 0.25
    # The lower a block, the more of its pretrained features serve as they are.
    config.optim.update(learning_rate=1e-3, end_learning_rate=1e-7, layer_decay=0.65)
    config.train.epochs = 50.0  # --config.train.epochs=100 lengthens a finished run
    config.train.label_smoothing = 0.1
    return config


def sweep():
    """Name the variants: settings that differ from the base config."""
    # The features of images that never change are computed once.
    head = {"freeze": "head", "augment.kind": "none", "augment.crop_min_area": 0.0}
    return {
        "head": {**head, "optim.layer_decay": 1.0},
        "last_4_blocks": {"freeze": "last_4_blocks"},
        "full": {"freeze": "full"},
    }
