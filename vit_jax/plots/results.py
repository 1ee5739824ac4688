"""Figures of the metrics of runs and sweeps, and of images.

Each function writes a PNG to `path`, with `title` above the figure.
"""

import pathlib
import textwrap
from typing import BinaryIO

import matplotlib.figure
import matplotlib.ticker
import numpy as np

from vit_jax.runtime.files import naming_file

# Okabe & Ito 2008: told apart with any common form of colour-blindness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")


def short(name: str, length: int = 24) -> str:
    """Truncate a name to at most `length` characters."""
    return name if len(name) <= length else name[: length - 1] + "…"


def hide_frame(axis) -> None:
    """Remove ticks and spines."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def make_figure(width: float, height: float, columns: int = 1, **options) -> tuple:
    """Make a figure with a row of `columns` axes that have a light horizontal grid."""
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def save(
    figure,
    file: pathlib.Path | BinaryIO,
    title: str | None = None,
    size: float = 12,
    dpi: int = 120,
    **options,
) -> None:
    """Write a figure as PNG, its title in as many lines as the width requires."""
    if title:
        letters = int(72 * figure.get_figwidth() / (0.6 * size))  # wide ones, in points
        figure.suptitle(textwrap.fill(title, letters), fontsize=size)
    with naming_file(file):
        figure.savefig(file, dpi=dpi, **options)


def save_curves(path: pathlib.Path, title: str, runs: dict[str, list[dict]]) -> None:
    """Draw loss and accuracy over epochs: validation as marked lines, training thin.

    `runs` is {name for the legend, "" for a single run: rows of metrics.jsonl}.
    """
    figure, axes = make_figure(11, 4.2, 2)
    for axis, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        _draw_curves(axis, quantity, runs)
    if axes[0].lines:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    save(figure, path, title)


def save_optimization(path: pathlib.Path, title: str, rows: list[dict]) -> None:
    """Draw the learning rate and the norm of the gradient over epochs, of metrics.jsonl."""
    figure, axes = make_figure(11, 4.2, 2)
    keys = {"train/learning_rate": "learning rate", "train/grad_norm": "norm of the gradient"}
    for axis, (key, label) in zip(axes, keys.items(), strict=True):
        points = [(row["epoch"], row[key]) for row in rows if key in row]
        if points:
            axis.plot(*zip(*points, strict=True), color=COLORS[0], linewidth=1.8)
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.set_ylim(0, None)
    save(figure, path, title)


def save_narrow_curves(file: BinaryIO, quantity: str, runs: dict[str, list[dict]]) -> None:
    """Draw the "loss" or "accuracy" of `save_curves`, narrow enough to be read on a telephone.

    The legend, below the axes, names the validation lines.
    """
    marked = sum(any(f"val/{quantity}" in row for row in rows) for rows in runs.values())
    columns = 2 if max(map(len, runs)) <= 24 else 1
    figure, (axis,) = make_figure(5.6, 3.8 + 0.2 * -(-marked // columns))
    _draw_curves(axis, quantity, runs)
    lines = [line for line in axis.lines if line.get_marker() == "o"]
    names = [str(line.get_label()).removesuffix(", val") for line in lines]
    if lines:
        options = dict(loc="outside lower center", frameon=False, fontsize="small")
        figure.legend(lines, names, ncols=columns, **options)
    save(figure, file, dpi=160)


def _draw_curves(axis, quantity, runs):
    for i, (name, rows) in enumerate(runs.items()):
        color, style = COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)]
        for part, options in (
            ("train", dict(linewidth=1.0, alpha=0.55)),
            ("val", dict(linewidth=1.8, marker="o", markersize=3.5)),
        ):
            points = [(r["epoch"], r[k]) for r in rows if (k := f"{part}/{quantity}") in r]
            if points:
                label = ", ".join(filter(None, (name, part)))
                axis.plot(*zip(*points, strict=True), style, color=color, label=label, **options)
    axis.set_xlabel("epoch")
    axis.set_ylabel(quantity)
    if quantity == "accuracy":
        axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))


def save_kernel_magnitudes(path: pathlib.Path, title: str, magnitudes: dict) -> None:
    """Draw {"before" | "after" training: {layer: {"mean_abs", "l2"}}} of every layer's kernel."""
    names = list(magnitudes["after"])
    figure, axes = make_figure(11, max(3.5, 1.4 + 0.24 * len(names)), 2)
    places = range(len(names))
    for axis, key, label in zip(axes, ("mean_abs", "l2"), ("mean |w|", "L2 norm"), strict=True):
        before, after = (
            [magnitudes[when][name][key] for name in names] for when in ("before", "after")
        )
        axis.hlines(places, before, after, color="#999999", linewidth=1.5, zorder=1)
        axis.scatter(before, places, s=26, color=COLORS[4], marker="s", label="before training")
        axis.scatter(after, places, s=30, color=COLORS[0], label="after training")
        axis.set_xlabel(label)
        axis.set_yticks(places, names if axis is axes[0] else [], fontsize="small")
        axis.set_ylim(len(names) - 0.5, -0.5)  # the input's layer on top
        axis.set_xlim(0, None)
        axis.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes[1].legend(frameon=False, fontsize="small")
    save(figure, path, title)


