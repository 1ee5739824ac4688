"""Run an experiment: train every variant and seed of a config, then write the report.

    python -m vit_jax.main --config=configs/cifar_patch.py
    python -m vit_jax.main --config=configs/cifar_patch.py --variant=patch_4
    python -m vit_jax.main --config=configs/cifar_patch.py --config.train.epochs=50
    python -m vit_jax.main --config=digits_patch
    python -m vit_jax.main --config=configs/cifar_vit.py --sweep-learning-rate

--config.SECTION.KEY=VALUE changes one setting. The same command run again resumes where it
stopped; finished runs are skipped.
"""

import dataclasses
import functools
import gc
import json
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import logging

import vit_jax
from vit_jax.cli import command
from vit_jax.config import Config
from vit_jax.config.loading import (
    Experiment,
    as_experiment,
    load_config,
    select_variants,
    sweep_learning_rate,
)
from vit_jax.config.reference import settings_help
from vit_jax.runtime.errors import Diverged, UserError, describe_error, suggest
from vit_jax.runtime.files import expand, read_json

if TYPE_CHECKING:
    import numpy as np

# JAX is imported where it is used, so that --help and a mistyped flag answer at once.


@dataclasses.dataclass(frozen=True, repr=False)
class Results:
    """The results of a sweep; in a notebook it shows its table.

    Attributes:
      workdir: with a folder VARIANT/seed_K for each run, results.md and report.html.
      experiment: its name.
      rows: of results.json, a dict per variant: "variant", "overrides", "num_params",
        "train_accuracy", "val_accuracy" and "test_accuracy" (each {"mean", "std", "values"},
        fractions; with data.multi_label, "train_map", "val_map" and "test_map" instead),
        "gflop_per_image", "pflop", "wall_seconds", "images_per_second"; rows that
        are compared with another have "difference" ({"from", "mean", "low", "high", "pairs"}), and
        those of different test images "test_images", a number that equal images share.
    """

    workdir: pathlib.Path
    experiment: str
    rows: list[dict]

    @classmethod
    def read(cls, workdir: str | os.PathLike[str]) -> "Results":
        """Read the results of a finished experiment; raises UserError if there are none."""
        from vit_jax.storage.run_folder import current_keys  # imports JAX

        folder = expand(workdir)
        try:
            found = json.loads((folder / "results.json").read_text())
        except (OSError, ValueError):
            raise UserError(f"{folder} holds no results.json of a finished experiment") from None
        return cls(folder, found["experiment"], [current_keys(row) for row in found["rows"]])

    @property
    def table(self) -> str:
        """The table in Markdown, best variant first or in a ladder's order; accuracies in %."""
        from vit_jax.report.table import results_table, sorted_rows  # matplotlib: half a second

        return results_table(sorted_rows({"rows": self.rows}))

    @property
    def best_run(self) -> pathlib.Path:
        """The folder of the run with the best validation accuracy or mAP, for `load_model`."""
        from vit_jax.evaluation.labels import score_of  # NumPy

        found = [run for row in self.rows for run in self._runs(row)]
        return max(found, key=lambda run: score_of(read_json(run / "summary.json"), "val"))

    def curves(self, metric: str) -> "dict[str, tuple[np.ndarray, np.ndarray]]":
        """Read the curves of a metric, to plot their mean and standard deviation over seeds.

        Args:
          metric: key of metrics.jsonl, such as "val/accuracy" or "train/loss".

        Returns:
          {variant: (epochs [k], values [seeds, k])}; epochs that all seeds of a variant logged.

        Raises:
          UserError: no run logged the metric.
        """
        import numpy as np

        from vit_jax.storage.writers import read_jsonl

        curves, known = {}, set()
        for row in self.rows:
            logs = [read_jsonl(run / "metrics.jsonl") for run in self._runs(row)]
            known |= {key for log in logs for entry in log for key in entry}
            seeds = [
                {entry["epoch"]: entry[metric] for entry in log if metric in entry} for log in logs
            ]
            epochs = sorted(set.intersection(*map(set, seeds))) if seeds else []
            values = [[seed[epoch] for epoch in epochs] for seed in seeds]
            curves[row["variant"]] = np.array(epochs), np.array(values)
        if metric not in known:
            logged = sorted(key for key in known if "/" in key)
            hint = suggest(metric, logged, f"use one of {', '.join(logged)}")
            raise UserError(f"metric={metric!r} was not logged; {hint}")
        return curves

    def _runs(self, row):
        """List the folders of a row's runs, by seed."""
        from vit_jax.storage.run_folder import run_path

        folders = (self.workdir / row["variant"]).glob("seed_*")
        numbers = [folder.name.removeprefix("seed_") for folder in folders]
        seeds = row.get("seeds", sorted(int(n) for n in numbers if n.isdigit()))  # earlier version
        return [run_path(self.workdir, row["variant"], seed) for seed in seeds]

    def __repr__(self) -> str:
        return f"{self.experiment} ({self.workdir})\n\n{self.table}"

    def _repr_markdown_(self) -> str:
        return f"**{self.experiment}**, report: `{self.workdir / 'report.html'}`\n\n{self.table}"


