"""Callbacks of a sweep: what the command line adds to training, and what tests observe."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any


class Hooks:
    """Callbacks that do nothing; subclasses override what they need.

    In a run of several processes every process calls them, in the same order.
    """

    def on_event(self, event: str, step: int) -> None:
        """Observe a run.

        Args:
          event: "load_data", "setup", "restore", "compile", "evaluate", "save" or
            "final_evaluation", each before it begins; "rows" when validation metrics are written;
            "saving" when a save has begun in the background; "step" after each call of the
            training step.
          step: of the run; 0 before it is known.
        """

    def on_evaluation(
        self, run: Any, trainer: Any, variables: Callable[[], dict], count: int
    ) -> None:
        """Log figures of a run after an evaluation.

        Args:
          run: `run_outputs.RunOutputs`.
          trainer: `loop.Trainer`, which has the setup, the step and the validation images.
          variables: copies the evaluated variables to the host.
          count: evaluations up to this one.
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
          results: the contents of results.json.
          summaries: {variant: summary.json of each seed}.
          published: {source: the order of variants that it found}.
          configs: {variant: resolved config}.
          arguments: of the command line.
        """
