"""Progress bars, console lines, and the time until the first step."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator

import jax
from absl import logging
from tqdm import tqdm


class Bar(tqdm):
    """A tqdm bar for one process with several threads."""


# tqdm's own lock has a semaphore for several processes. If the program exits by an error, Python
# warns that it leaked, where processes are not forked (https://github.com/tqdm/tqdm/pull/1677).
Bar.set_lock(threading.RLock())


def print_line(text: str) -> None:
    """Print a line, above the progress bar where there is one."""
    Bar.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the logs of JAX and orbax."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class StartTimes:
    """Measures the start of a run, and its parts: loading data, tracing, lowering, compiling.

    JAX reports the latter three itself, until `close`.
    """

    _EVENTS = {
        "/jax/core/compile/jaxpr_trace_duration": "tracing",
        "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
        "/jax/core/compile/backend_compile_duration": "compiling",  # or reading the cache
    }

    def __init__(self, origin: str, began: float | None = None):
        """Start at `began` of `time.monotonic`, by default now; `origin` names what started."""
        self._origin, self._began = origin, time.monotonic() if began is None else began
        self._spans = {what: [] for what in ("loading", *self._EVENTS.values())}
        jax.monitoring.register_event_duration_secs_listener(self._add)
        self._listens = True

    def _add(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if what := self._EVENTS.get(event):
            self._spans[what].append((time.monotonic() - duration_secs, time.monotonic()))

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Count the time of the body as loading."""
        began = time.monotonic()
        yield
        self._spans["loading"].append((began, time.monotonic()))

    def close(self) -> None:
        """Stop measuring; may be called again."""
        if self._listens:
            jax.monitoring.unregister_event_duration_listener(self._add)
            self._listens = False

    def totals(self) -> dict[str, float]:
        """Compute the seconds of each part.

        Overlapping spans count once: threads compile in parallel, and the tracing of a function
        contains that of the functions it calls.
        """
        totals = {}
        for what, spans in self._spans.items():
            totals[what], reached = 0.0, -math.inf
            for start, end in sorted(spans):
                totals[what] += max(0.0, end - max(start, reached))
                reached = max(reached, end)
        return totals

    def __str__(self) -> str:
        parts = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in self.totals().items())
        seconds = time.monotonic() - self._began
        return f"{seconds:.1f} s from the start of the {self._origin} ({parts})"


class Progress:
    """A bar on a terminal; elsewhere, a plain line at most every `line_seconds`."""

    def __init__(
        self,
        name: str,
        start: int,
        total: int,
        active: bool,
        unit: str = "step",
        line_seconds: float = 15.0,
        leave: bool = False,
    ):
        """Show `total` units, `start` of them done; print nothing unless `active`.

        `leave`: keep the bar on the terminal once it is closed.
        """
        self._title, self._total, self._line_seconds = f"{name} {unit}", total, line_seconds
        self._active, self._last_line = active, time.monotonic()
        self._start = self._done = start
        self._first = None  # (step, time) of the first step done, when compilation was over
        self._bar = None
        if active and sys.stderr.isatty():
            options = {"initial": start, "desc": name, "unit": unit, "leave": leave}
            self._bar = Bar(total=total, dynamic_ncols=True, **options)

    def update(self, step: int, text: str, line: bool = False) -> None:
        """Show `text` at `step`; with `line`, also as a line that stays."""
        now, left = time.monotonic(), ""
        is_first = self._first is None and step > self._start
        if is_first:  # compilation is over
            self._first = (step, now)
        if self._bar is not None:
            if is_first:
                self._bar.initial, self._bar.start_t = step, time.time()
            self._bar.n = step
            self._bar.set_postfix_str(text)
        else:
            line = line or now - self._last_line >= self._line_seconds
            start, began = self._first or (step, now)
            if step > start:
                seconds = (now - began) / (step - start) * (self._total - step)
                left = f", {tqdm.format_interval(seconds)} left"
        if line and self._active:
            self._last_line = now
            print_line(f"{self._title} {step}/{self._total}: {text}{left}")

    def advance(self, count: int) -> None:
        """Count `count` more units as done."""
        self._done += count
        self.update(self._done, "done")

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
