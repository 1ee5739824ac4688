"""Callbacks of a sweep: what the command line adds to training, and what tests observe."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any


class Hooks:
    """Callbacks of training, which do nothing unless they are overridden.

    Every process calls `on_event` and `on_evaluation`, in the same order; the first one alone calls
    the others.
    """

    def on_event(self, event: str, step: int) -> None:
        """Observe a run at `step`, 0 before it is known.

        The events "load_data", "setup", "restore", "compile", "evaluate", "save" and
        "final_evaluation" come before what they name; "rows" when validation metrics are written;
        "saving" when a save has begun in the background; "step" after each call of the training
        step.
        """

    def on_evaluation(
        self, run: Any, trainer: Any, variables: Callable[[], dict], count: int
    ) -> None:
        """Log figures of a run (RunOutputs) of a Trainer after its evaluation number `count`.

        `variables` copies the evaluated variables to the host.
        """

    def on_run_end(self, folder: pathlib.Path) -> None:
        """Draw the figures of a finished run."""

    def on_sweep_end(
        self,
        workdir: pathlib.Path,
        results: dict,
        summaries: dict[str, list[dict]],
        published: dict[str, str],
        configs: dict,
        arguments: Sequence[str],
    ) -> None:
        """Write the report of a finished sweep.

        Args:
          workdir: of the sweep.
          results: contents of results.json.
          summaries: {variant: summary.json of each seed}.
          published: {source: the order of variants that it found}.
          configs: {variant: resolved config}.
          arguments: of the command line.
        """
