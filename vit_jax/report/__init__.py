"""What runs and sweeps show at their end: test reports, results.md, report.html and the charts."""

import pathlib
from collections.abc import Sequence

from vit_jax import plots
from vit_jax.metrics import read_jsonl, write_atomically
from vit_jax.report.page import Sweep, make_page
from vit_jax.report.run import draw_confusion, find_plateaus, write_figures, write_test_report
from vit_jax.report.table import find_seeds, results_table, same, sorted_rows, to_markdown

__all__ = [
    "draw_confusion",
    "find_plateaus",
    "results_table",
    "same",
    "write_figures",
    "write_report",
    "write_test_report",
]


def write_report(
    workdir: pathlib.Path,
    results: dict,
    summaries: dict[str, list[dict]],
    published: dict[str, str],
    select: str,
    arguments: Sequence[str] = (),
) -> str:
    """Writes results.md, results.png, curves.png and report.html, and returns the table.

    Args:
      workdir: of the sweep.
      results: the contents of results.json.
      summaries: variant -> summary.json of each seed.
      published: source -> the order that it found.
      select: `train.select`, which checkpoint was evaluated.
      arguments: of the command line; empty if it was not started from there.
    """
    rows, seeds = sorted_rows(results), find_seeds(summaries)
    text = to_markdown(results["experiment"], rows, summaries, published, select)
    write_atomically(workdir / "results.md", text)
    plots.save_bars(workdir / "results.png", results["experiment"], rows)
    plots.save_curves(
        workdir / "curves.png",
        f"{results['experiment']}, seed {seeds[0]}",
        {
            variant: read_jsonl(workdir / variant / f"seed_{seeds[0]}" / "metrics.jsonl")
            for variant in summaries
        },
    )
    sweep = Sweep(workdir, results, summaries, published, select, arguments)
    write_atomically(workdir / "report.html", make_page(sweep))
    return results_table(rows)
