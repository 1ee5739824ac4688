"""Figures of the metrics of runs and sweeps, and of images.

Each function writes a PNG to `path`, with `title` above the figure.
"""

import pathlib
import re
import statistics
import textwrap
from typing import Any, BinaryIO, Literal

import matplotlib.figure
import matplotlib.lines
import matplotlib.patches
import matplotlib.ticker
import numpy as np

from vit_jax.plots.fonts import fonts_for
from vit_jax.runtime.files import naming_file

# Okabe & Ito 2008: distinct with any common form of colour-blindness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
HEAT = "viridis"  # perceptually uniform, also in grey and with colour-blindness


def short(name: str, length: int = 24) -> str:
    """Shorten a name to at most `length` characters, in the middle: names often share a start."""
    end = len(name) - (length - 1) // 2
    return name if len(name) <= length else f"{name[: length // 2]}…{name[end:]}"


def hide_frame(axis) -> None:
    """Remove ticks and spines."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def make_figure(width: float, height: float, columns: int = 1, rows: int = 1, **options) -> tuple:
    """Make a figure and a flat list of its axes, which have a light horizontal grid."""
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#888888", alpha=0.3, linewidth=0.8)  # on any ground
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
    with naming_file(file), fonts_for(figure):
        figure.savefig(file, dpi=dpi, **options)


QUANTITIES = {
    "accuracy": "accuracy",
    "map": "mAP",
    "loss": "loss",
    "learning_rate": "learning rate",
    "grad_norm": "norm of the gradient",
}
Axis = Literal["epochs", "minutes"]
Runs = dict[str, list[list[dict]]]  # name -> rows of metrics.jsonl of each seed
_PLAIN: dict[str, Any] = dict(linewidth=1.6)
_THIN: dict[str, Any] = dict(linewidth=1.0, alpha=0.65)
_THICK: dict[str, Any] = dict(linewidth=2.0, marker="o", markersize=3.5)


def save_curves(path: pathlib.Path, title: str, runs: Runs) -> None:
    """Draw QUANTITIES over epochs, with the mean and the range over seeds.

    A single run may have the name "".
    """
    figure, axes = make_figure(11, 7.2, 2, 2)
    several = any("val/map" in row for seeds in runs.values() for rows in seeds for row in rows)
    quantities = [name for name in QUANTITIES if name != ("accuracy" if several else "map")]
    for axis, quantity in zip(axes, quantities, strict=True):
        _draw_curves(axis, quantity, runs)
    handles = [_handle(*pair) for pair in _styles(runs).items() if pair[0]]
    handles += _line_handles([line for axis in axes[:2] for line in axis.lines], _has_bands(runs))
    if handles:
        figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize="small")
    save(figure, path, title)


def save_narrow_curves(
    file: pathlib.Path | BinaryIO, quantity: str, runs: Runs, over: Axis = "epochs"
) -> None:
    """Draw one of QUANTITIES as `save_curves` does, narrow enough to be read on a telephone.

    With `over` "minutes", x is the mean over the seeds of `wall_seconds`, compilation and
    evaluations included, of the epochs that all seeds have. Vectorised seeds share the elapsed time
    equally.
    """
    names = [""] if _shared(quantity, runs) else list(runs)
    columns = 2 if max(map(len, names)) <= 24 else 1
    figure, (axis,) = make_figure(5.6, 4.2 + 0.2 * -(-len(names) // columns))
    _draw_curves(axis, quantity, runs, over)
    handles = [_handle(*pair) for pair in _styles(runs).items() if pair[0] in names]
    if quantity in ("accuracy", "map", "loss"):
        handles += _line_handles(axis.lines, _has_bands(runs))
    if handles:
        options: dict[str, Any] = dict(loc="outside lower center", frameon=False, fontsize="small")
        figure.legend(handles=handles, ncols=columns, **options)
    save(figure, file, dpi=160)


def _styles(runs):
    """Choose color and line style of each name."""
    return {
        name: (COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)])
        for i, name in enumerate(runs)
    }


def _handle(name, style):
    return matplotlib.lines.Line2D([], [], color=style[0], linestyle=style[1], lw=2.0, label=name)


def _line_handles(lines, bands):
    """Make legend entries of the kinds of lines and of the bands."""
    kinds = {line.get_marker() == "o" for line in lines}
    gray: dict[str, Any] = dict(color="#666666")
    handles = []
    if True in kinds:
        handles.append(matplotlib.lines.Line2D([], [], label="validation", **gray, **_THICK))
    if False in kinds:
        handles.append(matplotlib.lines.Line2D([], [], label="training batches", **gray, **_THIN))
    if bands:
        label = "range over seeds; lines: mean"
        handles.append(matplotlib.patches.Patch(label=label, alpha=0.25, **gray))
    return handles


def _has_bands(runs):
    return any(len(seeds) > 1 for seeds in runs.values())


def _over_seeds(seeds, key, over="epochs"):
    """Collect (epochs or minutes, lowest, mean, highest) of a key in the rows of each seed."""
    found = {}
    for row in (row for rows in seeds for row in rows if key in row):
        found.setdefault(row["epoch"], []).append(row)
    points, most = [], max(map(len, found.values()), default=0)
    for x, rows in sorted(found.items()):
        if len(rows) < most:
            continue  # some stopped early: the mean of the others would jump
        if over == "minutes":
            x = statistics.fmean(row["wall_seconds"] for row in rows) / 60
        values = [row[key] for row in rows]
        points.append((x, min(values), statistics.fmean(values), max(values)))
    return points


def _shared(quantity, runs):
    """Check whether several runs have the same learning rate, of which one line is drawn."""
    if quantity != "learning_rate" or len(runs) < 2:
        return False
    curves = [_over_seeds(seeds, f"train/{quantity}") for seeds in runs.values()]
    return curves.count(curves[0]) == len(curves)


def _draw_curves(axis, quantity, runs, over="epochs"):
    styles = _styles(runs)
    if _shared(quantity, runs):
        runs, styles = {"": next(iter(runs.values()))}, {"": ("#000000", "-")}
        axis.set_title("the same for all variants", fontsize=10)
    for name, seeds in runs.items():
        color, style = styles[name]
        thin = _THIN if quantity in ("accuracy", "map", "loss") else _PLAIN
        for split, options in (("train", thin), ("val", _THICK)):
            points = _over_seeds(seeds, f"{split}/{quantity}", over)
            if not points:
                continue
            xs, low, mean, high = zip(*points, strict=True)
            axis.plot(xs, mean, style, color=color, **options)
            if split == "val" and len(seeds) > 1:
                axis.fill_between(xs, low, high, color=color, alpha=0.25, linewidth=0)
    axis.set_xlabel({"epochs": "epoch", "minutes": "minutes"}[over])
    axis.set_ylabel(QUANTITIES[quantity])
    if quantity in ("accuracy", "map"):
        axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    elif quantity != "loss":
        axis.set_ylim(0, None)


def save_kernel_magnitudes(path: pathlib.Path, title: str, magnitudes: dict) -> None:
    """Draw {"before" | "after" training: {layer: {"mean_abs", "l2"}}} of every layer's kernel."""
    names = list(magnitudes["after"])
    block = re.compile(r"Transformer/encoderblock_(\d+)")
    labels = [block.sub(lambda found: f"block {int(found[1]) + 1}", name) for name in names]
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
        axis.set_yticks(places, labels if axis is axes[0] else [], fontsize="small")
        axis.set_ylim(len(names) - 0.5, -0.5)  # the input's layer on top
        axis.set_xlim(0, None)
        axis.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes[1].legend(frameon=False, fontsize="small")
    save(figure, path, title)


