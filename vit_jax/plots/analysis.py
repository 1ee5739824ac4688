"""Figures of the analysis of a model: ablation, logit lens, token norms, similarity, probes.

Each function writes a PNG to `path`, with `title` above the figure.
"""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.colors
import matplotlib.ticker
import numpy as np

from vit_jax.plots.inside import HEAT
from vit_jax.plots.results import COLORS, STYLES, make_figure, save, short

DIVERGING = "PuOr"  # distinct with any common form of colour-blindness
GREY = "#888888"  # readable on a light and on a dark ground
MARKERS = "os^D"


def _ticks(layers):
    """Shorten names of blocks to their numbers, and the embedding to 0."""
    return [name.removeprefix("block ").replace("embedding", "0") for name in layers]


def _is_vit(layers):
    return layers[0] == "embedding"


def _describe_layers(layers):
    return "block (0: embedding)" if _is_vit(layers) else "layer"


def _over_layers(axis, layers):
    step = 1 if len(layers) <= 13 else 4  # numbers of more blocks would touch one another
    axis.set_xticks(range(0, len(layers), step), _ticks(layers)[::step])
    axis.tick_params("x", labelsize=8, rotation=0 if _is_vit(layers) else 40)
    axis.set_xlabel(_describe_layers(layers))


def _write_cells(axis, image, texts):
    """Write strings into the cells of an image, black or white as each colour requires."""
    colors = image.to_rgba(image.get_array())[..., :3] @ (0.299, 0.587, 0.114)
    for (i, j), text in np.ndenumerate(texts):
        color = "black" if colors[i, j] > 0.5 else "white"
        axis.text(j, i, text, ha="center", va="center", fontsize=7, color=color)


def _frame(axis):
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def save_ablation(path: pathlib.Path, title: str, found: Mapping, labelled: bool = True) -> None:
    """Draw `analysis.ablation` with standard errors, a row per block, a column per head and MLP.

    `labelled`: whether the class is the label of an image, otherwise the predicted one.
    """
    accuracy = "accuracy" if labelled else "agreement with\nthe model's prediction"
    depth, heads = found["heads"]["logit"].shape
    width, height = 0.62 * (heads + 1) + 1.6, 0.45 * depth + 1.6
    figure, axes = make_figure(max(7.5, 2 * width), height, 2)
    panels = (
        ("accuracy", f"{accuracy}, percentage points", 100),
        ("logit", f"logit of the {'class' if labelled else 'predicted class'}", 1),
    )
    for axis, (key, label, unit) in zip(axes, panels, strict=True):
        mean, error = (
            unit * np.concatenate([found["heads"][name], found["mlps"][name][:, None]], 1)
            for name in (key, f"{key}_error")
        )
        top = max(1e-12, np.abs(mean).max())
        image = axis.imshow(mean, cmap=DIVERGING, vmin=-top, vmax=top, aspect="auto")
        digits = 1 if unit > 1 else 2
        pairs = zip(mean.ravel(), error.ravel(), strict=True)
        texts = [f"{m:+.{digits}f}\n±{e:.{digits}f}" for m, e in pairs]
        _write_cells(axis, image, np.array(texts).reshape(mean.shape))
        axis.axvline(heads - 0.5, color=GREY, linewidth=1.5)
        axis.set_xticks(range(heads + 1), [*map(str, range(1, heads + 1)), "MLP"])
        axis.set_yticks(range(depth), [str(i + 1) for i in range(depth)])
        axis.set(xlabel="head", ylabel="block")
        axis.set_title(f"change of {label}", fontsize=9)
        _frame(axis)
        figure.colorbar(image, ax=axis, pad=0.02)
    save(figure, path, title, size=10, dpi=110)


def save_lens(
    path: pathlib.Path,
    title: str,
    layers: Sequence[str],
    summary: Mapping,
    labelled: bool = True,
) -> None:
    """Draw the accuracy and the probability of the class by layer, of pooled tokens and patches.

    `summary` has "accuracy", "probability", "patch_accuracy" and "patch_probability" [layers], and
    "chance"; `labelled` as in `save_ablation`.
    """
    wanted = "that the lens classifies correctly" if labelled else "that agrees with the prediction"
    kind = "class" if labelled else "predicted class"
    figure, axes = make_figure(8.5, 3.8, 2, sharey=True)
    panels = (
        ("accuracy", f"fraction {wanted}"),
        ("probability", f"mean probability of the {kind}"),
    )
    for axis, (key, label) in zip(axes, panels, strict=True):
        for i, (name, curve) in enumerate((("pooled token", key), ("patches", f"patch_{key}"))):
            axis.plot(summary[curve], STYLES[i], color=COLORS[i], marker=MARKERS[i], label=name)
        axis.axhline(summary["chance"], color=GREY, linestyle=":", label="chance")
        axis.set_title(label, fontsize=10)
        axis.set_ylim(0, 1.02)
        _over_layers(axis, layers)
    axes[0].legend(frameon=False, fontsize="small")
    save(figure, path, title, size=11, dpi=110)


