"""Figures of attention, positions, filters and features of a model.

Each function writes a PNG to `path`, with `title` above the figure.
"""

import pathlib
from collections.abc import Sequence

import matplotlib.colors
import matplotlib.figure
import numpy as np

from vit_jax.plots.results import COLORS, STYLES, hide_frame, make_figure, save

HEAT = "viridis"  # even steps look even, also in grey and to the colour-blind


def _panels(rows, columns, size, extra_height=0.6):
    figure = matplotlib.figure.Figure(
        figsize=(max(4.0, size * columns + 2.4), size * rows + extra_height), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        hide_frame(axis)
    return figure, axes


def _show(axis, picture):
    axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)


def _label(axis, text, fontsize):
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=fontsize, labelpad=6)


def save_heat_maps(
    path: pathlib.Path,
    title: str,
    pictures: np.ndarray,
    names: Sequence[str],
    maps: np.ndarray,
    columns: Sequence[str],
) -> None:
    """Draw maps over images, a row for each image, with one colour scale for all.

    Args:
      pictures: uint8 [b, height, width, channels].
      names: of the rows.
      maps: [b, k, rows, columns], not negative.
      columns: k names.
    """
    _save_maps(path, title, pictures, names, maps, columns, 1.25, 8)


def save_comparison(
    path: pathlib.Path,
    title: str,
    pictures: Sequence[np.ndarray],
    names: Sequence[str],
    maps: Sequence[np.ndarray],
) -> None:
    """Draw the maps of one image, a row for each model and a column for each layer.

    Args:
      pictures: the image as each model sees it, uint8 [height, width, channels].
      names: of the models.
      maps: of each model, [layers, rows, columns].
    """
    columns = [f"layer {i}" for i in range(max(map(len, maps)))]
    _save_maps(path, title, pictures, names, maps, columns, 1.0, 7)


def _save_maps(path, title, pictures, names, maps, columns, size, fontsize):
    figure, axes = _panels(len(names), len(columns) + 1, size)
    scale = matplotlib.colors.Normalize(0, max(1e-12, *(float(row.max()) for row in maps)))
    for line, picture, name, row in zip(axes, pictures, names, maps, strict=True):
        _show(line[0], picture)
        _label(line[0], name, fontsize)
        for axis, heat in zip(line[1:], row, strict=False):
            # In half its contrast, so that black and white parts change a colour little.
            axis.imshow(picture.mean(-1), cmap="gray", vmin=-128, vmax=383)
            height, width = picture.shape[:2]
            image = axis.imshow(
                heat,
                cmap=HEAT,
                norm=scale,
                alpha=0.65,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="nearest",
            )
    for axis, name in zip(axes[0], ["image", *columns], strict=True):
        axis.set_title(name, fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.ax.set_facecolor("0.5")  # what lies below the maps, on average
    save(figure, path, title, size=10, dpi=110)


def save_position_similarity(path: pathlib.Path, title: str, cosines: np.ndarray) -> None:
    """Draw the cosines [rows, columns, rows, columns] of each patch's position with all others."""
    rows, columns = cosines.shape[:2]
    size = max(0.3, 6 / max(rows, columns))
    figure, axes = _panels(rows, columns, size, 0.8)
    for i in range(rows):
        for j in range(columns):
            image = axes[i, j].imshow(cosines[i, j], cmap="RdBu_r", vmin=-1, vmax=1)
            axes[i, j].plot(j, i, ".", color="black", markersize=3)
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine similarity")
    save(figure, path, f"{title}: each patch's position and all others", size=10, dpi=110)


def save_attention_distances(path: pathlib.Path, title: str, distances: np.ndarray) -> None:
    """Draw the mean attention distance in pixels, [layers, heads]."""
    figure, (axis,) = make_figure(6, 4)
    layers, heads = distances.shape
    axis.scatter(np.repeat(np.arange(layers), heads), distances.reshape(-1), s=22, color=COLORS[0])
    axis.plot(range(layers), distances.mean(1), color=COLORS[1], label="mean of the heads")
    axis.set_xticks(range(layers))
    axis.set_ylim(0, 1.05 * (distances.max() or 1))
    axis.set_xlabel("layer")
    axis.set_ylabel("mean attention distance, pixels")
    axis.legend(frameon=False, fontsize="small")
    save(figure, path, f"{title}: how far each head looks", dpi=110)


def save_filters(path: pathlib.Path, title: str, images: np.ndarray) -> None:
    """Draw filters [n, height, width, 3 or 1] in [0, 1]; 0.5 stands for a weight of zero."""
    columns = min(len(images), 14 if len(images) > 32 else 7)
    rows = -(-len(images) // columns)
    figure, axes = _panels(rows, columns, 0.7)
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
    save(figure, path, title, size=10, dpi=110)


def save_feature_maps(
    path: pathlib.Path, title: str, picture: np.ndarray, layers: dict[str, np.ndarray]
) -> None:
    """Draw an image's eight most varying channels of each layer, {name: [rows, columns, c]}."""
    figure, axes = _panels(len(layers), 9, 1.0)
    for i, (name, maps) in enumerate(layers.items()):
        _show(axes[i, 0], picture)
        rows, columns, channels = maps.shape
        _label(axes[i, 0], f"{name}\n{rows}x{columns}x{channels}", 8)
        chosen = np.sort((-maps.std((0, 1))).argsort(kind="stable")[:8])
        for axis in axes[i, 1 + len(chosen) :]:
            axis.axis("off")
        for axis, channel in zip(axes[i, 1:], chosen, strict=False):
            axis.imshow(maps[..., channel], cmap=HEAT)
            axis.set_title(f"channel {channel}", fontsize=6, pad=2)
    save(figure, path, title, size=10, dpi=110)


def save_scores(path: pathlib.Path, title: str, scores: dict) -> None:
    """Draw the deletion and insertion curves of explanations, of `scores.score`."""
    figure, axes = make_figure(8.5, 4.2, 2, sharey=True)
    hints = {
        "deletion": ("the lower, the better", "removed"),
        "insertion": ("the higher, the better", "shown"),
    }
    for axis, (key, (better, done)) in zip(axes, hints.items(), strict=True):
        methods = zip(scores["methods"].items(), (*COLORS[:3], COLORS[6]), STYLES, strict=True)
        for (name, values), color, style in methods:
            label, curve = f"{name}, area {values[key]['auc']:.3f}", values[key]["curve"]
            axis.plot(scores["fractions"], curve, style, color=color, label=label, linewidth=1.8)
        axis.set_title(f"{key}: {better}", fontsize=10)
        axis.set_xlabel(f"fraction of patches {done}")
        axis.set_ylim(0, 1.02)
        axis.legend(frameon=False, fontsize="small")
    axes[0].set_ylabel("probability of the predicted class")
    title = f"{title}: explanations scored on {scores['images']} images"
    save(figure, path, title, size=11, dpi=110)
