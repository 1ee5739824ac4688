"""A pretrained ViT fine-tuned on a folder of photographs of 100 sports.

python -m vit_jax.main --config=configs/sports_finetune.py --config.init_from=weights/vit_b16 \
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.finetune()
    config.data.name = "folder"
    config.data.dir = "sports100"
    config.data.stored_size = 256  # between the smallest and the largest random crop
    config.augment.kind = "baseline"
    config.augment.crop_min_area = 0.25
    config.optim.learning_rate = 1e-4
    config.optim.end_learning_rate = 1e-7
    config.train.epochs = 50.0  # --config.train.epochs=100 lengthens a finished run
    return config
