"""Time of a run: wall clock, images per second, the progress bar and the length of a call."""

import math
import time

import jax

from vit_jax.runtime import memory, processes
from vit_jax.runtime.progress import Progress, StartTimes, print_line
from vit_jax.training.setup import Lengths

CALL_SECONDS = 1.0  # of a call that takes several steps; signals are answered after it
SILENT_SECONDS = 15.0  # between log entries, after which the step is shown


class Clock:
    """Measures a run."""

    def __init__(self, title: str, lengths: Lengths, num_seeds: int, start: StartTimes):
        self._title, self._lengths, self._num_seeds = title, lengths, num_seeds
        self._start, self._active = start, processes.is_first()
        self._step_seconds = math.inf  # until it was measured
        self._progress = Progress(title, 0, 0, False)  # until `begin`

    def begin(self, step: int, wall_seconds: float) -> None:
        """Begin after `step` steps and `wall_seconds` of training."""
        self._began, self._before = time.monotonic(), wall_seconds
        self._window_start, self._window_step = None, step
        self._progress = Progress(self._title, step, self._lengths.total, self._active, leave=True)

    def show(self, step: int, text: str, line: bool = False) -> None:
        """Show `text` on the progress bar; with `line`, also as a line that stays."""
        self._shown = time.monotonic()
        self._progress.update(step, text, line)

    def close(self) -> None:
        """Close the progress bar, and stop measuring the start."""
        self._start.close()
        self._progress.close()

    def wall_seconds(self) -> float:
        """Compute the seconds of training; vectorised seeds share them, so that theirs add up."""
        return self._before + (time.monotonic() - self._began) / self._num_seeds

    def max_steps(self, step: int) -> int:
        """Compute how many steps one call may take, which ends at every log entry."""
        lengths = self._lengths
        until = min(n - step % n for n in (lengths.log_every, lengths.eval_every))
        if lengths.has_patch_dropout(step):  # the last steps are another program
            until = min(until, lengths.patch_drop - step)
        return min(until, int(CALL_SECONDS / self._step_seconds))

    def steps_in(self, seconds: float) -> int:
        """Estimate the steps of so many seconds: 0 without any left, else at least 1."""
        return max(1, int(min(2**30, seconds / self._step_seconds))) if seconds > 0 else 0

    def tick(self, step: int, state) -> None:
        """Note that a call has ended at `step`; waits for `state` where that is measured."""
        if self._window_start is None:  # the first call compiles: keep it out of images/s
            jax.block_until_ready(state)
            self.restart_window(step)
            self.show(step, "compiled")
            self._start.close()
            if self._active:
                print_line(f"{self._title}: first step after {self._start}")
        elif self._step_seconds == math.inf:
            jax.block_until_ready(state)
            seconds = time.monotonic() - self._window_start
            self._step_seconds = seconds / (step - self._window_step)
        elif time.monotonic() - self._shown > SILENT_SECONDS:
            jax.block_until_ready(state)
            self.show(step, "training")

    def images_per_second(self, step: int, batch_size: int) -> float | None:
        """Compute the speed of all seeds since the window began; None without a step in it."""
        count = step - self._window_step
        if self._window_start is None or not count:
            return None
        seconds = time.monotonic() - self._window_start
        self._step_seconds = seconds / count
        return count * batch_size * self._num_seeds / seconds

    def restart_window(self, step: int) -> None:
        """Begin a new window of measuring speed, with freed memory returned to the kernel."""
        memory.release_freed()
        self._window_start, self._window_step = time.monotonic(), step
