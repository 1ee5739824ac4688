"""Figures of a finished model: what it attends to, its positions, kernels and feature maps."""

import dataclasses
import functools
import json
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax import models, plots
from vit_jax.augment import evaluation_crop, preprocess
from vit_jax.config import Config
from vit_jax.data.bands import show
from vit_jax.evaluation.labels import probabilities
from vit_jax.explanation import attribution, scores
from vit_jax.explanation.methods import METHODS, attention_relevance, has_relevance, token_layout
from vit_jax.explanation.model import Model, Target
from vit_jax.plots.results import short
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import empty_folder, naming_file, read_json, write_atomically


class Viewer:
    """Compute a model's intermediates with one compiled program, for any weights."""

    def __init__(self, name: str, config: Config, model: Any, class_names: Sequence[str]):
        self.name, self.config, self.class_names = name, config, class_names
        self.grid, self.has_cls, self.registers = self.layout = token_layout(config)

        @jax.jit
        def look(variables, images, classes):
            inputs = preprocess(images, config)
            if config.model.name == "vit" and class_names:
                return models.attention_gradients(model, variables, inputs, classes)
            return *model.apply(variables, inputs, capture=True), []

        self._look = look

    @classmethod
    def of(cls, model: Model) -> "Viewer":
        """Make the viewer of a trained model."""
        return cls(model.name, model.config, model.make_model(), model.class_names)

    def see(
        self, variables: dict, images: np.ndarray, names: Sequence[str], target: int | None = None
    ) -> "Seen":
        """Apply the model to named images as stored, uint8 [b, side, side, c].

        `target` is the class to explain; None: the predicted class of each image.
        """
        found, size = [], 8  # images at a time: all attention maps of a large ViT take much memory
        for some in np.split(images, range(size, len(images), size)):
            classes = None if target is None else np.full(len(some), target)
            found.append(jax.device_get(self._look(variables, some, classes)))
        logits, inside, gradients = jax.tree.map(lambda *parts: np.concatenate(parts), *found)

        def describe(row, label: int):
            return f"{short(self.class_names[label])} {100 * row[label]:.0f} %"

        rows = probabilities(logits, self.config.data.multi_label) if self.class_names else []
        explained = "" if target is None else self.class_names[target]
        predictions = [f"→ {describe(row, int(row.argmax()))}" for row in rows]
        if target is not None:
            pairs = zip(predictions, rows, strict=True)
            predictions = [f"{one}\n{describe(row, target)}" for one, row in pairs]
        predictions = predictions or [""] * len(images)
        data, params = self.config.data, variables["params"]
        images = show(np.asarray(evaluation_crop(jnp.asarray(images), data)), data)
        return Seen(self, params, images, list(names), predictions, inside, gradients, explained)


@dataclasses.dataclass(frozen=True)
class Seen:
    """Images, and a model's intermediates for them.

    Attributes:
      viewer: of the model.
      params: of the model.
      images: uint8 [b, size, size, channels], as the model sees them; of bands, three.
      names: class or file name of each image.
      predictions: predicted class of each image, with its probability, and that of the target; ""
        without a head.
      inside: intermediates of the model, called with `capture`.
      gradients: of the logit of the target or the predicted class, as "attention" in `inside`; []
        without attention or a head.
      target: name of the class to explain; "": the predicted class of each image.
    """

    viewer: Viewer
    params: dict
    images: np.ndarray
    names: list[str]
    predictions: list[str]
    inside: dict
    gradients: list[Any]
    target: str

    @functools.cached_property
    def attention(self) -> list[Any]:
        """Weights [b, h, n, n] of each layer, negative differences as 0; [] without attention."""
        return [np.maximum(a, 0) for a in self.inside.get("attention", ())]

    @property
    def titles(self) -> list[str]:
        """Name and prediction of each image."""
        pairs = zip(self.names, self.predictions, strict=True)
        return [f"{short(name)}\n{prediction}".rstrip() for name, prediction in pairs]

    @property
    def what(self) -> str:
        """Description of a block's maps, for titles."""
        mean = "attention to each patch, mean over all patches"
        text = "attention of the class token" if self.viewer.has_cls else mean
        return text + ", negative differences as 0" * ("softmax_maps" in self.inside)

    def relevance(self, maps) -> np.ndarray:
        """Compute `attribution.patch_relevance` of maps [..., n, n]."""
        return np.asarray(attribution.patch_relevance(maps, *self.viewer.layout))

    def save_heat_maps(
        self, path: pathlib.Path, title: str, maps: np.ndarray, columns: Sequence[str]
    ) -> None:
        """Draw maps [b, columns, rows of patches, columns of patches] over every image."""
        title = f"{self.viewer.name}: {title}"
        plots.save_heat_maps(path, title, self.images, self.titles, maps, columns)


