"""A pretrained ViT fine-tuned on a folder of photographs of six scene classes.

python -m vit_jax.main --config=configs/scenes_finetune.py --config.init_from=weights/vit_b16 \
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.finetune()
    config.data.name = "folder"
    config.data.dir = "scenes"  # <class>/*; or train/<class>/*, test/<class>/*
    config.data.stored_size = 150
    config.augment.kind = "baseline"
    config.augment.crop_min_area = 0.5
    config.freeze = "last_4_blocks"
    config.optim.learning_rate = 2e-4
    config.train.epochs = 20.0
    return config
