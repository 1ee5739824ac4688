"""How well explanations tell what a model sees: deletion and insertion, beside chance."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.augment import preprocess
from vit_jax.evaluation.classifier import Classifier
from vit_jax.explain import attribution
from vit_jax.explain.model import token_layout
from vit_jax.runtime.files import first_damage, warn, write_atomically, write_sums
from vit_jax.runtime.progress import Progress

STEPS = 10  # from no patch to all of them
BATCH = 16  # images at a time
CHANCE = 4  # random orders, whose curves are averaged


def score(classifier: Classifier, images: np.ndarray) -> dict:
    """Scores maps of patches by `explain.deletion_insertion`, beside random orders.

    A patch that is deleted, or not yet inserted, has the image's own mean colour.

    Args:
      classifier: a ViT.
      images: as stored, uint8 [n, side, side, channels].

    Returns:
      {"images": n, "patches": int, "fractions": [k] of the patches, "methods": {name: {"deletion" |
      "insertion": {"curve": [k] mean probabilities of the predicted class, "auc": mean over images,
      "auc_std": over images, "gain": mean over images of how much better the area is than that of
      random orders, "gain_std": over images, "better": share of images where it is}}}}. Standard
      deviations have ddof 1 (null for one image). The last method, "random", has gains of 0.
    """
    config, model = classifier.config, classifier.make_model()
    grid, has_cls = token_layout(config)
    patches = math.prod(grid)
    steps = min(STEPS, patches)

    @jax.jit
    def maps_of(variables, images):
        inputs = preprocess(images, config)
        _, inside, gradients = models.attention_gradients(model, variables, inputs)
        return {
            name: attribution.explanation(name, inside["attention"], gradients, grid, has_cls)
            for name in attribution.EXPLANATIONS
        }

    @jax.jit
    def curves_of(variables, images, relevance):
        inputs = preprocess(images, config)
        return attribution.deletion_insertion(
            lambda changed: jnp.asarray(model.apply(variables, changed)),
            inputs,
            relevance,
            inputs.mean((1, 2), keepdims=True),
            steps,
        )

    variables, n = classifier.variables, len(images)
    chance = np.random.default_rng(0).random((CHANCE, n, *grid), np.float32)
    progress = Progress(f"{classifier.name} explanations", 0, n, True, "image")
    batches = []
    for start in range(0, n, BATCH):
        some = images[start : start + BATCH]
        # A whole batch, even if the images are fewer: one compiled program serves all.
        missing = min(BATCH, n) - len(some)
        some = np.pad(some, ((0, missing), (0, 0), (0, 0), (0, 0)), "edge")
        maps = maps_of(variables, some)
        for i, random in enumerate(chance[:, start : start + BATCH]):
            maps[f"random {i}"] = np.pad(random, ((0, missing), (0, 0), (0, 0)))
        # In this order; jit has sorted the names.
        names = [*attribution.EXPLANATIONS, *(f"random {i}" for i in range(CHANCE))]
        curves = {name: curves_of(variables, some, maps[name]) for name in names}
        batches.append(jax.device_get(curves))
        progress.advance(len(some) - missing)
    progress.close()
    return _summary(batches, n, patches)


def _summary(batches, n, patches):
    names = list(batches[0])
    found = {
        name: {
            key: np.concatenate([batch[name][key] for batch in batches])[:n]
            for key in ("deletion", "insertion", "deletion_auc", "insertion_auc")
        }
        for name in names
    }
    drawn = [found.pop(name) for name in names if name.startswith("random")]
    chance = {key: np.mean([one[key] for one in drawn], 0) for key in drawn[0]}
    methods = {}
    for name, values in {**found, "random": chance}.items():
        methods[name] = {}
        for key, sign in (("deletion", -1), ("insertion", 1)):
            auc = values[f"{key}_auc"]
            gain = sign * (auc - chance[f"{key}_auc"])
            methods[name][key] = {
                "curve": values[key].mean(0).tolist(),
                "auc": float(auc.mean()),
                "auc_std": _std(auc),
                "gain": float(gain.mean()),
                "gain_std": _std(gain),
                "better": float((gain > 0).mean()),
            }
    fractions = next(iter(batches[0].values()))["fractions"].tolist()
    return {"images": n, "patches": patches, "fractions": fractions, "methods": methods}


def _std(values):
    return float(values.std(ddof=1)) if len(values) > 1 else None


def read(folder: pathlib.Path) -> dict:
    """Returns what scores.json in a folder holds; {} if there is none.

    If anything there is damaged, all of it is removed, to be made again.
    """
    path = folder / "scores.json"
    if problem := first_damage(folder):
        warn(f"{problem}: the explanations are scored again")
        remove(folder)
    return json.loads(path.read_text()) if path.exists() else {}


def remove(folder: pathlib.Path) -> None:
    """Removes the scores in a folder, and the figures beside them."""
    for path in folder.glob("*"):
        path.unlink()


def write(path: pathlib.Path, found: dict) -> None:
    """Writes what `score` returns, and the digests of what lies beside it."""
    write_atomically(path, json.dumps(found, indent=2) + "\n")
    write_sums(path.parent, [beside.name for beside in path.parent.glob("*.*")])
