"""Ctrl-C is acknowledged immediately, also during compiled code; handlers are restored."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from vit_jax.runtime.signals import NOTICE, StopSignal

# A single call of C code, for which Python's handlers wait.
STEP = """
import hashlib
from vit_jax.runtime.signals import StopSignal
with StopSignal() as stop, stop.deferred():
    print("step", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", ROUNDS)
    print("done", stop.asked(), flush=True)
"""


def start(rounds, step=STEP):
    process = subprocess.Popen(
        [sys.executable, "-c", step.replace("ROUNDS", str(rounds))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "step\n"
    if step == STEP:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == f"{NOTICE}\n"
    return process


def test_the_notice_comes_before_the_step_ends():
    with start(rounds=6_000_000) as process:
        noticed = time.monotonic()
        assert process.stdout is not None and process.stdout.readline() == "done True\n"
        assert time.monotonic() - noticed > 0.2
        assert process.wait(30) == 128 + signal.SIGINT


def test_a_second_ctrl_c_aborts_a_step():
    with start(rounds=2_000_000_000) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT


@pytest.mark.parametrize("contexts", ["stop.deferred(), stop.immediate()", "stop.immediate()"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_within_seconds_where_nothing_can_be_lost(number, contexts):
    with start(2_000_000_000, STEP.replace("stop.deferred()", contexts)) as process:
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(30) == 128 + number and time.monotonic() - began < 10
        assert process.stdout is not None
        stopped = f"stopped by {number.name}; run the same command to resume\n"
        # Without `deferred`, Python's handler may come before the call of C code.
        assert process.stdout.read().endswith(stopped) or "deferred" not in contexts


def test_handlers_are_restored_and_a_second_signal_is_immediate():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as stopped, StopSignal(owns_process=False) as stop:
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked() and stop.number == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("a second signal was deferred")
    assert stopped.value.code == 128 + signal.SIGINT
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
