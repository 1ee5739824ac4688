"""Out-of-memory errors, and how the C library manages freed memory."""

import ctypes
import functools

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed() -> None:
    """Make glibc keep freed memory for the next step; call it before threads are started.

    By default, glibc returns a step's buffers, some hundred MB, to the kernel after every step:
    clearing their pages again took a fifth of ResNet18's step on a CPU. All threads share one
    arena, because the others cannot grow beyond 64 MiB.
    """
    if mallopt := _function("mallopt"):
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def release_freed() -> None:
    """Return free memory to the kernel.

    Call it once in many steps: fragmentation grows the arena, by half in a hundred steps, but the
    next step takes up to 20 ms longer.
    """
    if trim := _function("malloc_trim"):
        trim(0)


def ran_out(error: BaseException) -> bool:
    """Check whether an exception means that this machine's or a device's memory is full."""
    import jax  # not before the entry point has set its environment

    on_device = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return on_device or isinstance(error, MemoryError)


@functools.cache  # each CDLL is garbage that refers to itself
def _function(name):
    return getattr(ctypes.CDLL(None), name, None)  # None without glibc
