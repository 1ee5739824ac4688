"""Time of a run: wall clock, images per second, the progress bar and the length of a call."""

import math
import time

import jax

import vit_jax
from vit_jax.runtime import processes
from vit_jax.runtime.progress import CompileTimes, Progress, say
from vit_jax.training.setup import Lengths

CALL_SECONDS = 1.0  # of a call that takes several steps; signals are answered after it


class Clock:
    """Measures a run.

    Attributes:
      step_seconds: duration of a step; infinite until it was measured.
    """

    def __init__(
        self,
        title: str,
        step: int,
        wall_seconds: float,
        lengths: Lengths,
        num_seeds: int,
        compile_times: CompileTimes,
    ):
        """Start after `step` steps and `wall_seconds` of training; the first process shows it."""
        self._title, self._lengths = title, lengths
        self._num_seeds, self._active = num_seeds, processes.is_first()
        self._began, self._before = time.monotonic(), wall_seconds
        self._window_start, self._window_step = None, step
        self.step_seconds = math.inf
        self._compile_times = compile_times
        self._progress = Progress(title, step, lengths.total, self._active)

    def wall_seconds(self) -> float:
        """Return the seconds of training; seeds at once share them, so that theirs add up."""
        return self._before + (time.monotonic() - self._began) / self._num_seeds

    def max_steps(self, step: int) -> int:
        """Return how many steps one call may take, which ends at every log entry."""
        every = (self._lengths.log_every, self._lengths.eval_every)
        to_entry = min(n - step % n for n in every)
        return min(to_entry, int(CALL_SECONDS / self.step_seconds))

    def tick(self, step: int, state) -> None:
        """Note that a call has ended at `step`; waits for `state` where that is measured."""
        if self._window_start is None:  # the first call compiles: keep it out of images/s
            jax.block_until_ready(state)
            self.restart_window(step)
            self.show(step, "compiled")
            self._print_start()
        elif self.step_seconds == math.inf:
            jax.block_until_ready(state)
            seconds = time.monotonic() - self._window_start
            self.step_seconds = seconds / (step - self._window_step)

    def images_per_second(self, step: int, batch_size: int) -> float | None:
        """Return the speed of one seed since the window began; None without a step in it."""
        count = step - self._window_step
        if self._window_start is None or not count:
            return None
        seconds = time.monotonic() - self._window_start
        self.step_seconds = seconds / count
        return count * batch_size / seconds

    def restart_window(self, step: int) -> None:
        """Begin a new window of measuring speed."""
        self._window_start, self._window_step = time.monotonic(), step

    def show(self, step: int, text: str, line: bool = False) -> None:
        """Show `text` beside the progress; `line`: on a line of its own that stays."""
        self._progress.update(step, text, line)

    def _print_start(self):
        spent = ", ".join(
            f"{what} {seconds:.1f}" for what, seconds in self._compile_times.stop().items()
        )
        if self._active:
            seconds = time.monotonic() - vit_jax.STARTED
            say(
                f"{self._title}: first step after {seconds:.1f} s from the start of the program "
                f"(of it {spent})"
            )

    def close(self) -> None:
        """End the progress bar."""
        self._progress.close()
