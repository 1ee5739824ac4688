"""A pretrained ViT with a new head, fine-tuned on photographs of six kinds of scene, in folders.

python -m vit_jax.main --config=configs/scenes_finetune.py --config.init_from=weights/vit_b16 \
  --config.data.dir=scenes

`scenes` holds a folder of photographs for each class, or train and test folders of those: what is
missing, here the validation part, is carved from the training images.

Measured with a small ViT that was pretrained on CIFAR-10: docs/results/scenes_finetune.md. Not yet
with the public ViT-B/16.
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.finetune()
    config.data.name = "folder"
    config.data.dir = "scenes"
    config.data.stored_size = 150
    config.augment.kind = "baseline"
    config.augment.crop_min_area = 0.5
    config.freeze = "last_4_blocks"
    config.optim.learning_rate = 2e-4
    config.train.epochs = 20.0
    return config
