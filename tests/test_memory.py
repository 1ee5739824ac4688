"""Freed memory is retained for the next step, in all threads, until it is returned."""

import ctypes
import gc

import jax
import pytest
from jax.sharding import AxisType
from tiny_configs import make_config
from tiny_steps import make_steps
from tiny_stop import Stop

from vit_jax.cli import command
from vit_jax.data import load_data
from vit_jax.runtime import memory
from vit_jax.runtime.errors import describe_error
from vit_jax.training import loop

PROGRAM = """
import os, pathlib, threading
from vit_jax.runtime import memory

def resident():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

memory.keep_freed()
before = resident()
thread = threading.Thread(target=lambda: b"x" * 100_000_000)  # more than a thread's memory pool
thread.start()
thread.join()
retained = resident() - before
memory.release_freed()
print(retained, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has mallopt")
def test_freed_memory_is_retained_until_returned(command):
    done = command("-c", PROGRAM)
    retained, left = map(int, done.stdout.split())
    assert retained > 90_000_000
    assert left < 30_000_000


def test_returning_memory_leaves_no_garbage(command):
    program = (
        "import gc; from vit_jax.runtime import memory; memory.release_freed(); gc.collect(); "
    )
    done = command(
        "-c", program + "[memory.release_freed() for _ in range(3)]; print(gc.collect())"
    )
    assert int(done.stdout) == 0


OUT = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")


def test_out_of_memory_is_a_single_line_error(capsys):
    message = "out of memory on this machine or a device"
    for error, reason in (
        (OUT, "Out of memory allocating 9 bytes."),
        (MemoryError(), "MemoryError"),
    ):

        def fail(error=error):
            raise error

        assert command.run(fail) == 1
        output = capsys.readouterr().err
        assert output.count("\n") == 1 and message in output and f"{reason})" in output
        assert "lower train.batch_size" in str(describe_error(error, training=True))
    assert not memory.ran_out(jax.errors.JaxRuntimeError("INTERNAL: a fault"))
    assert not memory.ran_out(ValueError("RESOURCE_EXHAUSTED: of a disk"))


def test_the_final_evaluation_holds_only_the_evaluated_weights(monkeypatch, tmp_path):
    """A state of more than half of the device memory could otherwise not be evaluated."""
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    config = make_config(model__hidden_size=128, train__batch_size=512, optim__ema_decay=0.9)
    data, held = load_data(config.data, mesh), []

    def evaluate(*args, evaluate=loop.evaluate, **options):
        held.append(bytes_on_devices())
        return evaluate(*args, **options)

    def bytes_on_devices():
        return sum(x.nbytes for x in jax.live_arrays())

    monkeypatch.setattr(loop, "evaluate", evaluate)
    gc.collect()  # left over from other tests
    before = bytes_on_devices()
    (summary,) = loop.train(
        make_steps(config, data, mesh, multi_step=None), data, {0: tmp_path}, "base", Stop()
    )
    weights = 4 * summary["num_params"]  # the state has four copies
    assert [(size - before) / weights for size in held] == pytest.approx([1, 1, 1], abs=0.1)
