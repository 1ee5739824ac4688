"""Figures and JSON files of `analysis`, for `vit-jax visualize`."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax import plots
from vit_jax.data.bands import show
from vit_jax.evaluation.labels import softmax
from vit_jax.explanation import analysis
from vit_jax.explanation.model import Model
from vit_jax.plots.results import short
from vit_jax.runtime.errors import UserError, single_line
from vit_jax.runtime.files import write_atomically

NUM_SHOWN = 8  # images in a figure


@dataclasses.dataclass(frozen=True)
class Request:
    """What to analyse.

    Attributes:
      model: its model.
      files: image files; None: images of the run's dataset.
      split: "train", "val" or "test" of the dataset; None: "test".
      count: number of images; None: that of DEFAULT_COUNTS.
    """

    model: Model
    files: list[pathlib.Path] | None = None
    split: str | None = None
    count: int | None = None

    def sample(self, kind: str, split: str | None = None, times: int = 1) -> "Sample":
        """Read the files, or a fixed random sample of a split, by default that of the request."""
        if self.files:
            names = [single_line(path.name) for path in self.files]
            return Sample(self.model.read_images(self.files), names, None, "files")
        count, split = self.count or DEFAULT_COUNTS[kind], split or self.split or "test"
        images, names = self.model.random_images(times * count, split=split)
        names = [single_line(name) for name in names]
        if self.model.config.data.multi_label:
            return Sample(images, names, None, split)
        return Sample(images, names, self.model.class_indices(names, len(names)), split)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Images as stored, their class or file names, their classes, and their split or "files"."""

    images: np.ndarray
    names: list[str]
    labels: np.ndarray | None
    origin: str

    @property
    def described(self) -> str:
        """Number and origin of the images, for titles."""
        kind = "image file" if self.origin == "files" else f"{self.origin} image"
        return f"{len(self.images)} {kind}{'s' * (len(self.images) != 1)}"


def _titles(model, sample):
    """Describe the first images by name and, with a head, prediction."""
    if not model.class_names:
        return list(map(short, sample.names[:NUM_SHOWN]))
    best = model.top5(sample.images[:NUM_SHOWN])
    return [
        f"{short(name)}\n→ {short(top[0][0])} {100 * top[0][1]:.0f} %"
        for name, top in zip(sample.names, best, strict=False)
    ]


def _draw_ablation(request, folder):
    model, sample = request.model, request.sample("ablation")
    reference = None if request.files else request.sample("ablation", "train").images
    found = analysis.ablation(model, sample.images, sample.labels, reference)
    title = f"{model.name}: each head or MLP replaced by its mean, {sample.described}"
    plots.save_ablation(folder / "ablation.png", title, found, sample.labels is not None)
    classes = "predicted" if sample.labels is None else "labels"
    origin = sample.origin if reference is None else "train"
    return found | {"classes": classes, "split": sample.origin, "reference": origin}


def _draw_logit_lens(request, folder):
    model, sample = request.model, request.sample("logit_lens")
    found = analysis.logit_lens(model, sample.images, sample.labels)
    layers, logits = analysis.layer_names(model), found["logits"]
    flat = softmax(logits.reshape(-1, logits.shape[-1])).reshape(logits.shape)
    own = found["classes"][:, None, None]
    summary: dict[str, Any] = {
        "accuracy": (logits.argmax(-1) == own[..., 0]).mean(0),
        "probability": np.take_along_axis(flat, own, 2)[..., 0].mean(0),
        "patch_accuracy": found["patch_correct"].mean((0, 2, 3)),
        "patch_probability": found["patch_probability"].mean((0, 2, 3)),
        "chance": 1 / logits.shape[-1],
    }
    heading, titles = f"{model.name}: logit lens", _titles(model, sample)
    described = f"{heading}, {sample.described}"
    plots.save_lens(folder / "layers.png", described, layers, summary, sample.labels is not None)
    shown = show(model.crop_images(sample.images[:NUM_SHOWN]), model.config.data)
    plots.save_lens_classes(
        folder / "classes.png",
        f"{heading} of the pooled token",
        layers,
        shown,
        titles,
        flat[:NUM_SHOWN],
        model.class_names,
    )
    chosen = "predicted class" if sample.labels is None else "image's class"
    plots.save_heat_maps(
        folder / "patches.png",
        f"{heading} of each patch: probability of the {chosen}",
        shown,
        titles,
        found["patch_probability"][:NUM_SHOWN],
        layers,
        top=1.0,
    )
    classes = "predicted" if sample.labels is None else "labels"
    counts = {"images": len(sample.images), "split": sample.origin, "classes": classes}
    return counts | {"layers": layers} | summary