def save_lens_classes(
    path: pathlib.Path,
    title: str,
    layers: Sequence[str],
    images: np.ndarray,
    names: Sequence[str],
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Draw the class probabilities by layer of images, the four classes that are highest anywhere.

    Args:
      path: of the PNG file.
      title: above the figure.
      layers: their names.
      images: uint8 [b, height, width, channels].
      names: of the images.
      probabilities: [b, layers, classes].
      class_names: names of the classes.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure, axes = make_figure(max(5.0, 3.4 * columns), 3.3 * rows + 0.4, columns, rows)
    for axis in axes[len(images) :]:
        axis.axis("off")
    for axis, image, name, curves in zip(axes, images, names, probabilities, strict=False):
        best = np.argsort(-curves.max(0), kind="stable")[:4]
        best = best[np.argsort(-curves[-1, best], kind="stable")]
        for i, label in enumerate(map(int, best)):
            style: dict = dict(color=COLORS[i], marker=MARKERS[i], markersize=4)
            axis.plot(curves[:, label], STYLES[i], label=short(class_names[label], 16), **style)
        _over_layers(axis, layers)
        axis.set_ylim(0, 1.42)  # with the image and the legend above the curves
        axis.set_yticks(np.linspace(0, 1, 6))
        axis.set_title(name, fontsize=8)
        axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0.26, 1.0))
        inset = axis.inset_axes((0.02, 0.73, 0.25, 0.26))
        inset.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        inset.set(xticks=[], yticks=[])
    for axis in axes[::columns]:
        axis.set_ylabel("probability")
    save(figure, path, title, size=10, dpi=110)


def save_token_norms(
    path: pathlib.Path, title: str, layers: Sequence[str], norms: np.ndarray, threshold: float
) -> None:
    """Draw norms [n, layers, patches] of patch tokens: quantiles by layer, histogram of the last.

    `threshold` is that of outliers.
    """
    figure, axes = make_figure(8.5, 3.8, 2)
    quantiles = np.quantile(norms, (0.01, 0.5, 0.99, 1.0), axis=(0, 2))  # [4, layers]
    numbers = np.arange(len(layers))
    axes[0].fill_between(numbers, quantiles[0], quantiles[2], color=COLORS[5], alpha=0.4, lw=0)
    axes[0].plot(quantiles[1], color=COLORS[0], marker="o", label="median, 1 to 99 % shaded")
    axes[0].plot(quantiles[3], "--", color=COLORS[1], marker="s", label="maximum")
    _over_layers(axes[0], layers)
    axes[0].set_ylim(0)
    axes[0].set_ylabel("norm of a patch token")
    last = norms[:, -1].ravel()
    bins = np.linspace(last.min(), max(last.max(), threshold) * 1.02, 61)
    axes[1].hist(last, bins, color=COLORS[5])
    axes[1].set_yscale("log")
    axes[1].set_ylim(0.7)  # a single patch is visible
    axes[1].yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,g}"))
    axes[1].yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    label = f"median + 10 MAD: {100 * (last > threshold).mean():.2f} % above"
    axes[1].axvline(threshold, color=COLORS[1], linestyle="--", label=label)
    axes[1].set_xlabel("norm before the final norm")
    axes[1].set_ylabel("number of patches")
    for axis in axes:
        axis.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1))
    save(figure, path, title, size=11, dpi=110)


def save_layer_similarity(
    path: pathlib.Path,
    title: str,
    models: tuple[str, str],
    layers: tuple[Sequence[str], Sequence[str]],
    values: np.ndarray,
) -> None:
    """Draw the CKA [rows, columns] of the layers of two models, or of a model with itself."""
    rows, columns = values.shape
    figure, (axis,) = make_figure(0.52 * columns + 2.8, 0.42 * rows + 2.0)
    image = axis.imshow(values, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
    _write_cells(axis, image, np.array([[f"{value:.2f}" for value in row] for row in values]))
    axis.set_xticks(range(columns), _ticks(layers[1]), rotation=0 if _is_vit(layers[1]) else 40)
    axis.set_yticks(range(rows), _ticks(layers[0]))
    labels = [f"{name}\n{_describe_layers(own)}" for name, own in zip(models, layers, strict=True)]
    axis.set(xlabel=labels[1], ylabel=labels[0])
    _frame(axis)
    figure.colorbar(image, ax=axis, pad=0.02, label="linear CKA")
    save(figure, path, title, size=10, dpi=110)


def save_probes(
    path: pathlib.Path,
    title: str,
    layers: Sequence[str],
    found: Mapping[str, Mapping[str, np.ndarray]],
    count: int,
    accuracy: float,
) -> None:
    """Draw the accuracies of `analysis.probe_layers` on `count` images, with standard errors.

    `accuracy` is that of the model on the same images.
    """
    figure, (axis,) = make_figure(7, 4.2)
    pairs = [(kind, probe) for kind in found for probe in ("ridge", "knn")]
    for i, (kind, probe) in enumerate(pairs):
        values = np.asarray(found[kind][probe])
        error = np.sqrt(values * (1 - values) / count)
        label = f"{'kNN' if probe == 'knn' else 'ridge regression'}, {kind}"
        style: dict = dict(color=COLORS[i], marker=MARKERS[i], capsize=2)
        axis.errorbar(
            np.arange(len(layers)) + 0.03 * i, values, error, label=label, fmt=STYLES[i], **style
        )
    axis.axhline(accuracy, color=GREY, linestyle=":", label="the model's head")
    _over_layers(axis, layers)
    axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axis.set_ylabel("accuracy ± standard error")
    axis.set_ylim(0, 1.02)
    figure.legend(loc="outside lower center", frameon=False, fontsize="small", ncols=2)
    save(figure, path, title, size=11, dpi=110)
