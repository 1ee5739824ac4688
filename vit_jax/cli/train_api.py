"""`train`: an experiment from Python, the same as from the command line."""

import dataclasses
import json
import os
import pathlib
import signal
from collections.abc import Sequence
from typing import Any

from vit_jax.config import Config
from vit_jax.config.loading import Experiment, load_config
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.progress import quiet_libraries
from vit_jax.runtime.signals import StopSignal


@dataclasses.dataclass(frozen=True, repr=False)
class Results:
    """The results of a sweep; in a notebook it shows its table.

    Attributes:
      workdir: with a folder VARIANT/seed_K for each run, results.md and report.html.
      experiment: its name.
      rows: of results.json, a dict per variant: "variant", "overrides", "num_params",
        "train_accuracy", "val_accuracy" and "test_accuracy" (each {"mean", "std", "values"},
        fractions), "images_per_second".
    """

    workdir: pathlib.Path
    experiment: str
    rows: list[dict]

    @classmethod
    def read(cls, workdir: str | os.PathLike[str]) -> "Results":
        """Read the results of a finished experiment; raises UserError if there are none."""
        folder = pathlib.Path(workdir).expanduser()
        try:
            found = json.loads((folder / "results.json").read_text())
        except (OSError, ValueError):
            raise UserError(f"{folder} holds no results.json of a finished experiment") from None
        return cls(folder, found["experiment"], found["rows"])

    @property
    def table(self) -> str:
        """The table in Markdown, the best variant first; accuracies in %."""
        from vit_jax.report.table import results_table, sorted_rows  # matplotlib: half a second

        return results_table(sorted_rows({"rows": self.rows}))

    @property
    def best_run(self) -> pathlib.Path:
        """The folder of the run with the best validation accuracy, for `load_model`."""
        folders = [self.workdir / row["variant"] for row in self.rows]
        found = sorted(path for folder in folders for path in folder.glob("seed_*/summary.json"))
        return max(found, key=lambda path: json.loads(path.read_text())["val_accuracy"]).parent

    def __repr__(self) -> str:
        return f"{self.experiment} ({self.workdir})\n\n{self.table}"

    def _repr_markdown_(self) -> str:
        return f"**{self.experiment}**, report: `{self.workdir / 'report.html'}`\n\n{self.table}"


def run_experiment(
    experiment: Experiment,
    workdir: str | os.PathLike[str] | None,
    stop: StopSignal,
    variant: str | None = None,
    arguments: Sequence[str] = (),
    hooks: Any = None,
    reuse: bool = True,
) -> pathlib.Path:
    """Train an experiment, for the command line and for `train`; returns its folder.

    Args:
      experiment: with its variants.
      workdir: output folder; None: runs/NAME.
      stop: the signals' state.
      variant: train this variant alone, and write no table.
      arguments: of the command line, for the report.
      hooks: in place of the figures and the report.
      reuse: take over identical finished runs of the folders next to `workdir`.
    """
    # Imported here, so that --help and invalid arguments answer at once.
    from vit_jax.cli.hooks import ReportHooks
    from vit_jax.training import sweep

    folder = pathlib.Path(workdir or pathlib.Path("runs") / experiment.name).expanduser()
    sweep.run_sweep(
        experiment.name,
        sweep.make_variants(experiment.config, experiment.variants, set(experiment.given)),
        experiment.variants,
        experiment.published,
        folder,
        variant,
        stop,
        arguments,
        hooks or ReportHooks(),
        reuse,
    )
    return folder


def train(
    config: Experiment | Config | str | os.PathLike[str],
    workdir: str | os.PathLike[str] | None = None,
    reuse: bool = True,
) -> Results:
    """Train every variant and seed of an experiment, and write its table and report.

    Finished runs are not trained again; unfinished ones resume. Ctrl-C stops after the current
    step, saved; a second one stops at once.

    Args:
      config: of `load_config`, or its path; or a config made from `vit_jax.config.get_config()`,
        which trains as a single variant "base".
      workdir: folder of all outputs; None: runs/NAME.
      reuse: take over identical finished runs (same settings, data and seed) of the folders next
        to `workdir` instead of training them again.

    Returns:
      The results.

    Raises:
      UserError: a setting is invalid, or data or outputs cannot be read or written.
      KeyboardInterrupt: stopped by Ctrl-C; the same call resumes.
    """
    if isinstance(config, str | os.PathLike):
        config = load_config(config)
    elif not isinstance(config, Experiment):
        name = pathlib.Path(workdir or "experiment").absolute().name
        config = Experiment(name, config)
    with quiet_libraries(), StopSignal(owns_process=False) as stop:
        try:
            folder = run_experiment(config, workdir, stop, reuse=reuse)
        except SystemExit as stopped:
            if stopped.code != 128 + signal.SIGINT:
                raise
            raise KeyboardInterrupt("training stopped: the same call resumes") from None
    return Results.read(folder)