def _draw_rollout(seen, folder, file="attention_rollout.png"):
    """Draw attention rollout and, with a head, gradient rollout of every image."""
    attention, viewer, columns = seen.inside["attention"], seen.viewer, []
    names = ["rollout", "gradient rollout"] if seen.gradients else ["rollout"]
    for name in names:
        maps = np.asarray(attention_relevance(name, attention, seen.gradients, viewer.config))
        columns.append(maps / np.maximum(maps.max((-2, -1), keepdims=True), 1e-12))
    if seen.target:
        names[1] += f"\nof {short(seen.target)}"
    title = "attention rollout, each map divided by its maximum"
    seen.save_heat_maps(folder / file, title, np.stack(columns, 1), names)


def _draw_last_layer(seen, folder):
    """Draw the heads of the last block and their mean; for differential attention both maps."""
    last = seen.attention[-1]  # [b, h, n, n]
    average = last.mean(1, keepdims=True)
    maps = seen.relevance(np.concatenate([average, last], 1))
    names = ["mean", *(f"head {i + 1}" for i in range(last.shape[1]))]
    block = f"block {len(seen.attention)}, the last"
    seen.save_heat_maps(folder / "last_layer.png", f"{block}: {seen.what}", maps, names)
    if "softmax_maps" in seen.inside:
        pairs = seen.inside["softmax_maps"][-1].mean(1)  # [b, 2, n, n]
        maps = seen.relevance(np.concatenate([pairs, average], 1))
        names = ["first softmax", "second softmax", "difference"]
        title = f"{block}: mean over heads, negative differences as 0"
        seen.save_heat_maps(folder / "differential_maps.png", title, maps, names)


def _draw_all_layers(seen, folder):
    """Draw the mean over heads of every block, and the mean attention distances."""
    maps = np.stack([a.mean(1) for a in seen.attention], 1)  # [b, blocks, n, n]
    names = [f"block {i + 1}" for i in range(maps.shape[1])]
    title = f"every block, mean over heads: {seen.what}"
    seen.save_heat_maps(folder / "all_layers.png", title, seen.relevance(maps), names)
    viewer = seen.viewer
    size = viewer.config.model.patch_size
    distances = attribution.mean_attention_distance(
        seen.attention, viewer.grid, size, viewer.has_cls, viewer.registers
    )
    path = folder / "attention_distance.png"
    plots.save_attention_distances(path, viewer.name, np.asarray(distances))


def _draw_positions(seen, folder):
    """Draw the cosine similarities of learned position embeddings."""
    positions, viewer = seen.params["Transformer"]["posembed_input"], seen.viewer
    if "pos_embedding" in positions:
        has_cls = models.has_cls(viewer.config.model)
        table = positions["pos_embedding"][0]
    else:
        rows, columns = positions["row_embedding"], positions["column_embedding"]
        table, has_cls = (rows[:, None] + columns[None]).reshape(-1, rows.shape[-1]), False
    found = attribution.position_similarity(jnp.asarray(table), viewer.grid, has_cls)
    plots.save_position_similarity(folder / "similarity.png", viewer.name, np.asarray(found))


