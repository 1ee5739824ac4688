"""Figures of a finished model: what it attends to, its positions, kernels and feature maps."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax import models, plots
from vit_jax.augment import center_crop, preprocess
from vit_jax.config import Config
from vit_jax.evaluation.classifier import Classifier
from vit_jax.evaluation.evaluate import softmax
from vit_jax.explain import attribution, scores
from vit_jax.explain.model import token_layout
from vit_jax.runtime.errors import UserError


def short(name: str) -> str:
    """Returns a name that has room beside a picture."""
    return name if len(name) <= 24 else name[:23] + "…"


class Viewer:
    """Looks into a model, however often its weights change, with one compiled program.

    Attributes:
      name: of the model, for people.
      config: resolved.
      class_names: of the classes.
      is_vit: whether the model is a ViT.
      grid: rows and columns of patches.
      has_cls: whether the first token is the class token.
    """

    def __init__(
        self, name: str, config: Config, model: nn.Module, class_names: Sequence[str]
    ) -> None:
        """Compiles nothing yet."""
        self.name, self.config, self.class_names = name, config, class_names
        self.is_vit = config.model.name == "vit"
        self.grid, self.has_cls = token_layout(config)

        @jax.jit
        def look(variables, images):
            inputs = preprocess(images, config)
            if self.is_vit:
                return models.attention_gradients(model, variables, inputs)
            return *model.apply(variables, inputs, capture=True), []

        self._look = look

    @classmethod
    def of(cls, classifier: Classifier) -> "Viewer":
        """Returns the viewer of a trained model."""
        return cls(
            classifier.name, classifier.config, classifier.make_model(), classifier.class_names
        )

    def see(self, variables: dict, images: np.ndarray, names: Sequence[str]) -> "Seen":
        """Returns what the model makes of some images.

        Args:
          variables: of the model.
          images: as stored, uint8 [b, side, side, channels].
          names: of each image: its class, or its file.
        """
        logits, inside, gradients = jax.device_get(self._look(variables, images))
        probabilities = softmax(logits)
        predictions = [
            f"→ {short(self.class_names[int(row.argmax())])} {100 * row.max():.0f} %"
            for row in probabilities
        ]
        data = self.config.data
        pictures = center_crop(jnp.asarray(images), data.image_size, data.eval_crop)
        attention = [np.maximum(a, 0) for a in inside.get("attention", ())]
        return Seen(
            name=self.name,
            config=self.config,
            params=variables["params"],
            grid=self.grid,
            has_cls=self.has_cls,
            pictures=np.asarray(pictures),
            names=list(names),
            predictions=predictions,
            inside=inside,
            attention=attention,
            gradients=gradients,
        )


@dataclasses.dataclass(frozen=True)
class Seen:
    """Some images, and what a model makes of them.

    Attributes:
      name: of the model, for people.
      config: resolved.
      params: of the model.
      grid: rows and columns of patches.
      has_cls: whether the first token is the class token.
      pictures: uint8 [b, size, size, channels], as the model sees them.
      names: of each image: its class, or its file.
      predictions: of each image: the predicted class with its probability.
      inside: the intermediates of the model's call with `capture`.
      attention: of each layer [b, h, n, n], negative differences as 0; [] without attention.
      gradients: of the predicted class's logit, as "attention" in `inside`; [] without attention.
    """

    name: str
    config: Config
    params: dict
    grid: tuple[int, int]
    has_cls: bool
    pictures: np.ndarray
    names: list[str]
    predictions: list[str]
    inside: dict
    attention: list[Any]
    gradients: list[Any]

    @property
    def titles(self) -> list[str]:
        """What each image is, and is taken for."""
        return [f"{short(n)}\n{p}" for n, p in zip(self.names, self.predictions, strict=True)]

    @property
    def what(self) -> str:
        """What the maps of a layer show, for people."""
        clipped = ", negative differences as 0" if "softmax_maps" in self.inside else ""
        if self.has_cls:
            return f"attention of the class token{clipped}"
        return f"attention that a patch gets, mean over all patches{clipped}"

    def relevance(self, maps) -> np.ndarray:
        """Returns `explain.patch_relevance` of maps [..., n, n]."""
        return np.asarray(attribution.patch_relevance(maps, self.grid, self.has_cls))


def draw_rollout(seen: Seen, folder: pathlib.Path) -> None:
    """Draws attention rollout and gradient rollout of every image."""
    columns = ["rollout", "gradient rollout"]
    maps = [
        attribution.explanation(
            name, seen.inside["attention"], seen.gradients, seen.grid, seen.has_cls
        )
        for name in columns
    ]
    plots.save_heat_maps(
        folder / "attention_rollout.png",
        f"{seen.name}: attention rollout, each map by its maximum",
        seen.pictures,
        seen.titles,
        np.stack([m / np.maximum(m.max((-2, -1), keepdims=True), 1e-12) for m in maps], 1),
        columns,
    )


def draw_last_layer(seen: Seen, folder: pathlib.Path) -> None:
    """Draws every head of the last layer, and their average; of differential attention its maps."""
    last = seen.attention[-1]  # [b, h, n, n]
    maps = seen.relevance(np.concatenate([last.mean(1, keepdims=True), last], 1))
    names = ["average", *(f"head {i}" for i in range(last.shape[1]))]
    title = f"{seen.name}: last layer, {seen.what}"
    path = folder / "last_layer.png"
    plots.save_heat_maps(path, title, seen.pictures, seen.titles, maps, names)
    if "softmax_maps" in seen.inside:
        pairs = seen.inside["softmax_maps"][-1].mean(1)  # [b, 2, n, n]
        three = np.concatenate([pairs, last.mean(1, keepdims=True)], 1)
        names = ["first softmax", "second softmax", "difference"]
        plots.save_heat_maps(
            folder / "differential_maps.png",
            f"{seen.name}: last layer, average over heads, negative differences as 0",
            seen.pictures,
            seen.titles,
            seen.relevance(three),
            names,
        )


def draw_all_layers(seen: Seen, folder: pathlib.Path) -> None:
    """Draws the heads' average of every layer."""
    maps = np.stack([a.mean(1) for a in seen.attention], 1)  # [b, layers, n, n]
    names = [f"layer {i}" for i in range(maps.shape[1])]
    title = f"{seen.name}: every layer, average over heads, {seen.what}"
    path = folder / "all_layers.png"
    plots.save_heat_maps(path, title, seen.pictures, seen.titles, seen.relevance(maps), names)
    distances = attribution.mean_attention_distance(
        seen.attention, seen.grid, seen.config.model.patch_size, seen.has_cls
    )
    path = folder / "attention_distance.png"
    plots.save_attention_distances(path, seen.name, np.asarray(distances))


