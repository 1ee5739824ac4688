"""Contents of explorer.html: attention, relevance maps and class probabilities per block."""

import base64
import collections
import io
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax.config import Config
from vit_jax.data.bands import show
from vit_jax.explanation.methods import METHODS, has_relevance, probabilities_of, token_layout
from vit_jax.explanation.model import Model
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.progress import Progress

LIMIT = 6_000_000  # bytes of the page
PAGE = 50_000  # bytes of it without contents
CLASSES = 10  # per image: the most probable ones
_CHUNK = 4  # images whose attention is in memory
# How the attention of patches is stored: of each head or of the mean over heads; and the rows and
# columns of patches whose attention is averaged. The first that fits into the page is used.
_STORAGE = (
    (True, (1, 1)),
    *((False, size) for size in ((1, 1), (1, 2), (2, 2), (4, 4), (8, 8))),
)


def collect(models: Sequence[Model], images: Sequence[Any], names: Sequence[str]) -> dict:
    """Compute the contents of the page of one or several models.

    Args:
      models: ViTs with a head.
      images: of each model, uint8 [n, side, side, c] or a list, as of `Classifier.read_images`.
      names: class or file name of each image.

    Returns:
      {"names": names, "runs": [one for each model]}, for JSON. Of a run, "seen" are the attention
      weights of the token that the head sees, packed [n, depth, heads, tokens]; "patches" those of
      patches, packed [n, depth, heads or 1, queries, tokens]; "maps" {method: packed [n, classes or
      1, patches]}; "classes" the names of the classes of each image; "lens" their probabilities
      after the embedding and after each block, and "top" the most probable class there.

    Raises:
      UserError: a model has no attention, or the images do not fit into the page.
    """
    for model in models:
        if model.config.model.name != "vit":
            raise UserError(
                f"{model.name} is a {model.config.model.name}, which has no attention to explore"
            )
        choose_storage(model.config, len(names), 0, len(models))  # before images are read
    pixels = [model.read_images(some) for model, some in zip(models, images, strict=True)]
    data_uris = [
        [_data_uri(show(image, model.config.data)) for image in model.crop_images(some)]
        for model, some in zip(models, pixels, strict=True)
    ]
    used = sum(len(uri) for some in data_uris for uri in some)
    runs = []
    for model, some, uris in zip(models, pixels, data_uris, strict=True):
        storage = choose_storage(model.config, len(names), used, len(models))
        runs.append(_collect_run(model, some, storage) | {"images": uris})
    return {"names": [_shorten(name) for name in names], "runs": runs}


def choose_storage(
    config: Config, count: int, image_bytes: int, runs: int = 1
) -> tuple[bool, tuple[int, int]]:
    """Choose how the attention of patches is stored, so that the page is at most LIMIT bytes.

    Args:
      config: of a ViT.
      count: number of images.
      image_bytes: of the images in the page, of all runs.
      runs: number of runs in the page.

    Returns:
      whether each head is stored, and the rows and columns of patches that are averaged.

    Raises:
      UserError: nothing fits.
    """
    budget = (LIMIT - PAGE - image_bytes) / runs
    for each_head, pooled in _STORAGE:
        size = stored_bytes(config, count, each_head, pooled)
        if size <= budget:
            return each_head, pooled
    most = int(count * budget / size)  # images of the same size
    hint = f"give at most {most}" if most > 0 else "the model has too many blocks, heads or patches"
    raise UserError(f"{count} images make a page of more than {LIMIT / 1e6:g} MB: {hint}")


def stored_bytes(config: Config, count: int, each_head: bool, pooled: tuple[int, int]) -> int:
    """Compute the bytes of a run in the page, without its images."""
    (rows, columns), has_cls, others = token_layout(config)
    depth, heads = config.model.depth, config.model.num_heads
    patches = rows * columns
    tokens = patches + has_cls + others
    queries = math.ceil(rows / pooled[0]) * math.ceil(columns / pooled[1])
    of_tokens = count * depth * (heads + queries * (heads if each_head else 1))
    of_patches = count * (CLASSES + 1)

    def encoded(number):
        return 4 * math.ceil(number / 3) + 8

    return (
        encoded(of_tokens * tokens)
        + encoded(of_patches * patches)
        + encoded(4 * (of_tokens + of_patches))
        + count * (250 * (CLASSES + 1) + (depth + 1) * (8 * CLASSES + 260))  # names, probabilities
    )


