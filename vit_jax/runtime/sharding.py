"""Devices: their start, the mesh, and which array lies where."""

import dataclasses
import math
import os
import pathlib
import platform
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.runtime import files, processes

_WHOLE_BELOW = 4096  # numbers; of smaller arrays there is nothing to gain

CACHE_BYTES = 2 * 2**30  # of compiled programs; the least recently used go first


def start(distributed: bool, cpu_devices: int, divides: int) -> None:
    """Prepares JAX's devices; call it before anything else touches them.

    Compiled programs are kept for the next start, in `compiled_folder`; JAX_COMPILATION_CACHE_DIR
    says another place, JAX_ENABLE_COMPILATION_CACHE=false none.

    Args:
      distributed: join the other processes of this run. JAX finds them by itself under SLURM,
        Open MPI, Kubernetes and on TPU pods; elsewhere it reads JAX_COORDINATOR_ADDRESS,
        JAX_NUM_PROCESSES and JAX_PROCESS_ID.
      cpu_devices: devices that the CPU is split into, in every process; 0 takes one per core,
        which trains faster than one device with as many threads. Processes share the cores.
      divides: the number of all CPU devices must divide this (the batch size).

    Raises:
      UserError: the other processes cannot be found.
    """
    if distributed:
        processes.join()
    if hasattr(os, "sched_getaffinity"):
        cores = os.sched_getaffinity(0)
    else:  # macOS
        cores = range(os.cpu_count() or 1)
    share = math.gcd(divides // processes.count(), processes.cores_each(cores))
    flags = os.environ.get("XLA_FLAGS", "")
    if "collective_call_terminate_timeout" not in flags:
        # XLA would abort when a device waits 40 s for another, which happens on a busy machine.
        os.environ["XLA_FLAGS"] = (
            f"{flags} --xla_cpu_collective_call_terminate_timeout_seconds={24 * 3600}"
            f" --xla_cpu_collective_call_warn_stuck_timeout_seconds={3600}"
        )
    if "xla_force_host_platform_device_count" not in flags:
        try:
            jax.config.update("jax_num_cpu_devices", cpu_devices or share)
        except RuntimeError:
            pass  # JAX is running already, as in a notebook: keep the devices that it has
    named = jax.config.values["jax_compilation_cache_dir"] is not None
    if not named and (folder := compiled_folder()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def compiled_folder() -> pathlib.Path | None:
    """Returns the folder of compiled programs; None for users without home.

    Each kind of CPU has its own: a home may be shared by machines, and JAX tells apart accelerators
    only, so that a CPU would be given instructions that it lacks.
    """
    base = files.cache_folder()
    kind = zlib.crc32("".join(_cpu_lines("model name", "flags", "Features")).encode())
    return base and base / f"compiled_{platform.machine()}_{kind:08x}"


def make_mesh() -> Mesh:
    """Returns a mesh of all devices with one axis, `data`.

    Auto axes: the compiler chooses intermediate layouts; JAX's default, explicit axes, would
    demand a sharding at every tile and concatenation of the model.
    """
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first axis is split over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def of_state(mesh: Mesh, shapes, fsdp: bool):
    """Returns the sharding of every array of a state: whole on every device or, with `fsdp`, split.

    An array is then split along its largest dimension that the number of devices divides (fully
    sharded data parallelism: Rajbhandari et al. 2020, stage 3; Zhao et al. 2023). Small arrays,
    and those without such a dimension, stay whole.
    """

    def rule(x):
        sides = [side for side in range(x.ndim) if x.shape[side] % mesh.size == 0]
        if not fsdp or x.size < _WHOLE_BELOW or not sides:
            return replicated(mesh)
        largest = max(sides, key=lambda side: x.shape[side])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "data"))

    return jax.tree.map(rule, shapes)


def bytes_per_device(shapes) -> int:
    """Return the bytes per device of a tree of arrays or of their shapes, with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(shapes)
    )


@dataclasses.dataclass(frozen=True)
class OfSeeds:
    """How the arrays of several seeds at once lie: stacked states, batches [s, b, ...].

    `whole_seeds` tells that every device has seeds of its own, and needs no other device.
    """

    whole_seeds: bool
    state: NamedSharding
    batch: NamedSharding


def of_seeds(mesh: Mesh, num_seeds: int) -> OfSeeds:
    """Returns whole seeds on every device where their number allows it, else split batches."""
    if num_seeds % mesh.size == 0:
        return OfSeeds(True, split(mesh), split(mesh))
    return OfSeeds(False, replicated(mesh), NamedSharding(mesh, PartitionSpec(None, "data")))


def settle(tree):
    """Returns `tree`, on the CPU when it has been computed.

    Steps that run ahead on several CPU devices fill XLA's few threads with computations that wait
    for a collective, whose other side then finds no thread: an evaluation of 40 batches hung so.
    Elsewhere running ahead is what keeps the device busy.
    """
    return jax.block_until_ready(tree) if jax.default_backend() == "cpu" else tree


def put_replicated(mesh: Mesh, tree):
    """Copies a tree of arrays, equal in every process, to every device of the mesh."""
    return put(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def put(tree, shardings):
    """Lays a tree of arrays, equal in every process, on the devices as `shardings` says."""

    def of_leaf(x, sharding):
        host = np.asarray(x)
        # `device_put` would compare the arrays of the processes first, at the cost of sending them.
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(of_leaf, tree, shardings)


def put_split(mesh: Mesh, tree):
    """Makes global arrays from this process's rows, split over `data` along the first axis."""
    sharding = split(mesh)

    def put(rows):
        return jax.make_array_from_process_local_data(sharding, np.asarray(rows))

    return jax.tree.map(put, tree)


def to_host(tree):
    """Returns NumPy arrays of global arrays, those that are split over processes included."""

    def fetch(x):
        if x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)


def describe_devices() -> str:
    """Returns e.g. "8 x NVIDIA H100" or "2 x cpu (AMD EPYC)"."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        names = _cpu_lines("model name") or [platform.processor() or platform.machine()]
        kind = f"cpu ({names[0]})"
    return f"{jax.device_count()} x {kind}"


def _cpu_lines(*keys):
    """Returns what Linux tells of the first CPU under some of these keys."""
    cpu = pathlib.Path("/proc/cpuinfo")
    text = cpu.read_text().split("\n\n")[0] if cpu.exists() else ""
    pairs = [line.partition(":") for line in text.splitlines()]
    return [value.strip() for key, _, value in pairs if key.strip() in keys]


def dtype_of(name: str) -> jnp.dtype:
    """Returns the type that `config.train.dtype` stands for on these devices."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
