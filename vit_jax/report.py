"""What runs and sweeps show at their end: test reports, results.md and the charts."""

import json
import math
import pathlib

import numpy as np

from vit_jax import plots
from vit_jax.metrics import read_jsonl, write_atomically


def write_figures(run: pathlib.Path) -> None:
    """Draws the figures of one finished run and, last, writes its test_report.txt.

    From its metrics.jsonl, test_report.json and summary.json.
    """
    (run / "figures").mkdir(exist_ok=True)
    name = f"{run.parent.name} {run.name.replace('_', ' ')}"
    rows = read_jsonl(run / "metrics.jsonl")
    report = json.loads((run / "test_report.json").read_text())
    draw_confusion(run / "figures" / "confusion.png", name, report)
    plots.save_curves(run / "figures" / "curves.png", name, {"": rows})
    magnitudes = json.loads((run / "summary.json").read_text()).get("kernel_magnitudes")
    if magnitudes:
        path = run / "figures" / "kernel_magnitudes.png"
        plots.save_kernel_magnitudes(path, name, magnitudes)
    write_test_report(run / "test_report.txt", name, report, rows)


def draw_confusion(path: pathlib.Path, name: str, report: dict, part: str = "test") -> None:
    """Draws the confusion matrix of a report of `evaluate.make_report` on a part of the data."""
    title = f"{name}: {part} accuracy {100 * report['accuracy']:.2f} %, {report['count']:,} images"
    plots.save_confusion(path, title, np.array(report["confusion"]), list(report["classes"]))


def write_test_report(path: pathlib.Path, name: str, report: dict, rows: list[dict]) -> None:
    """Writes what a report of `evaluate.make_report` says, for people.

    Args:
      path: of the text.
      name: of the run.
      report: of its test images.
      rows: of its metrics.jsonl; empty for a model that was not trained here.
    """
    classes = report["classes"]
    lines = [f"Test report of {name}", "", *_overall(report), ""]
    width = max(len("class"), *map(len, classes))
    lines.append(f"{'class':{width}}  precision  recall      f1  accuracy  images")
    for label, values in classes.items():
        cells = [values[key] for key in ("precision", "recall", "f1", "accuracy")]
        texts = ["     -" if value is None else f"{100 * value:6.2f}" for value in cells]
        line = f"{label:{width}}     {texts[0]}  {texts[1]}  {texts[2]}    {texts[3]}"
        lines.append(f"{line}  {values['support']:6,}")
    lines += ["", "All but the images in %. A class's accuracy, the share of its images that are"]
    lines += ["recognised, is its recall.", "", *_findings(report), *_training(rows)]
    write_atomically(path, "\n".join(lines) + "\n")


def _overall(report):
    def share(key, interval):
        low, high = report[interval]
        return f"{100 * report[key]:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})"

    lines = [f"accuracy        {share('accuracy', 'accuracy_interval')}"]
    if "top5_accuracy" in report:
        lines.append(f"top-5 accuracy  {share('top5_accuracy', 'top5_interval')}")
    lines.append(f"macro F1        {100 * report['macro_f1']:.2f} %")
    error = 100 * report["expected_calibration_error"]
    lines.append(f"calibration     expected error {error:.2f} points, 15 bins")
    lines.append(f"images          {report['count']:,}")
    return lines


def _findings(report):
    """Returns sentences on the best and worst classes and on what is confused."""
    recalls = {n: v["accuracy"] for n, v in report["classes"].items() if v["support"]}
    lines = []
    for share in (1.0, 0.0):
        names = [name for name, recall in recalls.items() if recall == share]
        lines.append(f"Classes at {100 * share:.0f} %: {', '.join(names) or 'none'}.")
    names, pairs = list(report["classes"]), []
    for i, row in enumerate(report["confusion"]):
        pairs += [(n, sum(row), names[i], names[j]) for j, n in enumerate(row) if n and i != j]
    pairs.sort(key=lambda pair: (-pair[0], pair[2:]))
    if pairs:
        listed = [f"{true} as {wrong} ({n} of {of})" for n, of, true, wrong in pairs[:5]]
        lines.append(f"Most often taken for another: {'; '.join(listed)}.")
    return lines


def _training(rows):
    """Returns sentences on how the validation accuracy and the learning rate went."""
    val = [(row["epoch"], row["val/accuracy"]) for row in rows if "val/accuracy" in row]
    rates = [row["train/learning_rate"] for row in rows if "train/learning_rate" in row]
    if not val:
        return []
    best = max(val, key=lambda point: (point[1], point[0]))
    lines = [
        f"Best validation accuracy: {100 * best[1]:.2f} % at epoch {best[0]:g}; after the first "
        f"evaluation (epoch {val[0][0]:g}) it was {100 * val[0][1]:.2f} %."
    ]
    plateaus = [f"{start:g} to {end:g}" for start, end in find_plateaus(val)]
    if plateaus:
        lines.append(f"No better validation accuracy during epochs {', '.join(plateaus)}.")
    if rates:
        lines.append(f"Learning rate: {min(rates):.3g} to {max(rates):.3g}.")
    return lines


