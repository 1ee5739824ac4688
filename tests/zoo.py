"""Models of other projects in the folders of make_zoo.py, and small ViTs of this project."""

import json
import pathlib

import numpy as np

from vit_jax import config as settings
from vit_jax import models, pretrained
from vit_jax.pretrained.weights import KEYS


def folders(root):
    """List the folders of the models."""
    return sorted(path.parent for path in pathlib.Path(root).glob("*/given.json"))


def file_of(folder):
    """Find the weight file of a model."""
    return next(p for p in folder.iterdir() if p.name in ("model.safetensors", "model.npz"))


def convert(folder, **more):
    """Convert a model, with the options that its files do not record."""
    options = json.loads((folder / "given.json").read_text())["options"]
    return pretrained.convert(file_of(folder), pretrained.settings_of(options | more))


def make(**model):
    """Make the `Weights` of a small ViT with random values, for 12x12 pixels and 5 classes."""
    config = settings.get_config()
    config.data.update(image_size=12, resize_mode="shorter_side", mean=(0.5,) * 3, std=(0.2,) * 3)
    config.model.update(patch_size=4, hidden_size=16, depth=2, num_heads=2, mlp_dim=24)
    config.model.update(model)
    flat = settings.flatten(config)
    keys = [*(f"model.{key}" for key in ("name", *KEYS["vit"])), *pretrained.DATA_KEYS]
    found = {key: flat[key] for key in (*keys, *settings.PREPROCESSING)}
    rng = np.random.default_rng(0)
    arrays = {
        key: rng.normal(size=shape, scale=0.5).astype(np.float32)
        for key, shape in pretrained.shapes(found, 5).items()
    }
    info = {"source": "a run", "settings": found, "num_classes": 5, "class_names": list("abcde")}
    return pretrained.Weights(arrays, info)


def compute(weights, images):
    """Compute the tokens before the first and after the last block, and the output.

    The output are logits [b, num_classes], or the features [b, d] of a model without a head.
    """
    config = settings.with_overrides(settings.get_config(), weights.info["settings"], "weights")
    count, variables = weights.info["num_classes"], weights.variables
    if not count:
        width, _ = pretrained.shapes(weights.info["settings"], 1)["head/kernel"]
        variables["params"]["head"] = {"kernel": np.zeros((width, 1)), "bias": np.zeros(1)}
    model = models.build(config.model, max(1, count))
    logits, seen = model.apply(variables, images, capture=True)
    output = logits if count else seen["features"]
    return [np.asarray(x) for x in (seen["tokens"][0], seen["tokens"][-1], output)]
