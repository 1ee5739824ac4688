"""What is freed is kept for the next step, in all threads, until it is handed back."""

import ctypes

import pytest

PROGRAM = """
import os, pathlib, threading
from vit_jax import memory

def resident():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

memory.keep_freed()
before = resident()
thread = threading.Thread(target=lambda: b"x" * 100_000_000)  # more than a thread's own pool has
thread.start()
thread.join()
kept = resident() - before
memory.hand_back()
print(kept, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's alone is told")
def test_freed_memory_is_kept_until_handed_back(command):
    done = command("-c", PROGRAM)
    kept, left = map(int, done.stdout.split())
    assert kept > 90_000_000
    assert left < 30_000_000


def test_handing_back_leaves_no_garbage(command):
    program = "import gc; from vit_jax import memory; memory.hand_back(); gc.collect(); "
    done = command("-c", program + "[memory.hand_back() for _ in range(3)]; print(gc.collect())")
    assert int(done.stdout) == 0
