"""What runs and sweeps show at their end: test reports, results.md, report.html and the charts."""

from vit_jax import plots
from vit_jax.report.page import Sweep, make_page
from vit_jax.report.run import (
    draw_confusion,
    draw_curves,
    find_plateaus,
    write_figures,
    write_test_report,
)
from vit_jax.report.table import find_seeds, results_table, same, sorted_rows, to_markdown
from vit_jax.runtime.files import write_atomically
from vit_jax.storage.writers import read_jsonl

__all__ = [
    "Sweep",
    "draw_confusion",
    "draw_curves",
    "find_plateaus",
    "results_table",
    "same",
    "write_figures",
    "write_report",
    "write_test_report",
]


def write_report(sweep: Sweep) -> str:
    """Writes results.md, results.png, curves.png and report.html, and returns the table."""
    workdir, results, summaries = sweep.workdir, sweep.results, sweep.summaries
    rows, seeds = sorted_rows(results), find_seeds(summaries)
    text = to_markdown(results["experiment"], rows, summaries, sweep.published, sweep.select)
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
    write_atomically(workdir / "report.html", make_page(sweep))
    return results_table(rows)