def find_plateaus(val: list[tuple[float, float]], length: int = 5) -> list[tuple[float, float]]:
    """Returns the first and last epochs of the stretches without a new best accuracy.

    Args:
      val: (epoch, accuracy) of each evaluation.
      length: of a stretch that counts, in evaluations.
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


def write_report(
    workdir: pathlib.Path,
    results: dict,
    summaries: dict[str, list[dict]],
    published: dict[str, str],
    select: str,
) -> str:
    """Writes results.md, results.png and curves.png, and returns the table.

    Args:
      workdir: of the sweep.
      results: the contents of results.json.
      summaries: variant -> summary.json of each seed.
      published: source -> the order that it found.
      select: `train.select`, which checkpoint was evaluated.
    """
    rows = [leg for row in results["rows"] for leg in _legs(row)]
    rows.sort(key=lambda row: -row["test_accuracy"]["mean"])
    table = results_table(rows)
    some = [summary for group in summaries.values() for summary in group]
    seeds = sorted({summary["seed"] for summary in some})
    text = [f"# {results['experiment']}", "", table, "", _legend(rows, seeds, select), ""]
    if published:
        text += ["| source | test accuracy, %, neighbours compared |", "|---|---|"]
        text += [f"| {source} | {order} |" for source, order in published.items()]
        text += [f"| this run | {_order(rows)} |", ""]
    text += [
        f"Hardware: {', '.join(sorted({summary['device'] for summary in some}))}. Training and "
        f"evaluation took {sum(summary['wall_seconds'] for summary in some) / 60:.1f} minutes.",
        "",
        "![test accuracy](results.png)",
        "",
        "![curves](curves.png)",
        "",
    ]
    write_atomically(workdir / "results.md", "\n".join(text))
    plots.save_bars(workdir / "results.png", results["experiment"], rows)
    plots.save_curves(
        workdir / "curves.png",
        f"{results['experiment']}, seed {seeds[0]}",
        {
            variant: read_jsonl(workdir / variant / f"seed_{seeds[0]}" / "metrics.jsonl")
            for variant in summaries
        },
    )
    return table


def _legs(row):
    """Returns a row as it is, or, of a run that was lengthened, one for each of its lengths."""
    if "legs" not in row:
        return [row]
    legs = [*row["legs"], row]
    return [leg | {"variant": f"{row['variant']}, {leg['epochs']:g} epochs"} for leg in legs]


def _legend(rows, seeds, select):
    if len(seeds) > 1:
        spread = f"mean ± standard deviation over seeds {', '.join(map(str, seeds))} (ddof 1)"
    else:
        spread = f"of one run, seed {seeds[0]}"
    if len(rows) > 1:
        chance = ", which alone cannot tell a difference from chance" if len(seeds) == 1 else ""
        spread += f"{chance}; the best first"
    unit = "length of a run" if any("epochs" in row for row in rows) else "run"
    checkpoint = {
        "best": "checkpoint with the best validation accuracy",
        "last": "last checkpoint",
    }[select]
    text = (
        f"Accuracies in %, {spread}. Test is read once per {unit}, from the "
        f"{checkpoint}; train is that checkpoint without augmentation."
    )
    if len(seeds) > 1 and len(rows) > 1:
        text += (
            " ≈ marks what cannot be told from the best: a difference of the means below "
            "sqrt(s1² + s2²), the standard deviation of a difference of two runs."
        )
    return text


def same(one: dict, other: dict) -> bool:
    """Returns whether two accuracies of results.json differ by no more than their spread.

    The measure is sqrt(s1^2 + s2^2), the standard deviation of the difference of two single runs;
    False where there is only one seed.
    """
    if one["std"] is None or other["std"] is None:
        return False
    return abs(one["mean"] - other["mean"]) <= math.hypot(one["std"], other["std"])


def _order(rows):
    """Returns e.g. "a 81.0 ≈ b 80.5 > c 70.1" of rows from best to worst, neighbours compared.

    With one seed, of which no order follows, commas stand between them.
    """
    text = ""
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None:
            one, other = before["test_accuracy"], row["test_accuracy"]
            text += ", " if None in (one["std"], other["std"]) else " > "
            text = text[:-3] + " ≈ " if same(one, other) else text
        text += f"{row['variant']} {100 * row['test_accuracy']['mean']:.1f}"
    return text


def results_table(rows: list[dict]) -> str:
    """Returns the Markdown table of rows of results.json, of which the first is the best."""
    lines = [
        "| variant | parameters | train | val | test | images/s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        speed, test = row["images_per_second"], row["test_accuracy"]
        near = row is not rows[0] and same(test, rows[0]["test_accuracy"])
        cells = [
            row["variant"],
            _parameters(row),
            *(_percent(row[f"{part}_accuracy"]) for part in ("train", "val")),
            ("≈ " if near else "") + _percent(test),
            "" if speed is None else f"{speed:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _parameters(row):
    total, trained = row["num_params"], row["num_trainable_params"]
    return f"{total:,}" if total == trained else f"{total:,}, {trained:,} trained"


def _percent(accuracy):
    spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
    return f"{100 * accuracy['mean']:.2f}{spread}"