def save_confusion(
    path: pathlib.Path, title: str, confusion: np.ndarray, class_names: list[str]
) -> None:
    """Draw a confusion matrix, counts [c, c] whose rows are the true classes, in percent of these.

    Up to 25 classes, the percentages are written in the cells. Of more than 100, some are named.
    """
    count = len(class_names)
    shares = 100 * confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    numbers, step = count <= 25, -(-count // 100)
    side = max(4.0, 1.8 + (0.52 if numbers else 0.135) * count / step)
    font = 8 if numbers else 6
    figure = matplotlib.figure.Figure(figsize=(side + 1.2, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    names = [short(name) for name in class_names[::step]]
    axis.set_xticks(range(0, count, step), names, rotation=90, fontsize=font)
    axis.set_yticks(range(0, count, step), names, fontsize=font)
    if numbers:
        for (row, column), share in np.ndenumerate(shares):
            if confusion[row, column]:
                color = "white" if share > 55 else "black"
                text = axis.text(column, row, f"{share:.0f}", ha="center", va="center")
                text.set(color=color, fontsize=8)
    else:  # lines to follow from a cell to its names
        axis.set_xticks(np.arange(0, count + 1, 5 * step) - 0.5, minor=True)
        axis.set_yticks(np.arange(0, count + 1, 5 * step) - 0.5, minor=True)
        axis.grid(which="minor", color="#cccccc", linewidth=0.5)
        axis.tick_params(which="minor", length=0)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    figure.colorbar(image, shrink=0.6, label="% of the true class")
    save(figure, path, title)


def save_prediction(
    path: pathlib.Path,
    title: str,
    image: np.ndarray,
    probabilities: dict[str, float],
    heat: tuple[str, np.ndarray] | None = None,
) -> None:
    """Draw an image, uint8 [height, width, 3 or 1], next to bars of {class: probability}.

    `heat` is the title of a heat map over the image, and its values [rows, columns], of which
    negative ones are drawn as 0.
    """
    figure = matplotlib.figure.Figure(figsize=(11 if heat else 8, 3.4), layout="constrained")
    left, *middle, right = figure.subplots(
        1, 3 if heat else 2, width_ratios=(1,) * (2 if heat else 1) + (1.3,)
    )
    left.imshow(image, cmap="gray", vmin=0, vmax=255)
    left.axis("off")
    if heat:
        (axis,), (label, values) = middle, heat
        height, width = image.shape[:2]
        axis.imshow(image.mean(-1), cmap="gray", vmin=-128, vmax=383)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        top = max(float(values.max()), 1e-12)
        axis.imshow(np.maximum(values, 0), HEAT, alpha=0.65, vmin=0, vmax=top, extent=extent)
        axis.set_title(short(label, 40), fontsize=10)
        axis.axis("off")
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


def save_accuracies(path: pathlib.Path | BinaryIO, title: str, rows: list[dict]) -> None:
    """Draw the test accuracy, or mAP, of rows of results.json: mean, std and each seed."""
    key, name = ("test_map", "mAP") if "test_map" in rows[0] else ("test_accuracy", "accuracy")
    names = [row["variant"] for row in rows]  # in full: long ones may differ at their ends only
    figure, (axis,) = make_figure(4.3 + 0.08 * max(map(len, names)), 1.5 + 0.5 * len(rows))
    several = False
    for i, test in enumerate(row[key] for row in rows):
        values, std = test["values"], test["std"]
        axis.errorbar(test["mean"], i, xerr=std, fmt="o", markersize=8, capsize=5, color=COLORS[0])
        if len(values) > 1:
            several = True
            axis.scatter(values, [i + 0.22] * len(values), s=14, color=COLORS[1], zorder=3)
        spread = "" if std is None else f" ± {100 * std:.1f}"
        text = f"{100 * test['mean']:.1f}{spread}"
        right = axis.get_yaxis_transform()  # 1: the axis's end
        axis.annotate(text, (1, i), (8, 0), right, textcoords="offset points", va="center")
    axis.set_yticks(range(len(rows)), names)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="x", color="#dddddd", linewidth=0.8)
    axis.margins(x=0.08)
    low, high = axis.get_xlim()
    ticks = matplotlib.ticker.MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = [tick for tick in ticks if max(0, low) <= tick <= min(1.001, high)]
    axis.set_xticks(ticks, [f"{round(100 * tick, 6):g}%" for tick in ticks])
    axis.set_xlabel(f"test {name}")
    if several:
        dot: dict[str, Any] = dict(marker="o", linestyle="")
        handles = [
            matplotlib.lines.Line2D([], [], color=COLORS[0], ms=8, label="mean ± std", **dot),
            matplotlib.lines.Line2D([], [], color=COLORS[1], ms=4, label="each seed", **dot),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    save(figure, path, title, dpi=160)


def save_reliability(path: pathlib.Path, title: str, bins: dict) -> None:
    """Draw a reliability diagram (Guo et al. 2017, figure 1) with the number of images per bin.

    `bins` are {"count", "confidence", "accuracy"} of bins of equal width; empty ones have None.
    """
    figure, (top, bottom) = make_figure(5.6, 5.6, 1, 2, sharex=True, height_ratios=(3, 1))
    width = 1 / len(bins["count"])
    points = [
        (confidence, accuracy)
        for confidence, accuracy in zip(bins["confidence"], bins["accuracy"], strict=True)
        if confidence is not None
    ]
    confidence, accuracy = zip(*points, strict=True)
    top.plot([0, 1], [0, 1], "--", color="#666666", label="perfect calibration")
    top.vlines(confidence, confidence, accuracy, color=COLORS[1], linewidth=2, label="gap")
    top.plot(confidence, accuracy, "o", color=COLORS[0], label="model", markersize=6, clip_on=False)
    top.set_ylim(0, 1)
    top.set_ylabel("accuracy")
    top.legend(frameon=False, fontsize="small", loc="upper left")
    centers = (np.arange(len(bins["count"])) + 0.5) * width
    bottom.bar(centers, bins["count"], 0.9 * width, color=COLORS[0], alpha=0.75)
    for center, count in zip(centers, bins["count"], strict=True):
        if count:
            place = (center, count)
            bottom.annotate(
                f"{count:,}", place, (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    bottom.margins(y=0.2)
    bottom.set_xlim(0, 1)
    bottom.set_xlabel("confidence: probability of the predicted class")
    bottom.set_ylabel("images")
    for axis in (top.xaxis, top.yaxis, bottom.xaxis):
        axis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    save(figure, path, title, size=11, dpi=160)


def save_contact_sheet(path: pathlib.Path, names: list[str], groups: dict[str, np.ndarray]) -> None:
    """Draw named rows of images in titled groups of columns.

    `groups` is {title: uint8 [rows, columns, height, width, 1 or 3]}.
    """
    cell = 0.85  # inches of an image's side
    names = [short(name) for name in names]
    columns = [images.shape[1] for images in groups.values()]
    room = max(1.2, 0.4 + 0.1 * max(map(len, names)))
    titles = [
        textwrap.fill(title, int(10 * cell * count))  # 10 characters per inch
        for title, count in zip(groups, columns, strict=True)
    ]
    lines = 1 + max(title.count("\n") for title in titles)
    size = (room + cell * sum(columns) + 0.1 * len(groups), 0.3 + 0.2 * lines + cell * len(names))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(groups), width_ratios=columns, squeeze=False)[0]
    for axis, title, images in zip(axes, titles, groups.values(), strict=True):
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