def draw_positions(seen: Seen, folder: pathlib.Path) -> None:
    """Draws how alike the positions of patches are, where they are learned."""
    positions = seen.params["Transformer"]["posembed_input"]
    if "pos_embedding" in positions:
        table, has_cls = positions["pos_embedding"][0], seen.has_cls
    else:
        rows, columns = positions["row_embedding"], positions["column_embedding"]
        table, has_cls = (rows[:, None] + columns[None]).reshape(-1, rows.shape[-1]), False
    found = np.asarray(attribution.position_similarity(jnp.asarray(table), seen.grid, has_cls))
    plots.save_position_similarity(folder / "similarity.png", seen.name, found)


def draw_kernels(seen: Seen, folder: pathlib.Path) -> None:
    """Draws the patch embedding's principal components, or the kernels of the first convolution."""
    if seen.config.model.name == "vit":
        size, channels = seen.config.model.patch_size, seen.config.data.channels
        kernel = jnp.reshape(seen.params["embedding"]["kernel"], (size, size, channels, -1))
        count = min(28, kernel.shape[-1], size * size * channels)
        images, name = (
            attribution.patch_filters(kernel, count),
            "principal components of the patches",
        )
    else:
        images = attribution.filter_images(seen.params["conv1"]["kernel"])[:64]
        name = "kernels of the first convolution"
    plots.save_filters(folder / "first_layer.png", f"{seen.name}: {name}", np.asarray(images))


def draw_feature_maps(seen: Seen, folder: pathlib.Path) -> None:
    """Draws the channels that vary most, of the stem or embedding and of some layers, per image."""
    if seen.config.model.name == "vit":
        first = int(seen.has_cls)
        maps = {
            f"block {i - 1}" if i else "embedding": tokens[:, first:].reshape(
                len(tokens), *seen.grid, -1
            )
            for i, tokens in enumerate(seen.inside["tokens"])
        }
    else:
        maps = seen.inside["feature_maps"]
        maps = {"stem": maps["stem"]} | maps  # jit has sorted the names
    names = list(maps)
    chosen = sorted({round(i) for i in np.linspace(0, len(names) - 1, 6)})
    for i, title in enumerate(seen.titles):
        layers = {names[j]: np.asarray(maps[names[j]][i], np.float32) for j in chosen}
        path = folder / f"{i:02d}.png"
        heading = f"{seen.name}: {title}".replace("\n", " ")
        plots.save_feature_maps(path, heading, seen.pictures[i], layers)


