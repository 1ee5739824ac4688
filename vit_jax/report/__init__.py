"""Reports of runs and sweeps: test reports, results.md, report.html and the charts."""

from vit_jax import plots
from vit_jax.report import table
from vit_jax.report.page import Sweep, make_environment, make_page
from vit_jax.report.run import (
    draw_confusion,
    draw_curves,
    find_plateaus,
    write_figures,
    write_test_report,
)
from vit_jax.report.table import results_table
from vit_jax.runtime.files import write_atomically


def write_report(sweep: Sweep) -> str:
    """Write results.md, results.png, curves.png and report.html; return the table."""
    workdir, experiment = sweep.workdir, sweep.results["experiment"]
    rows = table.sorted_rows(sweep.results)
    template = make_environment().get_template("results.md")
    text = template.render(tables=table, rows=rows, experiment=experiment, **vars(sweep))
    write_atomically(workdir / "results.md", text)
    plots.save_accuracies(workdir / "results.png", experiment, rows)
    plots.save_curves(workdir / "curves.png", experiment, sweep.metrics())
    write_atomically(workdir / "report.html", make_page(sweep))
    return results_table(rows)
