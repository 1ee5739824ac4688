"""What runs and sweeps show at their end: results.md and the charts."""

import json
import math
import pathlib

from vit_jax import plots
from vit_jax.metrics import read_jsonl, write_atomically


def write_figures(run: pathlib.Path) -> None:
    """Draws the figures of one finished run from its metrics.jsonl and summary.json."""
    (run / "figures").mkdir(exist_ok=True)
    name = f"{run.parent.name} {run.name.replace('_', ' ')}"
    plots.save_curves(run / "figures" / "curves.png", name, {"": read_jsonl(run / "metrics.jsonl")})
    magnitudes = json.loads((run / "summary.json").read_text()).get("kernel_magnitudes")
    if magnitudes:
        path = run / "figures" / "kernel_magnitudes.png"
        plots.save_kernel_magnitudes(path, name, magnitudes)


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
    rows = sorted(results["rows"], key=lambda row: -row["test_accuracy"]["mean"])
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


def _legend(rows, seeds, select):
    spread = (
        f"mean ± standard deviation over seeds {', '.join(map(str, seeds))} (ddof 1)"
        if len(seeds) > 1
        else f"of one run, seed {seeds[0]}, so no difference can be told from chance"
    )
    checkpoint = {
        "best": "checkpoint with the best validation accuracy",
        "last": "last checkpoint",
    }[select]
    text = (
        f"Accuracies in %, {spread}, best first. Test is read once per run, from the "
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
            f"{row['num_params']:,}",
            *(_percent(row[f"{part}_accuracy"]) for part in ("train", "val")),
            ("≈ " if near else "") + _percent(test),
            "" if speed is None else f"{speed:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(accuracy):
    spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
    return f"{100 * accuracy['mean']:.2f}{spread}"