DRAW: dict[str, Callable[[Seen, pathlib.Path], None]] = {
    "attention_rollout": draw_rollout,
    "last_layer_attention": draw_last_layer,
    "all_layers_attention": draw_all_layers,
    "positional_embeddings": draw_positions,
    "kernels": draw_kernels,
    "feature_maps": draw_feature_maps,
}


def kinds_of(config: Config) -> list[str]:
    """Returns the keys of DRAW that a model has."""
    if config.model.name != "vit":
        return ["kernels", "feature_maps"]
    learned = config.model.pos_embed.startswith("learned")
    return [kind for kind in DRAW if learned or kind != "positional_embeddings"]


def draw_figures(seen: Seen, kinds: Sequence[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws figures into a folder for each kind and returns those folders.

    Args:
      seen: the model and the images.
      kinds: of `kinds_of`.
      folder: of the figures.
    """
    made = [folder / kind for kind in kinds]
    for path in made:
        path.mkdir(parents=True, exist_ok=True)
        DRAW[path.name](seen, path)
    return made


def training_figures(seen: Seen) -> dict[str, np.ndarray]:
    """Returns the figures to follow during training, uint8 [height, width, 3] each.

    They are attention rollout and, where they are learned, the positions; of a ResNet its kernels.
    """
    kinds = [
        k for k in ("attention_rollout", "positional_embeddings") if k in kinds_of(seen.config)
    ]
    with tempfile.TemporaryDirectory() as folder:
        draw_figures(seen, kinds or ["kernels"], pathlib.Path(folder))
        paths = sorted(pathlib.Path(folder).rglob("*.png"))
        return {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in paths}


def explain_run(run: pathlib.Path, data, count: int, folder: pathlib.Path) -> None:
    """Draws the rollout of six test images of a finished run of a ViT, and scores explanations.

    Args:
      run: its folder.
      data: `config.data`, which says where the test images are now.
      count: of the test images to score; 0: nothing is drawn, and scores.json goes.
      folder: for the figures and, written last, scores.json.

    Raises:
      UserError: the run or the data cannot be read.
    """
    scores.remove(folder)
    if not count:
        return
    classifier = Classifier(run)
    images, names = classifier.random_images(count, data)
    folder.mkdir(parents=True, exist_ok=True)
    draw_rollout(Viewer.of(classifier).see(classifier.variables, images[:6], names[:6]), folder)
    draw_scores(classifier, images, folder, count)


def draw_scores(
    classifier: Classifier, images: np.ndarray, folder: pathlib.Path, asked: int = 0
) -> pathlib.Path:
    """Scores explanations of a ViT on stored images; draws curves, writes scores.json.

    Returns the folder, which is made if missing. `asked` images were wanted; 0: those given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = scores.score(classifier, images) | {"asked": asked or len(images)}
    plots.save_scores(folder / "scores.png", classifier.name, found)
    scores.write(folder / "scores.json", found)
    return folder


def draw_comparison(models_seen: Sequence[Seen], folder: pathlib.Path) -> None:
    """Draws, for every image, the attention of every layer of several models.

    Raises UserError if one has no attention.
    """
    for seen in models_seen:
        if not seen.attention:
            raise UserError(f"{seen.name} has no attention to compare")
    folder.mkdir(parents=True, exist_ok=True)
    layers = max(len(seen.attention) for seen in models_seen)
    first = models_seen[0]
    for i in range(len(first.pictures)):
        maps = []
        for seen in models_seen:
            of_image = np.stack([a[i].mean(0) for a in seen.attention])
            found = seen.relevance(of_image)
            maps.append([*found, *[None] * (layers - len(found))])
        plots.save_comparison(
            folder / f"{i:02d}.png",
            f"{first.names[i]}: {'; '.join(dict.fromkeys(s.what for s in models_seen))}; average "
            "over heads",
            [seen.pictures[i] for seen in models_seen],
            [f"{s.name}\n{s.predictions[i]}" for s in models_seen],
            maps,
        )