def _draw_token_norms(request, folder):
    model, sample = request.model, request.sample("token_norms")
    found, layers = analysis.token_norms(model, sample.images), analysis.layer_names(model)
    patches, count = found["patches"], len(sample.images)
    title = f"{model.name}: norms of patch tokens, {sample.described}"
    flat = patches.reshape(count, len(layers), -1)
    plots.save_token_norms(folder / "norms.png", title, layers, flat, found["threshold"])
    plots.save_heat_maps(
        folder / "maps.png",
        f"{model.name}: norms of patch tokens",
        show(model.crop_images(sample.images[:NUM_SHOWN]), model.config.data),
        _titles(model, sample),
        patches[:NUM_SHOWN],
        layers,
    )
    return {
        "images": count,
        "split": sample.origin,
        "layers": layers,
        "median": np.median(flat, (0, 2)),
        "maximum": flat.max((0, 2)),
        "threshold": found["threshold"],
        "outlier_fraction": float(found["outliers"].mean()),
    }


def _draw_similarity(request, folder, other_request=None):
    model, sample = request.model, request.sample("layer_similarity")
    other = other_request and other_request.model
    if len(sample.images) < 4:
        raise UserError(f"layer_similarity needs 4 images, not {len(sample.images)}")
    both = (model, other or model)
    # Each model reads the images itself: sizes and preprocessing may differ.
    own = other_request and other_request.sample("layer_similarity").images
    values = analysis.similarity(model, sample.images, other, other_images=own)
    names, layers = [one.name for one in both], [analysis.layer_names(one) for one in both]
    title = f"Similarity of layers, {sample.described}"
    path = folder / "similarity.png"
    plots.save_layer_similarity(path, title, (names[0], names[1]), (layers[0], layers[1]), values)
    counts = {"images": len(sample.images), "split": sample.origin}
    return counts | {"models": names, "layers": layers, "cka": values}


def _draw_probes(request, folder):
    model = request.model
    if not model.has_data:
        raise UserError(f"{model.name} has no dataset, whose labels the probes need")
    train = request.sample("probes", "train", 4)
    val, test = (request.sample("probes", split) for split in ("val", "test"))
    sets: Any = [(one.images, one.labels) for one in (train, val, test)]
    found, layers = analysis.probe_layers(model, *sets), analysis.layer_names(model)
    count = len(test.images)
    accuracy = float((model.predict(test.images).argmax(-1) == test.labels).mean())
    title = f"{model.name}: probes of {len(train.images)} training images, {test.described}"
    plots.save_probes(folder / "probes.png", title, layers, found, count, accuracy)
    counts = {"images": count, "training_images": len(train.images), "layers": layers}
    return counts | {"accuracy": accuracy, "probes": found}


DRAW: dict[str, Callable[[Request, pathlib.Path], dict]] = {
    "ablation": _draw_ablation,
    "logit_lens": _draw_logit_lens,
    "token_norms": _draw_token_norms,
    "layer_similarity": _draw_similarity,
    "probes": _draw_probes,
}
_WITHOUT_CLASSES = ("token_norms", "layer_similarity")
DEFAULT_COUNTS = {
    "ablation": 256,
    "logit_lens": 256,
    "token_norms": 256,
    "layer_similarity": 512,
    "probes": 1000,
}


def kinds_of(model: Model) -> list[str]:
    """List the keys of DRAW that a model has."""
    kinds = [*DRAW] if model.config.model.name == "vit" else ["layer_similarity", "probes"]
    return [kind for kind in kinds if model.class_names or kind in _WITHOUT_CLASSES]


def draw(request: Request, kind: str, folder: pathlib.Path) -> pathlib.Path:
    """Draw an analysis, a key of DRAW, into a subfolder with KIND.json; return the subfolder."""
    if kind in ("ablation", "logit_lens", "probes"):
        analysis.require_one_class(request.model, kind)
    return _write(lambda path: DRAW[kind](request, path), kind, folder / kind)


def draw_pair(request: Request, other: Request, folder: pathlib.Path) -> pathlib.Path:
    """Draw the similarity of the layers of two models into a folder; return the folder.

    Both requests are of the same images.
    """
    return _write(lambda path: _draw_similarity(request, path, other), "layer_similarity", folder)


def _write(draw_into, kind, folder):
    folder.mkdir(parents=True, exist_ok=True)
    found = _plain(draw_into(folder))
    write_atomically(folder / f"{kind}.json", json.dumps(found, indent=2) + "\n")
    return folder


def _plain(value):
    """Convert arrays within dicts and lists to lists for JSON, undefined numbers to None."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(one) for one in np.asarray(value, object).tolist()]
    return None if isinstance(value, float) and np.isnan(value) else value