def _draw_kernels(seen, folder):
    """Draw the patch embedding's principal components, or the kernels of the first convolution."""
    config = seen.viewer.config
    if config.model.name == "vit" and config.model.patchify != "conv_stem":
        size, channels = config.model.patch_size, config.data.channels
        kernel = seen.params["embedding"]["kernel"]
        kernel = jnp.reshape(kernel, (size, size, -1, kernel.shape[-1]))
        kernel = kernel[:, :, :channels]  # without those of shifted copies
        count = min(28, kernel.shape[-1], size * size * channels)
        images = attribution.patch_filters(kernel, count)
        name = "principal components of the patch embedding"
    else:
        is_vit = config.model.name == "vit"
        kernel = (seen.params["embedding"]["conv_0"] if is_vit else seen.params["conv1"])["kernel"]
        images = attribution.filter_images(kernel)[:64]
        name = "kernels of the first convolution"
    title = f"{seen.viewer.name}: {name}{_describe_noise(attribution.smoothness(kernel))}"
    images = show(np.asarray(images), config.data)
    plots.save_filters(folder / "first_layer.png", title, images)


def _describe_noise(correlation):
    """Describe `attribution.smoothness` for a title; "" if it is nan."""
    if np.isnan(correlation):
        return ""
    noise = "Mostly noise: neighbouring weights are hardly correlated"
    text = noise if correlation < 0.2 else "Neighbouring weights are correlated"
    return f". {text} (r\u00a0=\u00a0{correlation:.2f})"


def _draw_feature_maps(seen, folder):
    """Draw the channels that vary most, of the stem or embedding and of some blocks."""
    maps, viewer = {}, seen.viewer
    if viewer.config.model.name == "vit":
        for i, tokens in enumerate(seen.inside["tokens"]):
            first = int(viewer.has_cls) + viewer.registers
            patches = tokens[:, first:].reshape(len(tokens), *viewer.grid, -1)
            maps[f"block {i}" if i else "embedding"] = patches
    else:
        maps = seen.inside["feature_maps"]
        maps = {"stem": maps["stem"]} | maps  # jit has sorted the names
    names = list(maps)
    chosen = sorted({round(i) for i in np.linspace(0, len(names) - 1, 6)})
    for i, title in enumerate(seen.titles):
        layers = {names[j]: np.asarray(maps[names[j]][i], np.float32) for j in chosen}
        heading = f"{viewer.name}: {title}".replace("\n", " ")
        plots.save_feature_maps(folder / f"{i:02d}.png", heading, seen.images[i], layers)


DRAW: dict[str, Callable[[Seen, pathlib.Path], None]] = {
    "attention_rollout": _draw_rollout,
    "last_layer_attention": _draw_last_layer,
    "all_layers_attention": _draw_all_layers,
    "positional_embeddings": _draw_positions,
    "kernels": _draw_kernels,
    "feature_maps": _draw_feature_maps,
}


def kinds_of(config: Config) -> list[str]:
    """List the keys of DRAW that a model has."""
    if config.model.name != "vit":
        return ["kernels", "feature_maps"]
    lacking = () if config.model.pos_embed.startswith("learned") else ("positional_embeddings",)
    if not has_relevance(config):
        lacking += ("attention_rollout", "last_layer_attention", "all_layers_attention")
    return [kind for kind in DRAW if kind not in lacking]


