"""The figures and the test report of one run."""

import json
import math
import pathlib

import numpy as np

from vit_jax import plots
from vit_jax.evaluation.labels import METRICS, score_of
from vit_jax.runtime.files import write_atomically
from vit_jax.storage.run_folder import run_name
from vit_jax.storage.writers import read_jsonl


def draw_curves(run: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Draw a run's metrics.jsonl into a folder, which is created if missing; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_jsonl(run / "metrics.jsonl")
    plots.save_curves(folder / "metrics.png", run_name(run), {"": [rows]})
    return folder


def write_figures(run: pathlib.Path) -> None:
    """Draw the figures of one finished run and, last, write its test_report.txt."""
    folder, name = run / "figures", run_name(run)
    draw_curves(run, folder / "curves")
    report = json.loads((run / "test_report.json").read_text())
    if "confusion" in report:  # not of several labels per image
        draw_confusion(folder / "confusion.png", name, report)
    if "calibration" in report:  # missing in reports of earlier versions
        error = 100 * report["expected_calibration_error"]
        title = f"{name}: expected calibration error {error:.2f} points"
        plots.save_reliability(folder / "reliability.png", title, report["calibration"])
    magnitudes = json.loads((run / "summary.json").read_text()).get("kernel_magnitudes")
    if magnitudes:
        plots.save_kernel_magnitudes(folder / "kernel_magnitudes.png", name, magnitudes)
    write_test_report(run / "test_report.txt", name, report, read_jsonl(run / "metrics.jsonl"))


def draw_confusion(path: pathlib.Path, name: str, report: dict, part: str = "test") -> None:
    """Draw the confusion matrix of a report of `evaluate.make_report` on a data split."""
    title = f"{name}: {part} accuracy {100 * report['accuracy']:.2f} %, {report['count']:,} images"
    plots.save_confusion(path, title, np.array(report["confusion"]), list(report["classes"]))


def write_test_report(path: pathlib.Path, name: str, report: dict, rows: list[dict]) -> None:
    """Write a report of `evaluate.make_report` on the run `name` as plain text.

    `rows` are those of its metrics.jsonl; empty for a model that was not trained here.
    """
    lines = [f"Test report of {name}", ""]
    lines += [f"{label:16}{text}" for label, text in overall(report).items()]
    width = max(len("class"), *map(len, report["classes"]))
    _, *columns = class_head(report)
    sizes = [max(6, len(column)) for column in columns]
    for label, *texts in (class_head(report), *class_cells(report)):
        cells = "  ".join(f"{text:>{size}}" for text, size in zip(texts, sizes, strict=True))
        lines += [f"{label:{width}}  {cells}"]
    lines += ["", class_note(report), "", *findings(report), *describe_training(rows)]
    write_atomically(path, "\n".join(lines) + "\n")


def overall(report: dict) -> dict[str, str]:
    """Format the metrics over all classes of a report of `evaluate.make_report`."""

    def fraction(key, interval):
        low, high = report[interval]
        return f"{100 * report[key]:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})"

    if "map" in report:
        names = {"map": "mAP", "micro_f1": "micro F1", "macro_f1": "macro F1"}
        names |= {"label_accuracy": "label accuracy", "exact_match": "exact match"}
        texts = {name: f"{100 * report[key]:.2f} %" for key, name in names.items()}
        return texts | {"images": f"{report['count']:,}"}
    texts = {"accuracy": fraction("accuracy", "accuracy_interval")}
    if "top5_accuracy" in report:
        texts["top-5 accuracy"] = fraction("top5_accuracy", "top5_interval")
    error = 100 * report["expected_calibration_error"]
    if "macro_recall" in report:  # missing in reports of earlier versions
        texts["macro recall"] = f"{100 * report['macro_recall']:.2f} %"
    return texts | {
        "macro F1": f"{100 * report['macro_f1']:.2f} %",
        "calibration": f"expected calibration error {error:.2f} points, 15 bins",
        "images": f"{report['count']:,}",
    }


CLASS_HEAD = ("class", "precision", "recall", "f1", "images")
LABEL_HEAD = ("class", "AP", "precision", "recall", "f1", "threshold", "images")
_KEYS = {"AP": "average_precision", "images": "support"}


def class_head(report: dict) -> tuple[str, ...]:
    """List the heads of the columns of `class_cells`."""
    return LABEL_HEAD if "map" in report else CLASS_HEAD


def class_note(report: dict) -> str:
    """Describe the columns of `class_cells`."""
    if "map" not in report:
        return "Precision, recall and F1 are in %. Recall is the accuracy on the images of a class."
    fitted = {values["threshold"] for values in report["classes"].values()} != {0.5}
    return (
        "All but the number of images are in %. AP: average precision, which needs no threshold. "
        + (
            "Thresholds have the highest F1 on the validation split, where F1 is thus optimistic."
            if fitted
            else "Thresholds are not fitted."
        )
    )


def class_cells(report: dict) -> list[list[str]]:
    """Format the cells below `class_head`, class by class: percentages and the number of images."""
    keys = [_KEYS.get(key, key) for key in class_head(report)[1:-1]]
    return [
        [
            label,
            *("-" if values[key] is None else f"{100 * values[key]:.2f}" for key in keys),
            f"{values['support']:,}",
        ]
        for label, values in report["classes"].items()
    ]


def findings(report: dict) -> list[str]:
    """List the best and worst classes, and those most often confused, as sentences.

    A single image does not make two classes confused. Several labels per image: the classes with
    the highest and the lowest average precision.
    """
    if "map" in report:
        return _label_findings(report)
    recalls = {n: v["recall"] for n, v in report["classes"].items() if v["support"]}
    missing = [name for name, values in report["classes"].items() if not values["support"]]
    lines = [f"Classes without images, not in macro F1: {', '.join(missing)}."] if missing else []
    for fraction in (1.0, 0.0):
        names = [name for name, recall in recalls.items() if recall == fraction]
        lines.append(f"Classes with recall {100 * fraction:.0f} %: {', '.join(names) or 'none'}.")
    names, pairs = list(report["classes"]), []
    for i, row in enumerate(report["confusion"]):
        pairs += [(n, sum(row), names[i], names[j]) for j, n in enumerate(row) if n and i != j]
    pairs.sort(key=lambda pair: (-pair[0], pair[2:]))
    listed = [f"{true} as {wrong} ({n} of {of})" for n, of, true, wrong in pairs[:5] if n > 1]
    if listed:
        lines.append(f"Most often confused: {'; '.join(listed)}.")
    elif pairs:
        lines.append("No pair of classes is confused more than once.")
    return lines


def _label_findings(report):
    found = {n: v["average_precision"] for n, v in report["classes"].items() if v["support"]}
    missing = [name for name in report["classes"] if name not in found]
    lines = [f"Classes without images, not in the mAP: {', '.join(missing)}."] if missing else []
    ranked = sorted(found, key=lambda name: -found[name])
    for what, names in (("Highest", ranked[:3]), ("Lowest", ranked[::-1][:3])):
        listed = ", ".join(f"{name} ({100 * found[name]:.1f} %)" for name in names)
        lines.append(f"{what} average precision: {listed or 'none'}.")
    return lines


def describe_training(rows: list[dict]) -> list[str]:
    """Describe validation accuracy, or mAP, and learning rate during training as sentences."""
    key = "map" if any("val/map" in row for row in rows) else "accuracy"
    metric = METRICS[key]
    val = [(row["epoch"], row[f"val/{key}"]) for row in rows if f"val/{key}" in row]
    rates = [row["train/learning_rate"] for row in rows if "train/learning_rate" in row]
    if not val:
        return []
    best = max(val, key=lambda point: (point[1], point[0]))
    lines = [
        f"Best validation {metric}: {100 * best[1]:.2f} % at epoch {best[0]:g}; after the first "
        f"evaluation (epoch {val[0][0]:g}) it was {100 * val[0][1]:.2f} %."
    ]
    plateaus = [f"{start:g} to {end:g}" for start, end in find_plateaus(val)]
    if plateaus:
        lines.append(f"No higher validation {metric} during epochs {', '.join(plateaus)}.")
    if rates:
        lines.append(f"Learning rate: {min(rates):.3g} to {max(rates):.3g}.")
    return lines


def find_plateaus(val: list[tuple[float, float]], length: int = 5) -> list[tuple[float, float]]:
    """Find the first and last epochs of stretches without a new best accuracy.

    Args:
      val: (epoch, accuracy) of each evaluation.
      length: of the shortest stretch, in evaluations.
    """
    plateaus, stretch, best = [], [], -1.0
    for epoch, accuracy in [*val, (None, math.inf)]:
        if accuracy > best:
            if len(stretch) >= length:
                plateaus.append((stretch[0], stretch[-1]))
            best, stretch = accuracy, []
        else:
            stretch.append(epoch)
    return plateaus


RUN_HEAD = ("run", "test", "val", "train", "epoch", "minutes")


def run_cells(variant: str, summary: dict) -> list[str]:
    """Format the cells below RUN_HEAD of a summary.json; the epoch is the checkpoint's."""
    scores = (f"{100 * score_of(summary, split):.2f}" for split in ("test", "val", "train"))
    epoch = "-"
    if summary["steps"]:
        epoch = f"{round(summary['best_step'] * summary['epochs'] / summary['steps'], 2):g}"
    minutes = f"{summary['wall_seconds'] / 60:.1f}"
    return [f"{variant}, seed {summary['seed']}", *scores, epoch, minutes]


SCORE_HEAD = ["explanation", "SaCo", "images above chance", "correlation with random weights"]
SCORE_HEAD += ["deletion, below chance by", "images below"]
SCORE_HEAD += ["insertion, above chance by", "images above"]


def score_cells(scores: dict) -> list[list[str]]:
    """Format the cells below SCORE_HEAD, explanation by explanation of `scores.score`."""

    def gain(one):
        spread = "" if one["gain_error"] is None else f" ± {one['gain_error']:.3f}"
        return [f"{one['gain']:.3f}{spread}", f"{100 * one['better']:.0f} %"]

    lines = []
    for name, values in scores["methods"].items():
        if name != "random":
            fails = " (fails)" if values["randomised"] > scores["most_correlated"] else ""
            lines.append([name, *gain(values["saco"]), f"{values['randomised']:.2f}{fails}"])
            lines[-1] += gain(values["deletion"]) + gain(values["insertion"])
    return lines


def score_verdict(scores: dict) -> str:
    """Name the explanation to trust, in a sentence."""
    name = scores["trusted"]
    if name is None:
        return (
            "No explanation is to be trusted: none has a SaCo above that of random orders by more "
            "than two standard errors and changes with the weights."
        )
    saco = scores["methods"][name]["saco"]
    return (
        f"The explanation to trust is {name}: of those that change with the weights it has the "
        f"highest SaCo, {saco['gain']:.2f} ± {saco['gain_error']:.2f}, and is better than random "
        f"orders in {100 * saco['better']:.0f} % of the images."
    )


def score_legend(scores: dict) -> str:
    """Describe the numbers of `score_cells` in a few sentences."""
    few = " With so few patches, the scores mean little." if scores["patches"] < 16 else ""
    residual = ""
    if "integrated gradients" in scores["methods"]:
        residual = (
            " Integrated gradients add up to the change of the logit, except for "
            f"{100 * scores['residual']:.1f} % of it (median)."
        )
    return (
        f"On {scores['images']} test images of {scores['patches']} patches. SaCo: groups of "
        "patches are replaced by the image's mean colour, one at a time; 1 if those with more "
        "relevance always lower the probability of the predicted class more, 0 for random orders. "
        "Deletion: patches are replaced, those that the explanation ranks highest first; the "
        "area under the probability of the predicted class is small if the explanation is right. "
        "Insertion: patches are added to an image of the mean colour in that order; the area is "
        "large if the explanation is right. "
        "Chance is the mean of two random orders and their reverses; mean ± standard error of the "
        "difference from it, paired by image, and the fraction of images where the explanation is "
        "better. "
        "Correlation: of the ranks of the patches with those after all weights are shuffled; an "
        f"explanation above {scores['most_correlated']:g} does not depend on what the model "
        f"learned.{residual}{few}"
    )
