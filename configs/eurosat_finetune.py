"""Fine-tuning of a pretrained ViT on EuroSAT: zero-shot head, head, LoRA, last blocks, all.

python -m vit_jax.main --config=configs/eurosat_finetune.py --config.init_from=weights/vit_b16

On a CPU, with few epochs of small images: --config=configs/eurosat_finetune.py:cpu
"""

from vit_jax.config import presets

LAYER_WISE = {"optim.learning_rate": 1e-3, "optim.layer_decay": 0.65}


def get_config(profile=""):
    """Build the base config of all variants; the profile "cpu" is for two cores."""
    config = presets.finetune(profile)
    config.data.name = "eurosat/rgb"
    config.data.stored_size = 64  # enlarged on the device to the input size of the weights
    config.augment.kind = "none"  # features of a frozen trunk are then computed once
    config.train.epochs = 3.0 if profile else 10.0
    return config


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {
        "none_trained": {"freeze": "none_trained", "model.head_zero_init": False},
        "head": {"freeze": "head", "optim.learning_rate": 1e-3, "train.epochs": 30.0},
        "lora": {"freeze": "lora", "optim.learning_rate": 1e-3},
        # The lower a block, the more of its pretrained features serve as they are.
        "last_4_blocks": {"freeze": "last_4_blocks", **LAYER_WISE},
        "full": {"freeze": "full", **LAYER_WISE},
    }
