"""Converted checkpoints of tiny models with random weights, for tests."""

import numpy as np

from vit_jax import pretrained
from vit_jax.config import get_config
from vit_jax.pretrained.weights import KEYS


def save_weights(folder, num_classes=3, **settings):
    """Write a checkpoint of a ViT (or of model__name) for 8x8 images; return `folder`."""
    name = settings.get("model__name", "vit")
    tiny = {"patch_size": 4, "hidden_size": 16, "depth": 5, "num_heads": 2, "mlp_dim": 16}
    defaults = {key: get_config().model[key] for key in KEYS[name]} | (
        tiny if name == "vit" else {}
    )
    keys = {f"model.{key}": value for key, value in defaults.items()}
    keys |= {"model.name": name, "data.image_size": 8, "data.channels": 1}
    keys |= {key.replace("__", "."): value for key, value in settings.items()}
    rng = np.random.default_rng(0)
    arrays = {
        path: 0.1 * rng.standard_normal(shape).astype(np.float32)
        for path, shape in pretrained.shapes(keys, num_classes).items()
    }
    arrays = {path: abs(a) if path.endswith("/var") else a for path, a in arrays.items()}
    info = {"format": "npz", "source": "a test", "settings": keys, "num_classes": num_classes}
    info |= {"class_names": None, "resize": "official", "assumed": []}
    pretrained.save(pretrained.Weights(arrays, info), folder)
    return folder
