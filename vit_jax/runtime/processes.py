"""The processes of one distributed run: start, barriers, stop and exit."""

import collections
import contextlib
import functools
import itertools
import math
import os
import pathlib
import socket
import sys
from collections.abc import Collection, Iterator
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from vit_jax.runtime.errors import UserError, single_line
from vit_jax.runtime.upstream import distributed_state, has_started

LOST = (
    "another process of this run has ended or cannot be reached; run the same command in all "
    "processes to resume from the last checkpoint"
)
_HEARTBEAT_SECONDS = 100  # a process without a heartbeat for so long counts as dead
_BARRIER_SECONDS = 24 * 3600  # the first process may prepare data or draw figures meanwhile
_barriers = itertools.count()


def join() -> None:
    """Connect to the other processes; call it before anything touches the devices.

    JAX detects them under SLURM, Open MPI, Kubernetes and on TPU pods; elsewhere it reads
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. If one of them dies, JAX aborts
    the others, or their collectives raise an error for which `is_loss` is true.

    Raises UserError if the other processes are unknown.
    """
    number, rank = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(
            num_processes=int(number) if number else None,
            process_id=int(rank) if rank else None,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        raise UserError(
            f"sharding.distributed=True, but the other processes are unknown ({error}). Set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from None
    mute_others()


@functools.cache
def _own_stdout():
    return os.dup(sys.stdout.fileno())


def mute_others() -> None:
    """Let only the first process print; again after the start of the devices, which may change it.

    Otherwise every process would print the same lines.
    """
    own, output = _own_stdout(), sys.stdout.fileno()
    sys.stdout.flush()
    if is_first():
        os.dup2(own, output)
    else:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), output)


def count() -> int:
    """Get the number of processes."""
    return distributed_state().num_processes


def is_first() -> bool:
    """Whether this process is the one that prints and writes files.

    Its devices are those of process 0, whose arrays are broadcast and whose checkpoints count. On a
    TPU, the runtime numbers the processes, perhaps in another order than `join`.
    """
    started = count() > 1 and has_started()
    return (jax.process_index() if started else distributed_state().process_id) == 0


def usable_cores() -> Collection[int]:
    """List the cores that this process may run on."""
    mac = not hasattr(os, "sched_getaffinity")
    return range(os.cpu_count() or 1) if mac else os.sched_getaffinity(0)


def cpu_quota(path: str = "/sys/fs/cgroup/cpu.max") -> int:
    """Read how many cores' time the container of this process has (cgroups v2), rounded up."""
    try:
        microseconds, period = map(int, pathlib.Path(path).read_text().split())
    except (OSError, ValueError):  # no such file; "max" without a limit
        return 2**31
    return max(1, math.ceil(microseconds / period))


def cores_each() -> int:
    """Divide the cores of each machine among its processes; return the least number of one."""
    cores, quota = usable_cores(), cpu_quota()
    if count() == 1:
        return min(len(cores), quota)
    client, timeout = distributed_state().client, 1000 * _HEARTBEAT_SECONDS
    host = socket.gethostname()
    own = " ".join([f"{host} {quota}", *(f"{host}/{core}" for core in cores)])
    client.key_value_set(f"cores/{distributed_state().process_id}", own)
    ranks = range(count())
    found = [client.blocking_key_value_get(f"cores/{rank}", timeout).split() for rank in ranks]
    users = collections.Counter(itertools.chain(*found))  # of each core; processes of each host
    shares = [
        min(round(sum(1 / users[core] for core in own)), int(quota) // users[host])
        for host, quota, *own in found
    ]
    return max(1, min(shares))


def wait() -> None:
    """Wait until all processes have called this; collectives on the devices would time out."""
    if count() > 1:
        name = f"vit_jax {next(_barriers)}"
        distributed_state().client.wait_at_barrier(name, 1000 * _BARRIER_SECONDS)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Run the body in the first process, then in the others."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def from_first(values):
    """Broadcast a NumPy array from the first process."""
    return multihost_utils.broadcast_one_to_all(values) if count() > 1 else values


def all_true(value: bool) -> bool:
    """Whether `value` is true in all processes."""
    return bool(multihost_utils.process_allgather(value).all()) if count() > 1 else value


def reached_stop(number: int) -> bool:
    """Whether all processes stop at their call with this number: 1, 2, ...

    True once, some calls after any process has received SIGTERM. JAX's threads agree on the number
    in the background; a call takes a microsecond.
    """
    return multihost_utils.reached_preemption_sync_point(number)


def is_loss(error: Exception) -> bool:
    """Whether an error means that another process could not be reached."""
    signs = ("Gloo", "NCCL", "coordination service", "Barrier", "heartbeat", "UNAVAILABLE")
    return any(sign in str(error) for sign in signs)


def leave(message: str) -> NoReturn:
    """Print an error and exit with status 1, whatever the other processes do.

    If all processes call this, as for a mistake in the config, only the first prints the message.
    """
    together = False
    # The first one of `join` runs the service without which JAX aborts.
    if distributed_state().process_id == 0 or message != LOST:
        with contextlib.suppress(Exception):  # the others are busy or dead
            distributed_state().client.wait_at_barrier("leave", 5000)
            together = True
    if is_first() or not together:
        print(f"error: {single_line(message)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # A normal exit waits for all processes at JAX's shutdown barrier, and aborts if one is dead.
    os._exit(1)