def draw_figures(seen: Seen, kinds: Sequence[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw each of `kinds`, keys of DRAW, into a subfolder, and return the subfolders."""
    made = [folder / kind for kind in kinds]
    for path in made:
        path.mkdir(parents=True, exist_ok=True)
        DRAW[path.name](seen, path)
    return made


def training_figures(seen: Seen) -> dict[str, np.ndarray]:
    """Draw rollout and learned positions, or a ResNet's kernels: {name: uint8 [h, w, 3]}."""
    followed = ("attention_rollout", "positional_embeddings")
    kinds = [kind for kind in followed if kind in kinds_of(seen.viewer.config)]
    with tempfile.TemporaryDirectory() as folder:
        draw_figures(seen, kinds or ["kernels"], pathlib.Path(folder))
        paths = sorted(pathlib.Path(folder).rglob("*.png"))
        return {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in paths}


def draw_explanations(
    model: Model,
    images: np.ndarray,
    names: Sequence[str],
    methods: Sequence[str],
    target: Target | None,
    folder: pathlib.Path,
) -> pathlib.Path:
    """Draw the maps of several methods next to each other over stored images; return the folder.

    Each map is divided by its maximum; negative entries, which count against the class, become 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = model.predict(images)
    targets = rows.argmax(1) if target is None else model.class_indices(target, len(images))
    maps, columns = [], []
    for key in methods:
        given = {"target": targets} if METHODS[key].of_class else {}
        found = np.maximum(model.explain(images, key, **given), 0)
        maps.append(found / np.maximum(found.max((1, 2), keepdims=True), 1e-12))
        columns.append(METHODS[key].name.replace(" ", "\n", 1))
    titles = [
        f"{short(name)}\n{short(model.class_names[label])} {100 * row[label]:.0f} %"
        for name, row, label in zip(names, rows, targets, strict=True)
    ]
    shown = show(model.crop_images(images), model.config.data)
    title = f"{model.name}: explanations of the class below each name, each map divided by its "
    title += "maximum, negative entries as 0"
    path = folder / "explanations.png"
    plots.save_heat_maps(path, title, shown, titles, np.stack(maps, 1), columns)
    return folder


def explain_run(run: pathlib.Path, data, count: int, folder: pathlib.Path) -> None:
    """Draw the rollout of six test images of a ViT's finished run, and score explanations.

    Args:
      run: its folder.
      data: `config.data`, with the present place of the test images.
      count: of the test images to score; 0: only remove earlier figures and scores.
      folder: for the figures and, written last, scores.json.
    """
    empty_folder(folder)
    if not count:
        return
    model = Model(run)
    images, names = model.random_images(count, data)
    folder.mkdir(parents=True, exist_ok=True)
    seen = Viewer.of(model).see(model.variables, images[:6], names[:6])
    _draw_rollout(seen, folder)
    with plots.dark_ground():
        _draw_rollout(seen, folder, "attention_rollout_dark.png")
    draw_scores(model, images, folder, count)


def save_mistakes(run: pathlib.Path, data) -> bool:
    """Write the images of a run's most confident mistakes; return whether any was missing.

    They are figures/mistakes/00.png, ... in the order of "mistakes" in test_report.json, at most
    128 pixels wide.

    Args:
      run: its folder.
      data: `config.data`, with the present place of the test images.

    Raises:
      UserError: the test images are not there, or not those of the run.
    """
    report, folder = read_json(run / "test_report.json"), run / "figures" / "mistakes"
    mistakes = report.get("mistakes", [])  # missing in reports of earlier versions
    paths = [folder / f"{i:02d}.png" for i in range(len(mistakes))]
    if all(path.exists() for path in paths):
        return False
    model = Model(run)
    images, names = model.test_images([mistake["index"] for mistake in mistakes], data)
    if names != [list(report["classes"])[mistake["label"]] for mistake in mistakes]:
        raise UserError(f"the test images are not those of {run}")
    images = show(model.crop_images(images), data)
    folder.mkdir(parents=True, exist_ok=True)
    for path, image in zip(paths, images, strict=True):
        small = Image.fromarray(image.squeeze())
        small.thumbnail((128, 128))
        part = path.with_suffix(".part")  # a kill must not leave half an image
        with naming_file(path):
            small.save(part, "png")
        part.replace(path)
    return True


def draw_scores(
    model: Model, images: np.ndarray, folder: pathlib.Path, asked: int = 0
) -> pathlib.Path:
    """Score explanations of stored images; draw curves, write scores.json, return the folder.

    `asked` is the requested number of images; 0: as many as given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = scores.score(model, images) | {"asked": asked or len(images)}
    plots.save_scores(folder / "scores.png", model.name, found)
    write_atomically(folder / "scores.json", json.dumps(found, indent=2) + "\n")
    return folder


def draw_comparison(models_seen: Sequence[Seen], folder: pathlib.Path) -> None:
    """Draw the attention of every block of several models, image by image; raises UserError."""
    for seen in models_seen:
        if not seen.attention:
            raise UserError(f"{seen.viewer.name} has no attention to compare")
    folder.mkdir(parents=True, exist_ok=True)
    what = "; ".join(dict.fromkeys(seen.what for seen in models_seen))
    for i, name in enumerate(models_seen[0].names):
        plots.save_comparison(
            folder / f"{i:02d}.png",
            f"{name}: {what}; mean over heads",
            [seen.images[i] for seen in models_seen],
            [f"{seen.viewer.name}\n{seen.predictions[i]}".rstrip() for seen in models_seen],
            [
                seen.relevance(np.stack([a[i].mean(0) for a in seen.attention]))
                for seen in models_seen
            ],
        )
