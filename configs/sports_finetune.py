"""A pretrained ViT fine-tuned on photographs of 100 sports, in folders.

python -m vit_jax.main --config=configs/sports_finetune.py --config.init_from=weights/vit_b16 \
  --config.data.dir=sports100

The learning rate falls along a cosine from 1e-4 to 1e-7 in 50 epochs. The same command with
--config.train.epochs=100 goes on from there: see "Going on for longer" in the README.

Measured with a small ViT that was pretrained on CIFAR-10: docs/results/sports_finetune.md. Not yet
with the public ViT-B/16.
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.finetune()
    config.data.name = "folder"
    config.data.dir = "sports100"
    config.data.stored_size = 256  # the largest crop is shrunk, the smallest enlarged
    config.augment.kind = "baseline"
    config.augment.crop_min_area = 0.25
    config.optim.learning_rate = 1e-4
    config.optim.end_learning_rate = 1e-7
    config.train.epochs = 50.0
    return config
