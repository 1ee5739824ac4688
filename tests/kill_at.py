"""Run `vit_jax.main` and send this process a signal at a given moment.

python tests/kill_at.py SIGNAL MOMENT STEP ARGS...: MOMENT is "step" (after training step STEP),
"row" (when the validation row of STEP has been written), "save" (in the background of the save at
STEP) or "eval" (in the validation at STEP).

In a multi-process run, it also prints "wrote PATH" for every file opened for writing, and sleeps
after SIGTERM, which JAX propagates within a second. SIGKILL waits for a save in the background: JAX
aborts processes that wait for a killed one there, after 100 seconds.
"""

import os
import pathlib
import signal
import sys
import time

from vit_jax import main
from vit_jax.cli.hooks import ReportHooks

NUMBER, MOMENT, STEP = signal.Signals[sys.argv[1]], sys.argv[2], int(sys.argv[3])
SEVERAL = "JAX_NUM_PROCESSES" in os.environ
WORKDIR = pathlib.Path(next(a for a in sys.argv if a.startswith("--workdir="))[10:])
EVENTS = {"step": "step", "rows": "row", "saving": "save", "evaluate": "eval"}


class Killer(ReportHooks):
    """Send the signal at the given moment."""

    def on_evaluation(self, run, trainer, variables, count):
        """Flush the log, so that it is on disk before the signal."""
        super().on_evaluation(run, trainer, variables, count)
        if MOMENT == "row":
            run.writer.flush()

    def on_event(self, event, step):
        """Send the signal."""
        if EVENTS.get(event) == MOMENT and step == STEP:
            while SEVERAL and NUMBER == signal.SIGKILL and any(WORKDIR.rglob("*checkpoint-tmp")):
                time.sleep(0.05)
            os.kill(os.getpid(), NUMBER)
        if SEVERAL and event == "step" and step >= STEP:
            time.sleep(0.1)


def _print_written_files(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & os.O_ACCMODE:
        print("wrote", arguments[0], file=sys.stderr)


sys.argv[1:] = sys.argv[4:]
if SEVERAL:
    sys.addaudithook(_print_written_files)
main.run(Killer())
