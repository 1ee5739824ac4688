"""Time of a run: wall clock, images per second, the progress bar and the length of a call."""

import math
import time

import jax

import vit_jax
from vit_jax.runtime import memory, processes
from vit_jax.runtime.progress import CompileTimes, Progress, say
from vit_jax.training.setup import Lengths

CALL_SECONDS = 1.0  # of a call that takes several steps; signals are answered after it


class Clock:
    """Measures a run, and from now on the time spent compiling."""

    def __init__(self, title: str, lengths: Lengths, num_seeds: int):
        self._title, self._lengths, self._num_seeds = title, lengths, num_seeds
        self._compile_times, self._active = CompileTimes(), processes.is_first()
        self._step_seconds = math.inf  # until it was measured
        self._progress = None

    def begin(self, step: int, wall_seconds: float) -> None:
        """Begin after `step` steps and `wall_seconds` of training."""
        self._began, self._before = time.monotonic(), wall_seconds
        self._window_start, self._window_step = None, step
        self._progress = Progress(self._title, step, self._lengths.total, self._active)
        self.show = self._progress.update

    def close(self) -> None:
        """End the progress bar and the measurement of compile times."""
        self._compile_times.stop()
        if self._progress is not None:
            self._progress.close()

    def wall_seconds(self) -> float:
        """Compute the seconds of training; vectorised seeds share them, so that theirs add up."""
        return self._before + (time.monotonic() - self._began) / self._num_seeds

    def max_steps(self, step: int) -> int:
        """Compute how many steps one call may take, which ends at every log entry."""
        to_entry = min(n - step % n for n in (self._lengths.log_every, self._lengths.eval_every))
        return min(to_entry, int(CALL_SECONDS / self._step_seconds))

    def tick(self, step: int, state) -> None:
        """Note that a call has ended at `step`; waits for `state` where that is measured."""
        if self._window_start is None:  # the first call compiles: keep it out of images/s
            jax.block_until_ready(state)
            self.restart_window(step)
            self.show(step, "compiled")
            self._print_start()
        elif self._step_seconds == math.inf:
            jax.block_until_ready(state)
            seconds = time.monotonic() - self._window_start
            self._step_seconds = seconds / (step - self._window_step)

    def images_per_second(self, step: int, batch_size: int) -> float | None:
        """Compute the speed of one seed since the window began; None without a step in it."""
        count = step - self._window_step
        if self._window_start is None or not count:
            return None
        seconds = time.monotonic() - self._window_start
        self._step_seconds = seconds / count
        return count * batch_size / seconds

    def restart_window(self, step: int) -> None:
        """Begin a new window of measuring speed, with freed memory returned to the kernel."""
        memory.hand_back()
        self._window_start, self._window_step = time.monotonic(), step

    def _print_start(self):
        times = self._compile_times.stop()
        spent = ", ".join(f"{what} {seconds:.1f}" for what, seconds in times.items())
        after = f"first step after {time.monotonic() - vit_jax.STARTED:.1f} s"
        if self._active:
            say(f"{self._title}: {after} from the start of the program (of it {spent})")
