"""Runs `vit_jax.main` and sends this process a signal at a chosen moment.

python tests/kill_at.py SIGNAL MOMENT STEP ARGS...: MOMENT is "step" (after training step STEP),
"row" (when the validation row of STEP has been written), "save" (in the background of the save at
STEP) or "eval" (in the validation at STEP).

As one of several processes, it also prints "wrote PATH" for every file that it opens to write, and
takes its time after SIGTERM, which JAX passes on within a second.
"""

import os
import signal
import sys
import time

from vit_jax import main
from vit_jax.training import loop

NUMBER, MOMENT, STEP = signal.Signals[sys.argv[1]], sys.argv[2], int(sys.argv[3])
SEVERAL = "JAX_NUM_PROCESSES" in os.environ


def _kill():
    os.kill(os.getpid(), NUMBER)


def _tell_what_is_written(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & os.O_ACCMODE:
        print("wrote", arguments[0], file=sys.stderr)


def _exit_if_stopped(run):
    if MOMENT == "step" and run.step == STEP:
        _kill()
    if SEVERAL and run.step >= STEP:
        time.sleep(0.1)
    original["exit"](run)


def _save(run, *args, **kwargs):
    if MOMENT == "row" and run.step == STEP:
        for seed in run.seeds:
            seed.writer.flush()
        _kill()
    original["save"](run, *args, **kwargs)
    if MOMENT == "save" and run.step == STEP:
        _kill()


def _evaluate(run):
    if MOMENT == "eval" and run.step == STEP:
        _kill()
    original["evaluate"](run)


original = {
    "exit": loop._Run._exit_if_stopped,
    "save": loop._Run._save,
    "evaluate": loop._Run._evaluate_and_save,
}
loop._Run._exit_if_stopped = _exit_if_stopped
loop._Run._save = _save
loop._Run._evaluate_and_save = _evaluate
sys.argv[1:] = sys.argv[4:]
if SEVERAL:
    sys.addaudithook(_tell_what_is_written)
main.run()
