"""The several processes of one run: how they start, wait for one another, stop and end."""

import collections
import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
from collections.abc import Collection, Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # whose client, known to orbax too, has no public name
from jax.experimental import multihost_utils

from vit_jax.runtime.errors import UserError, single_line

LOST = (
    "another process of this run has ended or cannot be reached: give the same command to all "
    "of them again, to go on from the last checkpoint"
)
_SIGN_OF_LIFE_SECONDS = 100  # a process that gave none for so long is taken for dead
_PATIENCE_SECONDS = 24 * 3600  # with a process that lives, and prepares data or draws
_barriers = itertools.count()


def join() -> None:
    """Finds the other processes; call it before anything touches the devices.

    Raises UserError if they are not known.
    """
    number, rank = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(
            num_processes=int(number) if number else None,
            process_id=int(rank) if rank else None,
            heartbeat_timeout_seconds=_SIGN_OF_LIFE_SECONDS,
        )
    except ValueError as error:
        raise UserError(
            f"sharding.distributed=True, but the other processes are not known ({error}): set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from None
    # A process that hears nothing more from the first one, or that another is dead, is aborted by
    # a thread of JAX, after a page of its own text; here it gets a last sentence and a status.
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    if not is_first():  # all would say the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number):
    os.write(2, f"\nerror: {LOST}\n".encode())
    os._exit(1)


def count() -> int:
    """Returns the number of processes."""
    return distributed.global_state.num_processes


def is_first() -> bool:
    """Returns whether this process is the one that prints and writes files."""
    return distributed.global_state.process_id == 0


def cores_each(cores: Collection[int]) -> int:
    """Returns how many of this machine's `cores` are for each process, the same in all.

    Processes that may run on the same cores share them.
    """
    if count() == 1:
        return len(cores)
    client: Any = distributed.global_state.client
    own = " ".join(f"{socket.gethostname()}/{core}" for core in cores)
    client.key_value_set(f"cores/{distributed.global_state.process_id}", own)
    told = [
        client.blocking_key_value_get(f"cores/{rank}", 1000 * _SIGN_OF_LIFE_SECONDS).split()
        for rank in range(count())
    ]
    users = collections.Counter(itertools.chain(*told))
    return max(1, min(round(sum(1 / users[core] for core in seen)) for seen in told))


def wait() -> None:
    """Returns when all processes have called this, however long that takes.

    Devices that wait for one another, as in a step, would give up before long.
    """
    if count() > 1:
        client: Any = distributed.global_state.client
        client.wait_at_barrier(f"vit_jax {next(_barriers)}", 1000 * _PATIENCE_SECONDS)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Within this context the first process goes ahead, and the others find its work done."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def from_first(values):
    """Returns the NumPy array that the first process gave."""
    return multihost_utils.broadcast_one_to_all(values) if count() > 1 else values


def all_true(value: bool) -> bool:
    """Returns whether `value` is true in all processes."""
    return bool(multihost_utils.process_allgather(value).all()) if count() > 1 else value


def reached_stop(number: int) -> bool:
    """Returns whether all processes are to stop at their call with this number: 1, 2, ...

    That is so once, some calls after SIGTERM came to any of them. It costs a microsecond: the
    threads of JAX that listen to the signal agree on the number.
    """
    return multihost_utils.reached_preemption_sync_point(number)


def is_loss(error: Exception) -> bool:
    """Returns whether an error tells that another process could not be reached."""
    signs = ("Gloo", "NCCL", "coordination service", "Barrier", "heartbeat", "UNAVAILABLE")
    return any(sign in str(error) for sign in signs)


def leave(message: str) -> NoReturn:
    """Ends this process with status 1 and one sentence, whatever the others do.

    Where all end so, as for a mistake in the config, the first process alone tells of it.
    """
    client: Any = distributed.global_state.client
    try:
        client.wait_at_barrier("leave", 5000)
        together = True
    except Exception:  # the others are busy, or gone
        together = False
    if is_first() or not together:
        print(f"error: {single_line(message)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # The usual way out waits for all processes, and those wait for this one.
    os._exit(1)
