"""How deep to fine-tune a pretrained ViT on EuroSAT: nothing, the head, the last blocks, all of it.

python -m vit_jax.main --config=configs/eurosat_finetune.py --config.init_from=weights/vit_b16

`init_from` is a folder that scripts/convert_weights.py wrote, or the folder of a run. Images of 64
pixels are enlarged on the device to the size that the weights were trained at. No augmentation, so
that the four rows differ in what is trained alone (and in the learning rate, which falls with the
depth); the head's inputs are then computed once.

Measured with a small ViT that was pretrained on CIFAR-10: docs/results/eurosat_finetune.md. Not yet
with the public ViT-B/16.
"""

from vit_jax.config import presets


def get_config():
    """Returns the settings that the variants share."""
    config = presets.finetune()
    config.data.name = "eurosat/rgb"
    config.data.stored_size = 64
    config.augment.kind = "none"
    config.train.epochs = 10.0
    return config


def sweep():
    """Returns the variants: what is trained."""
    return {
        "none_trained": {"freeze": "none_trained", "model.head_zero_init": False},
        "head": {"freeze": "head", "optim.learning_rate": 1e-3},
        "last_4_blocks": {"freeze": "last_4_blocks", "optim.learning_rate": 2e-4},
        "full": {"freeze": "full", "optim.learning_rate": 1e-4},
    }