def train(
    config: Experiment | Config | str | os.PathLike[str],
    workdir: str | os.PathLike[str] | None = None,
    reuse: bool = True,
) -> Results:
    """Train every variant and seed of an experiment, and write its table and report.

    Finished runs are skipped; unfinished ones resume. Ctrl-C stops after the current step and saves
    a checkpoint; a second Ctrl-C stops immediately.

    Args:
      config: an Experiment of `load_config`, the path of a config file, or a config made from
        `vit_jax.config.get_config()`, which trains as a single variant "base".
      workdir: folder of all outputs; None: runs/NAME.
      reuse: reuse identical finished runs (same settings, data, seed and code) of the folders next
        to `workdir` instead of training them again.

    Raises:
      UserError: a setting is invalid, data or outputs cannot be read or written, or the loss of a
        variant became non-finite; `Results.read` has the results of the others.
      KeyboardInterrupt: stopped by Ctrl-C; the same call resumes.
    """
    from vit_jax.runtime.progress import quiet_libraries
    from vit_jax.runtime.signals import StopSignal

    name = _bare_name(workdir) if workdir else "experiment"
    experiment = as_experiment(config, name)
    folder = _folder_of(experiment, workdir)
    with quiet_libraries(), StopSignal(owns_process=False) as stop:
        try:
            _run_experiment(experiment, folder, stop, reuse)
            return Results.read(folder)
        except SystemExit as stopped:
            if stopped.code != 128 + signal.SIGINT:
                raise
            raise KeyboardInterrupt("training stopped: the same call resumes") from None


def _bare_name(workdir):
    """Name a config without a file after its folder, or as before if that was moved."""
    folder = expand(workdir).absolute()
    before = read_json(folder / "results.json")
    is_bare = [row["variant"] for row in before.get("rows", ())] == ["base"]
    return before["experiment"] if is_bare else folder.name


def _folder_of(experiment, workdir):
    """Name the output folder, by default runs/NAME."""
    return expand(workdir or pathlib.Path("runs") / experiment.name)


def _run_experiment(
    experiment, folder, stop, reuse, variant=None, arguments=(), hooks=None, began=None
):
    """Train an experiment, or one variant without a report."""
    from vit_jax.cli.hooks import ReportHooks
    from vit_jax.training.sweep import run_sweep
    from vit_jax.training.variants import make_variants

    run_sweep(
        experiment,
        make_variants(experiment.config, experiment.variants, set(experiment.given), variant),
        folder,
        stop,
        only=variant,
        arguments=arguments,
        hooks=hooks or ReportHooks(),
        reuse=reuse,
        began=began,
    )


def run(hooks: Any = None) -> None:
    """Run the command line; `hooks` replace the figures and the report.

    Exits with status 1 after an error, which is one line where the user can resolve it.
    """
    # Tracing allocates many objects that all stay alive: collecting took a second of each start.
    gc.set_threshold(100_000)
    if status := command.run(lambda: _run(sys.argv[1:], hooks), training=True):
        sys.exit(status)


def main(argv: Sequence[str]) -> int:
    """Train with these arguments; exit with the status of the error if that fails."""
    sys.argv[1:] = argv
    run()
    return 0