def _collect_run(model, images, storage):
    """Compute the part of one model; `images` are uint8 [n, side, side, c]."""
    grid, has_cls, others = token_layout(model.config)
    each_head, pooled = storage
    progress = Progress(f"{model.name}: explaining,", 0, 2 + CLASSES, True, "map")
    seen, patches = [], []
    for start in range(0, len(images), _CHUNK):
        attention = np.maximum(model.attention(images[start : start + _CHUNK]), 0)
        of_patches = attention[..., has_cls + others :, :]  # [b, depth, heads, patches, tokens]
        seen.append(attention[..., 0, :] if has_cls else of_patches.mean(-2))
        if not each_head:
            of_patches = of_patches.mean(2, keepdims=True)
        patches.append(_pool(of_patches, grid, pooled))
    seen, patches = np.concatenate(seen), np.concatenate(patches)
    progress.advance(1)
    lens = lens_probabilities(model, images)  # [n, depth + 1, classes]
    progress.advance(1)
    chosen = np.argsort(-lens[:, -1], kind="stable")[:, :CLASSES]  # [n, k]
    maps = _rollouts(model, images, chosen, progress)
    progress.close()
    names = _shorten_classes(model.class_names)
    return {
        "name": model.name,
        "grid": grid,
        "first": has_cls + others,
        "view": "class token" if has_cls else "mean of all patches",
        "cls": bool(has_cls),
        "depth": seen.shape[1],
        "heads": seen.shape[2],
        "each_head": each_head,
        "pooled": pooled,
        "pixelated": images.shape[1] < 64,
        "seen": pack(seen),
        "patches": pack(patches),
        "maps": {METHODS[name].name: pack(array) for name, array in maps.items()},
        "classes": [[names[i] for i in row] for row in chosen],
        "lens": [
            np.round(row[:, some].astype(float), 4).tolist()
            for row, some in zip(lens, chosen, strict=True)
        ],
        "top": [[[names[p.argmax()], round(float(p.max()), 4)] for p in row] for row in lens],
        "stored": _describe(storage, seen.shape[2]),
    }


def _rollouts(model, images, chosen, progress):
    """Compute {method: [n, classes or 1, patches]}; {} if the head sees something else."""
    if not has_relevance(model.config):
        return {}
    maps = {"rollout": model.explain(images, "rollout")[:, None]}
    by_class = []
    for targets in chosen.T:
        by_class.append(model.explain(images, "gradient_rollout", list(targets)))
        progress.advance(1)
    maps["gradient_rollout"] = np.stack(by_class, 1)
    return {name: array.reshape(*array.shape[:2], -1) for name, array in maps.items()}


def lens_probabilities(model: Model, images: Any) -> np.ndarray:
    """Compute class probabilities from the tokens after the embedding and after each block.

    The logit lens (nostalgebraist 2020): final norm, pooling and head, applied to the tokens of
    every depth. Returns float32 [n, depth + 1, classes]; the last ones are the prediction.
    """
    module: Any = model.make_model()

    def lens(variables, inputs):
        tokens = module.apply(variables, inputs, capture=True)[1]["tokens"]
        logits = [module.apply(variables, inputs, edit={"tokens": x}) for x in tokens]
        return probabilities_of(model.config)(jnp.stack(logits, 1))

    return model.apply("lens", lens, images, batch_size=_CHUNK)


def _pool(attention, grid, pooled):
    """Average attention [..., patches, tokens] over rectangles of queries of the size `pooled`."""
    array = attention.reshape(*attention.shape[:-2], *grid, attention.shape[-1])
    for axis, (length, size) in zip((-3, -2), zip(grid, pooled, strict=True), strict=True):
        starts = np.arange(0, length, size)
        counts = np.diff([*starts, length]).reshape(-1, *[1] * (-1 - axis))
        array = np.add.reduceat(array, starts, axis) / counts
    return array.reshape(*attention.shape[:-2], -1, attention.shape[-1])


def pack(array: np.ndarray) -> dict:
    """Quantise non-negative [..., k] to uint8, each row with its own scale, for JSON.

    Returns {"shape", "scales": base64 of float32, little-endian, "values": base64 of uint8}; a
    value is its uint8 times its row's scale, and off by at most 1/510 of the row's maximum.
    """
    scales = array.max(-1, keepdims=True).astype("<f4") / np.float32(255)
    values = np.rint(array / np.where(scales > 0, scales, 1)).clip(0, 255).astype(np.uint8)
    return {
        "shape": list(array.shape),
        "scales": base64.b64encode(scales.tobytes()).decode(),
        "values": base64.b64encode(values.tobytes()).decode(),
    }


def _data_uri(image):
    """Encode an image uint8 [side, side, c]: JPEG from 64 pixels on, else PNG."""
    kind, file = ("jpeg" if image.shape[0] >= 64 else "png"), io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _shorten(name):
    return name if len(name) <= 40 else f"{name[:39]}\u2026"


def _shorten_classes(names):
    """Shorten the names of classes, and number those that then are equal."""
    short = [_shorten(name) for name in names]
    counts = collections.Counter(short)
    return [f"{one} ({i})" if counts[one] > 1 else one for i, one in enumerate(short)]


def _describe(storage, heads):
    """Describe what is stored and what is left out."""
    each_head, (rows, columns) = storage
    text = "Attention of patches: "
    text += "every head" if each_head or heads == 1 else "mean over heads; single heads left out"
    if rows * columns > 1:
        text += f"; mean over rectangles of {rows} \u00d7 {columns} patches"
    return text + "."
