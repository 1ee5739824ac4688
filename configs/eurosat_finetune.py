"""Fine-tuning of a pretrained ViT on EuroSAT: zero-shot head, head, LoRA, last blocks, all.

python -m vit_jax.main --config=configs/eurosat_finetune.py --config.init_from=weights/vit_b16
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.finetune()
    config.data.name = "eurosat/rgb"
    config.data.stored_size = 64  # enlarged on the device to the input size of the weights
    config.augment.kind = "none"  # features of a frozen trunk are then computed once
    config.train.epochs = 10.0
    return config


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {
        "none_trained": {"freeze": "none_trained", "model.head_zero_init": False},
        "head": {"freeze": "head", "optim.learning_rate": 1e-3},
        "lora": {"freeze": "lora", "optim.learning_rate": 1e-3},
        "last_4_blocks": {"freeze": "last_4_blocks", "optim.learning_rate": 2e-4},
        "full": {"freeze": "full", "optim.learning_rate": 1e-4},
    }
