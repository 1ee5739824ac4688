"""Figures of attention, positions, filters and features of a model.

Each function writes a PNG to `path`, with `title` above the figure.
"""

import contextlib
import pathlib
from collections.abc import Sequence

import matplotlib.cm
import matplotlib.colors
import matplotlib.figure
import matplotlib.style
import numpy as np

from vit_jax.plots.results import COLORS, HEAT, STYLES, hide_frame, make_figure, save


def _panels(rows, columns, size):
    figure = matplotlib.figure.Figure(
        figsize=(max(4.0, size * columns + 2.4), size * rows + 0.6), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        hide_frame(axis)
    return figure, axes


def dark_ground() -> contextlib.AbstractContextManager[None]:
    """Draw figures on a dark ground, for a report in dark mode."""
    return matplotlib.style.context("dark_background")


def _show(axis, image):
    axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)


def _label(axis, text, fontsize):
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=fontsize, labelpad=6)


def save_heat_maps(
    path: pathlib.Path,
    title: str,
    images: np.ndarray,
    names: Sequence[str],
    maps: np.ndarray,
    columns: Sequence[str],
    top: float | None = None,
) -> None:
    """Draw maps over images, a row for each image.

    All columns have one colour scale, or each has its own where one scale would hide a column.

    Args:
      path: of the PNG file.
      title: above the figure.
      images: uint8 [b, height, width, channels].
      names: of the rows.
      maps: [b, k, rows, columns], not negative.
      columns: k names.
      top: end of the only colour scale; None: the maximum.
    """
    _save_maps(path, title, images, names, maps, columns, 1.25, 8, top)


def save_comparison(
    path: pathlib.Path,
    title: str,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    maps: Sequence[np.ndarray],
) -> None:
    """Draw the maps of one image, a row for each model and a column for each block.

    Colour scales are those of `save_heat_maps`.

    Args:
      path: of the PNG file.
      title: above the figure.
      images: the image as each model sees it, uint8 [height, width, channels].
      names: of the models.
      maps: of each model, [blocks, rows, columns].
    """
    columns = [f"block {i + 1}" for i in range(max(map(len, maps)))]
    _save_maps(path, title, images, names, maps, columns, 1.0, 7)


def _save_maps(path, title, images, names, maps, columns, size, fontsize, top=None):
    figure, axes = _panels(len(names), len(columns) + 1, size)
    peaks = [max(float(row[j].max()) for row in maps if j < len(row)) for j in range(len(columns))]
    own = top is None and min(peaks) < max(peaks) / 4
    tops = peaks if own else [max(peaks) if top is None else top] * len(columns)
    scales = [matplotlib.colors.Normalize(0, max(1e-12, top)) for top in tops]
    for line, image, name, row in zip(axes, images, names, maps, strict=True):
        _show(line[0], image)
        _label(line[0], name, fontsize)
        for axis, heat, scale in zip(line[1:], row, scales, strict=False):
            # In half its contrast, so that black and white regions change a colour little.
            axis.imshow(image.mean(-1), cmap="gray", vmin=-128, vmax=383)
            height, width = image.shape[:2]
            axis.imshow(
                heat,
                cmap=HEAT,
                norm=scale,
                alpha=0.65,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="nearest",
            )
    tops = [f"\n0 to {peak:.2g}" * own for peak in peaks]
    heads = ["image", *(f"{name}{top}" for name, top in zip(columns, tops, strict=True))]
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head, fontsize=8)
    scale = matplotlib.colors.Normalize(0, 1) if own else scales[0]
    colors = matplotlib.cm.ScalarMappable(scale, HEAT)
    bar = figure.colorbar(colors, ax=axes, shrink=0.8, aspect=30, pad=0.01, alpha=0.65)
    bar.ax.set_facecolor("0.5")  # what lies below the maps, on average
    if own:
        bar.set_label("of the column's\nmaximum", fontsize=8)
    save(figure, path, title, size=10, dpi=110)


