"""Memory that runs out, and what the C library does with what was freed."""

import ctypes
import functools

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed() -> None:
    """Has the C library keep what is freed; call it before threads are started.

    A step's buffers are some hundred MB, which glibc would give to the kernel after every step and
    ask for again: a fifth of ResNet18's step on a CPU went into clearing pages. All threads share
    one pool, since only the first one grows beyond 64 MiB. Its lock is no loss on a CPU: few
    threads ask for memory while a step computes.
    """
    if mallopt := _function("mallopt"):
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def hand_back() -> None:
    """Gives the kernel what is free.

    Call it once in many steps, the next of which takes up to 20 ms longer: small objects in places
    that larger ones have left make the pool grow, by half in a hundred steps.
    """
    if trim := _function("malloc_trim"):
        trim(0)


def ran_out(error: BaseException) -> bool:
    """Check whether an exception means that this machine's or a device's memory is full."""
    import jax  # not before its settings are made

    on_device = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return on_device or isinstance(error, MemoryError)


@functools.cache  # each CDLL is garbage that refers to itself
def _function(name):
    return getattr(ctypes.CDLL(None), name, None)  # None on other systems than glibc's