def save_confusion(
    path: pathlib.Path, title: str, confusion: np.ndarray, class_names: list[str]
) -> None:
    """Draw a confusion matrix, counts [c, c] whose rows are the true classes, in percent of these.

    Up to 25 classes, the percentages are written in the cells.
    """
    count = len(class_names)
    shares = 100 * confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    numbers = count <= 25
    side = max(4.0, 1.8 + (0.52 if numbers else 0.135) * count)
    font = 8 if numbers else 6
    figure = matplotlib.figure.Figure(figsize=(side + 1.2, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    names = [short(name) for name in class_names]
    axis.set_xticks(range(count), names, rotation=90, fontsize=font)
    axis.set_yticks(range(count), names, fontsize=font)
    if numbers:
        for (row, column), share in np.ndenumerate(shares):
            if confusion[row, column]:
                color = "white" if share > 55 else "black"
                text = axis.text(column, row, f"{share:.0f}", ha="center", va="center")
                text.set(color=color, fontsize=8)
    else:  # lines to follow from a cell to its names
        axis.set_xticks(np.arange(0, count + 1, 5) - 0.5, minor=True)
        axis.set_yticks(np.arange(0, count + 1, 5) - 0.5, minor=True)
        axis.grid(which="minor", color="#cccccc", linewidth=0.5)
        axis.tick_params(which="minor", length=0)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    figure.colorbar(image, shrink=0.6, label="% of the true class")
    save(figure, path, title)


def save_prediction(
    path: pathlib.Path, title: str, image: np.ndarray, probabilities: dict[str, float]
) -> None:
    """Draw an image, uint8 [height, width, 3 or 1], next to bars of {class: probability}."""
    figure = matplotlib.figure.Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    left.imshow(image, cmap="gray", vmin=0, vmax=255)
    left.axis("off")
    names = [short(name, 28) for name in probabilities]
    places, shares = range(len(names)), [100 * value for value in probabilities.values()]
    right.barh(places, shares, color=COLORS[0], alpha=0.75)
    right.set_yticks(places, names)
    for place, share in zip(places, shares, strict=True):
        text = f"{share:.1f}"
        right.annotate(text, (share, place), (4, 0), textcoords="offset points", va="center")
    right.set_xlim(0, 112)
    right.set_xticks(range(0, 101, 25))
    right.invert_yaxis()
    right.spines[["top", "right"]].set_visible(False)
    right.set_xlabel("probability, %")
    save(figure, path, title)


def save_bars(path: pathlib.Path | BinaryIO, title: str, rows: list[dict]) -> None:
    """Draw the mean test accuracy of rows of results.json, with std and each seed."""
    figure, (axis,) = make_figure(max(4.5, 1.5 + 1.1 * len(rows)), 4)
    names = [row["variant"] for row in rows]
    tests = [row["test_accuracy"] for row in rows]
    axis.bar(names, [t["mean"] for t in tests], width=0.6, color=COLORS[0], alpha=0.75)
    for i, test in enumerate(tests):
        if test["std"] is not None:
            axis.errorbar(i, test["mean"], test["std"], color="black", capsize=6, linewidth=1.5)
        axis.scatter([i] * len(test["values"]), test["values"], s=18, color=COLORS[1], zorder=3)
        spread = "" if test["std"] is None else f" ± {100 * test['std']:.1f}"
        top = max([test["mean"] + (test["std"] or 0), *test["values"]])
        text = f"{100 * test['mean']:.1f}{spread}"
        axis.annotate(text, (i, top), (0, 5), textcoords="offset points", ha="center")
    low = min(min(test["values"]) for test in tests)
    cut = low > 0.5  # else differences of a few points could not be seen
    axis.margins(y=0.12)
    axis.set_ylim(0.9 * low if cut else 0, None)
    axis.set_yticks([tick for tick in axis.get_yticks() if axis.get_ylim()[0] <= tick <= 1.001])
    axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axis.set_ylabel("test accuracy (axis does not begin at 0)" if cut else "test accuracy")
    axis.set_title(title)
    if len(names) > 4:
        axis.tick_params(axis="x", rotation=30)
    save(figure, path, dpi=120)


def save_contact_sheet(path: pathlib.Path, names: list[str], groups: dict[str, np.ndarray]) -> None:
    """Draw named rows of images in titled groups of columns.

    `groups` is {title: uint8 [rows, columns, height, width, 1 or 3]}.
    """
    cell = 0.85  # inches of an image's side
    names = [short(name) for name in names]
    columns = [images.shape[1] for images in groups.values()]
    room = max(1.2, 0.4 + 0.1 * max(map(len, names)))
    size = (room + cell * sum(columns) + 0.1 * len(groups), 0.5 + cell * len(names))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(groups), width_ratios=columns, squeeze=False)[0]
    for axis, (title, images) in zip(axes, groups.items(), strict=True):
        rows, across, height, width, channels = images.shape
        gap = -(-height // 16)
        sides = ((0, 0), (0, 0), (gap, gap), (gap, gap), (0, 0))
        tiles = np.pad(images, sides, constant_values=255).swapaxes(1, 2)
        step = height + 2 * gap
        sheet = tiles.reshape(rows * step, across * (width + 2 * gap), channels)
        axis.imshow(np.broadcast_to(sheet, (*sheet.shape[:2], 3)), interpolation="nearest")
        axis.set_title(title, fontsize=11)
        hide_frame(axis)
    first = axes[0].images[0].get_array().shape[0] / len(names)
    axes[0].set_yticks([(i + 0.5) * first for i in range(len(names))], names, fontsize=11)
    axes[0].tick_params(axis="y", length=0)
    save(figure, path, bbox_inches="tight", pad_inches=0.1)
