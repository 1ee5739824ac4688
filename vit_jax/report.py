"""What runs and sweeps show at their end: results.md and the charts."""

import pathlib

from vit_jax import plots
from vit_jax.metrics import read_jsonl, write_atomically


def write_figures(run: pathlib.Path) -> None:
    """Draws the figures of one run from its metrics.jsonl."""
    (run / "figures").mkdir(exist_ok=True)
    name = f"{run.parent.name} {run.name.replace('_', ' ')}"
    plots.save_curves(run / "figures" / "curves.png", {name: read_jsonl(run / "metrics.jsonl")})


def write_report(workdir: pathlib.Path, results: dict, summaries: dict[str, list[dict]]) -> str:
    """Writes results.md, results.png and curves.png, and returns the table.

    Args:
      workdir: of the sweep.
      results: the contents of results.json.
      summaries: variant -> summary.json of each seed.
    """
    table = results_table(results["rows"])
    some = [summary for group in summaries.values() for summary in group]
    seeds = sorted({summary["seed"] for summary in some})
    text = [
        f"# {results['experiment']}",
        "",
        table,
        "",
        "Accuracies in %, mean ± standard deviation over seeds "
        f"{', '.join(map(str, seeds))} (ddof 1). Test is read once per run, from the checkpoint "
        "with the best validation accuracy; train is that checkpoint without augmentation.",
        "",
        f"Hardware: {', '.join(sorted({summary['device'] for summary in some}))}. Training and "
        f"evaluation took {sum(summary['wall_seconds'] for summary in some) / 60:.1f} minutes.",
        "",
        "![test accuracy](results.png)",
        "",
        "![curves](curves.png)",
        "",
    ]
    write_atomically(workdir / "results.md", "\n".join(text))
    plots.save_bars(workdir / "results.png", results["experiment"], results["rows"])
    plots.save_curves(
        workdir / "curves.png",
        {
            variant: read_jsonl(workdir / variant / f"seed_{group[0]['seed']}" / "metrics.jsonl")
            for variant, group in summaries.items()
        },
    )
    return table


def results_table(rows: list[dict]) -> str:
    """Returns the Markdown table of the rows of results.json."""
    lines = [
        "| variant | parameters | train | val | test | images/s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        speed = row["images_per_second"]
        cells = [
            row["variant"],
            f"{row['num_params']:,}",
            *(_percent(row[f"{part}_accuracy"]) for part in ("train", "val", "test")),
            "" if speed is None else f"{speed:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(accuracy):
    spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
    return f"{100 * accuracy['mean']:.2f}{spread}"