def _make_parser():
    parser = command.Parser(__doc__, prog="python -m vit_jax.main", epilog=settings_help())
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE[:PROFILE]",
        help="config file of the experiment, or name of a bundled config; PROFILE is the argument "
        "of its get_config()",
    )
    parser.add_argument("--workdir", help="output folder; default: runs/<config's name>")
    parser.add_argument("--variant", help="train only this variant, and write no report")
    parser.add_argument(
        "--variants", metavar="NAME,...", help="train and compare only these variants"
    )
    parser.add_argument(
        "--sweep-learning-rate",
        action="store_true",
        help="compare the learning rate with a third and three times of it, for every variant, in "
        "runs/NAME_learning_rate, or for that of --variant, in runs/NAME_VARIANT_learning_rate",
    )
    parser.add_argument(
        "--no-reuse",
        action="store_true",
        help="train every run, even if an identical finished one lies next to the output folder",
    )
    return parser


def _run(arguments, hooks):
    options, overrides = _make_parser().parse_with_overrides(arguments)
    paths = options.config or []
    if len(paths) != 1:
        problem = f"given {len(paths)} times" if paths else "missing"
        raise UserError(f"--config=FILE is {problem}: give one, such as configs/cifar_patch.py")
    if options.workdir == "":
        raise UserError("--workdir is empty: give a folder, or omit --workdir for runs/NAME")
    experiment, variant = _load(paths[0], overrides, options)
    logging.use_absl_handler()
    sys.unraisablehook = functools.partial(_print_unraisable, sys.unraisablehook)
    from vit_jax.runtime import processes
    from vit_jax.runtime.signals import StopSignal

    def print_choices():
        if options.sweep_learning_rate and variant is None and processes.is_first():
            print("\n".join(_describe_choices(Results.read(folder).rows)), flush=True)

    try:
        folder, reuse = _folder_of(experiment, options.workdir), not options.no_reuse
        stop, began = StopSignal(), vit_jax.STARTED
        try:
            _run_experiment(experiment, folder, stop, reuse, variant, arguments, hooks, began)
        except Diverged:  # the results have the other variants
            print_choices()
            raise
        print_choices()
    except Exception as error:
        if processes.count() == 1:
            raise
        message = describe_error(error, training=True)
        if message is None and processes.is_loss(error):
            message = processes.LOST
        elif message is None:
            traceback.print_exc()
            message = "this process failed, see the traceback above"
        processes.leave(message)


def _load(path, overrides, options):
    """Load the experiment of the options; return it and the only variant to train, or None."""
    experiment, variant = load_config(path, overrides), options.variant
    if options.variants is not None:
        if variant is not None:
            raise UserError("give --variant or --variants, not both")
        experiment = select_variants(experiment, options.variants.split(","))
    if not options.sweep_learning_rate:
        return experiment, variant
    if variant in experiment.variants:  # else it is one of the sweep
        experiment = load_config(path, overrides, variant)
        experiment = dataclasses.replace(experiment, name=f"{experiment.name}_{variant}")
        variant = None
    return sweep_learning_rate(experiment), variant


def _describe_choices(rows):
    """Describe the learning rate with the best validation accuracy of each swept variant."""
    from vit_jax.evaluation.labels import METRICS, metric_of, score_of  # NumPy

    groups = {}
    for row in rows:
        groups.setdefault(row["variant"].rpartition("lr_")[0].rstrip("_"), []).append(row)
    for name, group in groups.items():
        rates = sorted(row["overrides"]["optim.learning_rate"] for row in group)
        middle = rates[len(rates) // 2]  # the config's own, which is kept if none is better
        rate, best = max(
            ((row["overrides"]["optim.learning_rate"], row) for row in group),
            key=lambda found: (score_of(found[1], "val")["mean"], found[0] == middle),
        )
        text = f"{name}: " * bool(name) + (
            f"optim.learning_rate={rate:g} has the best validation {METRICS[metric_of(best)]}, "
            f"{score_of(best, 'val')['mean']:.4f}"
        )
        # If the largest of the three is missing, it has diverged: this is not the end of the range.
        if rate == min(rates) or (rate == max(rates) and len(rates) > 2):
            text += "; it is at the end of the range: sweep again from there, with "
            text += f"--variant={name} " * bool(name) + f"--config.optim.learning_rate={rate:g}"
            if end := best["overrides"].get("optim.end_learning_rate"):
                text += f" --config.optim.end_learning_rate={end:g}"
        yield text


def _print_unraisable(hook, failure):
    # If one write of a checkpoint fails, orbax closes its event loop, and later writes raise this.
    if str(failure.exc_value) != "Event loop is closed":
        hook(failure)
