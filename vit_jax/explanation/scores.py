"""Scores of explanations: deletion and insertion, compared with chance."""

import pathlib

import jax.numpy as jnp
import numpy as np

from vit_jax.explanation import attribution
from vit_jax.explanation.model import METHODS, Model
from vit_jax.runtime.progress import Progress

STEPS = 10  # from no patch to all of them
BATCH = 16  # images at a time
CHANCE = 4  # random orders, whose curves are averaged


def score(model: Model, images: np.ndarray) -> dict:
    """Score a ViT's explanations of stored images by deletion and insertion, against chance.

    A patch that is deleted, or not yet inserted, has the image's own mean colour.

    Returns:
      {"images": n, "patches": int, "fractions": [k] of the patches, "methods": {name: {"deletion" |
      "insertion": {"curve": [k] mean probabilities of the predicted class, "auc": mean over images,
      "auc_std": over images, "gain": mean over images of how much better the area is than that of
      random orders, "gain_std": over images, "better": fraction of images where it is}}}}. Standard
      deviations have ddof 1 (null for one image). The last method, "random", has gains of 0.
    """
    n, patches = len(images), model.grid[0] * model.grid[1]
    fractions = attribution.replaced_counts(patches, min(STEPS, patches)) / patches
    module = model.make_model()

    def curves_of(variables, inputs, relevance):
        found = attribution.deletion_insertion(
            lambda changed: jnp.asarray(module.apply(variables, changed)),
            inputs,
            relevance,
            inputs.mean((1, 2), keepdims=True),
            len(fractions) - 1,
        )
        return jnp.stack([found["deletion"], found["insertion"]], 1)

    chance = np.random.default_rng(0).random((CHANCE, n, *model.grid), np.float32)
    progress = Progress(
        f"{model.name}: scoring explanations,", 0, len(METHODS) + CHANCE, True, "map"
    )

    def curves(relevance):  # [n, 2, k]
        found = model.apply("curves", curves_of, images, relevance, batch_size=BATCH)
        progress.advance(1)
        return found

    found = {name: curves(model.explain(images, method)) for method, name in METHODS.items()}
    found["random"] = np.mean([curves(one) for one in chance], 0)
    progress.close()
    methods = {name: _summary(each, found["random"], fractions) for name, each in found.items()}
    return {"images": n, "patches": patches, "fractions": fractions.tolist(), "methods": methods}


def _summary(curves, chance, fractions):
    # Curves are [n, 2, k], of deletion and insertion.
    summary = {}
    for i, (key, sign) in enumerate((("deletion", -1), ("insertion", 1))):
        auc = np.trapezoid(curves[:, i], fractions)
        gain = sign * (auc - np.trapezoid(chance[:, i], fractions))
        summary[key] = {"curve": curves[:, i].mean(0).tolist()}
        for name, values in (("auc", auc), ("gain", gain)):
            std = float(values.std(ddof=1)) if len(values) > 1 else None
            summary[key] |= {name: float(values.mean()), f"{name}_std": std}
        summary[key]["better"] = float((gain > 0).mean())
    return summary


def remove(folder: pathlib.Path) -> None:
    """Remove the scores in a folder, and their figures."""
    for path in folder.glob("*"):
        path.unlink()
