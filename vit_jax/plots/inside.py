"""Figures of attention, positions, filters and features of a model.

Each function writes a PNG to `path`, with `title` above the figure.
"""

import pathlib
from collections.abc import Sequence

import matplotlib.colors
import matplotlib.figure
import numpy as np

from vit_jax.plots.results import COLORS, STYLES, save

HEAT = "viridis"  # even steps look even, also in grey and to the colour-blind


def _panels(rows, columns, size, extra_height=0.6):
    figure = matplotlib.figure.Figure(
        figsize=(max(4.0, size * columns + 2.4), size * rows + extra_height), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def _show(axis, picture):
    axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)


def _heat(axis, picture, heat, scale):
    """Draw a map over a picture, which stays visible in grey."""
    # In half its contrast, so that black and white parts change a colour little.
    axis.imshow(picture.mean(-1), cmap="gray", vmin=-128, vmax=383)
    height, width = picture.shape[:2]
    return axis.imshow(
        heat,
        cmap=HEAT,
        norm=scale,
        alpha=0.65,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )


def _heat_bar(figure, axes, image):
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.ax.set_facecolor("0.5")  # what lies below the maps, on average


def save_heat_maps(
    path: pathlib.Path,
    title: str,
    pictures: np.ndarray,
    names: Sequence[str],
    maps: np.ndarray,
    columns: Sequence[str],
) -> None:
    """Draw maps over pictures, a row for each picture, with one colour scale for all.

    Args:
      pictures: uint8 [b, height, width, channels].
      names: of the rows.
      maps: [b, k, rows, columns], not negative.
      columns: k names.
    """
    b, k = maps.shape[:2]
    figure, axes = _panels(b, k + 1, 1.25)
    scale = matplotlib.colors.Normalize(0, max(float(maps.max()), 1e-12))
    for i in range(b):
        _show(axes[i, 0], pictures[i])
        axes[i, 0].set_ylabel(names[i], rotation=0, ha="right", va="center", fontsize=8, labelpad=6)
        for j in range(k):
            image = _heat(axes[i, j + 1], pictures[i], maps[i, j], scale)
    for axis, name in zip(axes[0], ["image", *columns], strict=True):
        axis.set_title(name, fontsize=8)
    _heat_bar(figure, axes, image)
    save(figure, path, title, size=10, dpi=110)


def save_comparison(
    path: pathlib.Path,
    title: str,
    pictures: Sequence[np.ndarray],
    names: Sequence[str],
    maps: Sequence[Sequence[np.ndarray | None]],
) -> None:
    """Draw the maps of one image, a row for each model and a column for each layer.

    Args:
      pictures: the image as each model sees it, uint8 [height, width, channels].
      names: of the models.
      maps: of each model and layer, [rows, columns]; None where a model has no such layer.
    """
    figure, axes = _panels(len(names), len(maps[0]) + 1, 1.0)
    found = [heat for row in maps for heat in row if heat is not None]
    scale = matplotlib.colors.Normalize(0, max(float(heat.max()) for heat in found))
    for i, row in enumerate(maps):
        _show(axes[i, 0], pictures[i])
        axes[i, 0].set_ylabel(names[i], rotation=0, ha="right", va="center", fontsize=7, labelpad=6)
        for axis, heat in zip(axes[i, 1:], row, strict=True):
            if heat is not None:
                image = _heat(axis, pictures[i], heat, scale)
    for j, axis in enumerate(axes[0]):
        axis.set_title(f"layer {j - 1}" if j else "image", fontsize=8)
    _heat_bar(figure, axes, image)
    save(figure, path, title, size=10, dpi=110)


def save_position_similarity(path: pathlib.Path, title: str, cosines: np.ndarray) -> None:
    """Draws, at the place of each patch, the cosine of its position with all others.

    Args:
      cosines: [rows, columns, rows, columns].
    """
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
    """Draw the mean attention distance of each head of each layer.

    Args:
      distances: [layers, heads] in pixels.
    """
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    layers, heads = distances.shape
    axis.scatter(np.repeat(np.arange(layers), heads), distances.reshape(-1), s=22, color=COLORS[0])
    axis.plot(range(layers), distances.mean(1), color=COLORS[1], label="mean of the heads")
    axis.set_xticks(range(layers))
    axis.set_ylim(0, 1.05 * (distances.max() or 1))
    axis.set_xlabel("layer")
    axis.set_ylabel("mean attention distance, pixels")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.8)
    axis.legend(frameon=False, fontsize="small")
    save(figure, path, f"{title}: how far each head looks", dpi=110)


def save_filters(path: pathlib.Path, title: str, images: np.ndarray) -> None:
    """Draw filters as images.

    Args:
      images: [n, height, width, 3 or 1] in [0, 1]; 0.5 stands for a weight of zero.
    """
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
    """Draw the eight channels of each layer that vary most over the image.

    Args:
      picture: uint8 [height, width, channels].
      layers: name -> [rows, columns, channels].
    """
    figure, axes = _panels(len(layers), 9, 1.0)
    for i, (name, maps) in enumerate(layers.items()):
        _show(axes[i, 0], picture)
        rows, columns, channels = maps.shape
        axes[i, 0].set_ylabel(
            f"{name}\n{rows}x{columns}x{channels}",
            rotation=0,
            ha="right",
            va="center",
            fontsize=8,
            labelpad=6,
        )
        chosen = np.sort((-maps.std((0, 1))).argsort(kind="stable")[:8])
        for axis in axes[i, 1 + len(chosen) :]:
            axis.axis("off")
        for axis, channel in zip(axes[i, 1:], chosen, strict=False):
            axis.imshow(maps[..., channel], cmap=HEAT)
            axis.set_title(f"channel {channel}", fontsize=6, pad=2)
    save(figure, path, title, size=10, dpi=110)


def save_scores(path: pathlib.Path, title: str, scores: dict) -> None:
    """Draw the deletion and insertion curves of explanations.

    Args:
      scores: of `scores.score`.
    """
    figure = matplotlib.figure.Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    better = {"deletion": "the lower, the better", "insertion": "the higher, the better"}
    for axis, (key, hint) in zip(axes, better.items(), strict=True):
        methods = zip(scores["methods"].items(), (*COLORS[:3], COLORS[6]), STYLES, strict=True)
        for (name, values), color, style in methods:
            label = f"{name}, area {values[key]['auc']:.3f}"
            curve = values[key]["curve"]
            options = dict(color=color, label=label, linewidth=1.8)
            axis.plot(scores["fractions"], curve, style, **options)
        axis.set_title(f"{key}: {hint}", fontsize=10)
        axis.set_xlabel("fraction of patches " + {"deletion": "removed", "insertion": "shown"}[key])
        axis.set_ylim(0, 1.02)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.8)
        axis.legend(frameon=False, fontsize="small")
    axes[0].set_ylabel("probability of the predicted class")
    save(
        figure, path, f"{title}: explanations scored on {scores['images']} images", size=11, dpi=110
    )
