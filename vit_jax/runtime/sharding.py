"""Devices: start-up, the mesh, and the sharding of arrays."""

import contextlib
import ctypes
import functools
import math
import os
import pathlib
import platform
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from vit_jax.runtime import files, processes
from vit_jax.runtime.errors import UserError

_WHOLE_BELOW = 4096  # elements; sharding smaller arrays gains nothing
_CACHE_BYTES = 2 * 2**30  # of compiled programs; the least recently used go first


def start(distributed: bool, cpu_devices: int, divides: int) -> None:
    """Prepare JAX's devices; call it before anything else touches them.

    Compiled programs are cached in `compiled_folder`, or in JAX_COMPILATION_CACHE_DIR;
    JAX_ENABLE_COMPILATION_CACHE=false disables the cache.

    Args:
      distributed: connect to the other processes of this run by `processes.join`.
      cpu_devices: CPU devices of every process; 0: JAX_NUM_CPU_DEVICES, else the greatest common
        divisor of its cores and its local batch, as one per core trains faster than one device with
        as many threads. Processes on the same machine share the cores.
      divides: number that the number of all CPU devices must divide (the batch size).
    """
    if distributed:
        processes.join()
    share = math.gcd(divides // processes.count(), processes.cores_each())
    flags = os.environ.get("XLA_FLAGS", "")
    if "collective_call_terminate_timeout" not in flags:
        # XLA aborts when a device waits 40 s for another, as on a busy machine.
        os.environ["XLA_FLAGS"] = (
            f"{flags} --xla_cpu_collective_call_terminate_timeout_seconds={24 * 3600}"
            f" --xla_cpu_collective_call_warn_stuck_timeout_seconds={3600}"
        )
    is_set = "JAX_NUM_CPU_DEVICES" in os.environ and not cpu_devices
    if "xla_force_host_platform_device_count" not in flags and not is_set:
        with contextlib.suppress(RuntimeError):  # JAX has started, as in a notebook
            jax.config.update("jax_num_cpu_devices", cpu_devices or share)
    named = jax.config.values["jax_compilation_cache_dir"] is not None
    if not named and (folder := compiled_folder()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def compiled_folder() -> pathlib.Path | None:
    """Get the folder of compiled programs for this model of CPU; None for users without a home.

    Machines may share a home, and JAX's cache keys distinguish accelerators but not CPUs: a program
    compiled for one CPU may use instructions that another lacks.
    """
    base = files.cache_folder()
    kind = zlib.crc32("".join(_cpu_lines("model name", "flags", "Features")).encode())
    return base and base / f"compiled_{platform.machine()}_{kind:08x}"


def choose_devices(cpu_devices: int, divides: int) -> list:
    """Choose the devices of a process that is alone; of CPUs, as many as divide `divides`.

    In a notebook, JAX may have started for another batch size. Raises UserError if it has started
    with another number than `cpu_devices`, unless that is 0.
    """
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return devices
    if cpu_devices not in (0, len(devices)):
        raise UserError(
            f"sharding.cpu_devices={cpu_devices}, but JAX has started with {len(devices)} CPU "
            "devices: start Python again, or change XLA_FLAGS"
        )
    return devices[: math.gcd(len(devices), divides)]


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh with one axis, `data`, of these devices; None: all of them.

    Auto axes: the compiler chooses intermediate shardings. JAX's default, explicit axes, needs a
    sharding at every tile and concatenation of the model.
    """
    devices = jax.devices() if devices is None else devices
    auto = (AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("data",), axis_types=auto, devices=devices)


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices of a mesh, which this machine need not have, are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def has_fused_attention(mesh: Mesh) -> bool:
    """Whether the devices have cuDNN's fused attention: NVIDIA GPUs from Ampere on, with cuDNN 9.

    Every installation of JAX for GPUs has cuDNN; ahead-of-time compilation works without it.
    """
    device = mesh.devices.flat[0]
    if device.platform != "gpu" or not device.device_kind.startswith("NVIDIA"):
        return False
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcudnn.so.9")
        return float(device.compute_capability) >= 8
    return False


def in_mesh(mesh: Mesh, function: Callable) -> Callable:
    """Let constraints in a function that is traced name the axes of a mesh."""

    @functools.wraps(function)
    def traced(*inputs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*inputs)

    return traced


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, jax.P())


def split(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is split over `data`."""
    return NamedSharding(mesh, jax.P("data"))


def state_sharding(mesh: Mesh, shapes, fsdp: bool):
    """Choose the sharding of every array of a state: replicated or, with `fsdp`, sharded.

    A sharded array is split along its largest dimension that the number of devices divides (fully
    sharded data parallelism: Rajbhandari et al. 2020, stage 3; Zhao et al. 2023). Small arrays,
    and those without such a dimension, are replicated.
    """

    def rule(x):
        sides = [side for side in range(x.ndim) if x.shape[side] % mesh.size == 0]
        if not fsdp or x.size < _WHOLE_BELOW or not sides:
            return replicated(mesh)
        largest = max(sides, key=lambda side: x.shape[side])
        return NamedSharding(mesh, jax.P(*[None] * largest, "data"))

    return jax.tree.map(rule, shapes)


def bytes_per_device(shapes) -> int:
    """Compute the bytes per device of a tree of arrays, or of shapes with shardings."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


class SeedsSharding(NamedTuple):
    """Shardings for vectorised seeds: stacked states, batches [s, b, ...].

    With `whole_seeds`, every device trains whole seeds, without communication.
    """

    whole_seeds: bool
    state: NamedSharding
    batch: NamedSharding


def seeds_sharding(mesh: Mesh, num_seeds: int) -> SeedsSharding:
    """Shard by seeds if the number of devices divides their number, else split the batches."""
    if num_seeds % mesh.size == 0:
        return SeedsSharding(True, split(mesh), split(mesh))
    return SeedsSharding(False, replicated(mesh), NamedSharding(mesh, jax.P(None, "data")))


def block_on_cpu(tree):
    """Block until `tree` is computed, on the CPU only; return it.

    On several CPU devices, steps that are dispatched ahead fill XLA's few threads with
    computations that wait for a collective, whose other side then has no thread: an evaluation of
    40 batches deadlocked. Elsewhere, asynchronous dispatch keeps the device busy.
    """
    return jax.block_until_ready(tree) if jax.default_backend() == "cpu" else tree


def replicate(mesh: Mesh, tree):
    """Replicate a tree of arrays, equal in every process, on every device of the mesh."""
    return device_put(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def device_put(tree, shardings):
    """Put a tree of arrays, equal in every process, on the devices with these shardings."""

    def of_leaf(x, sharding):
        host = np.asarray(x)
        # `device_put` would first send the arrays between processes to compare them.
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(of_leaf, tree, shardings)


def shard_batch(mesh: Mesh, tree):
    """Make global arrays, split over `data`, from the examples of this process."""
    return jax.make_array_from_process_local_data(split(mesh), tree)


def local_indices(mesh: Mesh, count: int) -> np.ndarray:
    """List the indices in a batch of `count` examples that this process's devices hold.

    On a TPU, whose mesh follows the rings of its links, they need not be neighbours.
    """
    if jax.process_count() == 1:
        return np.arange(count)
    owners = np.array([device.process_index for device in mesh.devices.flat])
    return np.arange(count).reshape(len(owners), -1)[owners == jax.process_index()].reshape(-1)


def to_host(tree):
    """Fetch global arrays, also those that are sharded over processes, as NumPy arrays."""

    def fetch(x):
        if x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)


def describe_devices(mesh: Mesh) -> str:
    """Describe the devices of a mesh, as "8 x NVIDIA H100" or "2 x cpu (AMD EPYC)"."""
    kind = mesh.devices.flat[0].device_kind
    if on_cpu(mesh):
        names = _cpu_lines("model name") or [platform.processor() or platform.machine()]
        kind = f"cpu ({names[0]})"
    return f"{mesh.size} x {kind}"


def _cpu_lines(*keys):
    """Read the values of these keys for the first CPU in /proc/cpuinfo."""
    cpu = pathlib.Path("/proc/cpuinfo")
    text = cpu.read_text().split("\n\n")[0] if cpu.exists() else ""
    pairs = [line.partition(":") for line in text.splitlines()]
    return [value.strip() for key, _, value in pairs if key.strip() in keys]


def dtype_of(name: str, mesh: Mesh | None = None) -> jnp.dtype:
    """Resolve `config.train.dtype`; "auto" depends on the devices of `mesh`, None: of all."""
    if name == "auto":
        name = "float32" if on_cpu(mesh or make_mesh()) else "bfloat16"
    return jnp.dtype(name)
