"""A pretrained ViT fine-tuned on a folder of photographs of six scene classes.

python -m vit_jax.main --config=configs/scenes_finetune.py --config.init_from=weights/vit_b16

On a CPU, with smaller images: --config=configs/scenes_finetune.py:cpu
"""

from vit_jax.config import presets


def get_config(profile=""):
    """Build the base config of all variants; the profile "cpu" is for two cores."""
    config = presets.finetune(profile)
    config.data.name = "folder"
    config.data.dir = "scenes"  # <class>/*; or train/<class>/*, test/<class>/*
    config.data.stored_size = 150  # that of the images
    config.augment.kind = "baseline"
    config.augment.crop_min_area = 0.5
    # The lower a block, the more of its pretrained features serve as they are.
    config.optim.update(learning_rate=1e-3, layer_decay=0.65)
    config.train.update(epochs=20.0, label_smoothing=0.1)
    return config