def save_position_similarity(path: pathlib.Path, title: str, cosines: np.ndarray) -> None:
    """Draw cosine similarities of position embeddings, [rows, columns, rows, columns]."""
    rows, columns = cosines.shape[:2]
    # One image of all maps, one cell apart: an axis for each of many patches takes minutes.
    tiles = np.pad(cosines, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    tiles = tiles.swapaxes(1, 2).reshape(rows * (rows + 1), columns * (columns + 1))
    size = max(6, 0.3 * max(rows, columns))
    figure, (axis,) = make_figure(size + 0.8, size)
    image = axis.imshow(tiles[:-1, :-1], cmap="RdBu_r", vmin=-1, vmax=1)
    x, y = np.meshgrid(np.arange(columns) * (columns + 2), np.arange(rows) * (rows + 2))
    axis.plot(x.ravel(), y.ravel(), ".", color="black", markersize=3)
    axis.set_axis_off()
    figure.colorbar(image, ax=axis, shrink=0.8, label="cosine similarity")
    save(
        figure,
        path,
        f"{title}: similarity of each patch's position embedding to all others",
        size=10,
        dpi=110,
    )


def save_attention_distances(path: pathlib.Path, title: str, distances: np.ndarray) -> None:
    """Draw the mean attention distance in pixels, [blocks, heads]; NaN: a head without one."""
    figure, (axis,) = make_figure(6, 4)
    num_blocks, heads = distances.shape
    distances = np.ma.masked_invalid(distances)
    blocks = np.arange(num_blocks) + 1
    axis.scatter(
        np.repeat(blocks, heads), distances.reshape(-1), s=22, color=COLORS[0], label="one head"
    )
    axis.plot(blocks, distances.mean(1), color=COLORS[1], label="mean over heads")
    axis.set_xticks(blocks if num_blocks <= 24 else blocks[3::4])
    axis.set_ylim(0, 1.05 * (float(distances.filled(0).max()) or 1))
    axis.set_xlabel("block")
    axis.set_ylabel("mean attention distance, pixels")
    axis.legend(frameon=False, fontsize="small")
    save(figure, path, f"{title}: mean attention distance of each head", dpi=110)


def save_filters(path: pathlib.Path, title: str, images: np.ndarray) -> None:
    """Draw filters [n, height, width, 3 or 1] in [0, 1]; 0.5 is a weight of zero."""
    columns = min(len(images), 14 if len(images) > 32 else 7)
    rows = -(-len(images) // columns)
    figure, axes = _panels(rows, columns, 0.7)
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    save(figure, path, title, size=10, dpi=110)


def save_feature_maps(
    path: pathlib.Path, title: str, image: np.ndarray, layers: dict[str, np.ndarray]
) -> None:
    """Draw the eight channels of each layer that vary most, {name: [rows, columns, c]}."""
    figure, axes = _panels(len(layers), 9, 1.0)
    for i, (name, maps) in enumerate(layers.items()):
        _show(axes[i, 0], image)
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
    figure, axes = make_figure(8.5, 5.6, 2, sharey=True)
    hints = {
        "deletion": ("lower is better", "removed"),
        "insertion": ("higher is better", "shown"),
    }
    *methods, chance = scores["methods"]
    looks = {name: (COLORS[i % 6], STYLES[i // 6]) for i, name in enumerate(methods)}
    looks[chance] = (COLORS[6], ":")
    for axis, (key, (better, done)) in zip(axes, hints.items(), strict=True):
        for name, values in scores["methods"].items():
            label, curve = f"{name}, area {values[key]['auc']:.3f}", values[key]["curve"]
            color, style = looks[name]
            axis.plot(scores["fractions"], curve, style, color=color, label=label, linewidth=1.8)
        axis.set_title(f"{key}: {better}", fontsize=10)
        axis.set_xlabel(f"fraction of patches {done}")
        axis.set_ylim(0, 1.02)
        axis.legend(
            frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.17)
        )
    axes[0].set_ylabel("probability of the predicted class")
    title = f"{title}: explanations scored on {scores['images']} images"
    save(figure, path, title, size=11, dpi=110)
