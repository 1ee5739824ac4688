"""What is freed is kept for the next step, in all threads, until it is handed back."""

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
thread = threading.Thread(target=lambda: b"x" * 100_000_000)  # more than a thread's own pool has
thread.start()
thread.join()
kept = resident() - before
memory.release_freed()
print(kept, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's alone is told")
def test_freed_memory_is_kept_until_handed_back(command):
    done = command("-c", PROGRAM)
    kept, left = map(int, done.stdout.split())
    assert kept > 90_000_000
    assert left < 30_000_000


def test_handing_back_leaves_no_garbage(command):
    program = (
        "import gc; from vit_jax.runtime import memory; memory.release_freed(); gc.collect(); "
    )
    done = command(
        "-c", program + "[memory.release_freed() for _ in range(3)]; print(gc.collect())"
    )
    assert int(done.stdout) == 0


OUT = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")


def test_memory_that_ran_out_is_told_in_one_sentence(capsys):
    sentence = "out of memory on this machine or a device"
    for error, reason in (
        (OUT, "Out of memory allocating 9 bytes."),
        (MemoryError(), "MemoryError"),
    ):

        def fail(error=error):
            raise error

        assert command.run(fail) == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and sentence in told and f"{reason})" in told
        assert "lower train.batch_size" in str(describe_error(error, training=True))
    assert not memory.ran_out(jax.errors.JaxRuntimeError("INTERNAL: a fault"))
    assert not memory.ran_out(ValueError("RESOURCE_EXHAUSTED: of a disk"))


def test_at_its_end_a_run_holds_no_more_than_it_evaluates(monkeypatch, tmp_path):
    """A state that takes more than half of a device could be trained, and then not evaluated."""
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    config = make_config(model__hidden_size=128, train__batch_size=512, optim__ema_decay=0.9)
    data, held = load_data(config.data, mesh), []

    def evaluate(*args, evaluate=loop.evaluate, **options):
        held.append(bytes_on_devices())
        return evaluate(*args, **options)

    def bytes_on_devices():
        return sum(x.nbytes for x in jax.live_arrays())

    monkeypatch.setattr(loop, "evaluate", evaluate)
    gc.collect()  # what other tests have left
    before = bytes_on_devices()
    (summary,) = loop.train(
        make_steps(config, data, mesh, multi_step=None), data, {0: tmp_path}, "base", Stop()
    )
    weights = 4 * summary["num_params"]  # of a state that has them four times
    assert [(size - before) / weights for size in held] == pytest.approx([1, 1, 1], abs=0.1)
