"""Accelerators that programs are compiled for without having one."""

import ctypes
import dataclasses
import importlib.util
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The published figures of a TPU chip or GPU."""

    memory: int  # bytes
    usable: int  # bytes of the memory that can hold arrays
    bandwidth: float  # of the memory, in bytes/s
    flops: dict[str, float]  # per second, by dtype: dense products of JAX's default precision
    clock: float = 0.0  # in Hz, of the cycles that XLA estimates for a TPU


_H100_FLOPS = {"bfloat16": 989.4e12, "float32": 494.7e12}  # TensorFloat-32
CHIPS = {
    # https://cloud.google.com/tpu/docs/v5e. XLA reserves 0.25 GiB. The clock follows from the
    # FLOP/s of four units of 128 x 128 multiply-adds.
    "v5e": Chip(
        memory=16 * GIB,
        usable=int(15.75 * GIB),
        bandwidth=819e9,
        flops={"bfloat16": 197e12, "float32": 197e12},  # float32 in one bfloat16 pass
        clock=1.5e9,
    ),
    # H100 SXM5 and H200: https://resources.nvidia.com/en-us-tensor-core (data sheets). `usable`
    # leaves a GiB to the CUDA context and the libraries.
    "h100": Chip(84942979072, 84942979072 - GIB, 3.35e12, _H100_FLOPS),
    "h200": Chip(150754820096, 150754820096 - GIB, 4.8e12, _H100_FLOPS),
}
# What JAX calls them; PCIe cards and slices of a GPU have other figures.
_KINDS = {"TPU v5 lite": "v5e", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
# Of TPU v5e, that can be rented: https://cloud.google.com/tpu/docs/v5e.
SLICES = tuple(
    f"v5e:{size}" for size in ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
)
# XLA's description of a GPU of compute capability 9.0 (H100 SXM5: 132 multiprocessors).
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "NVIDIA {name}"
"""
# Read by libtpu when it is loaded: no query of a machine with TPUs, and no log.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: "v5e:2x2", a TPU slice, "h100x8", GPUs, or "1 x h100", those of this machine.
      chip: each device.
      devices: of JAX, which can only be compiled for unless they are this machine's.
      options: of the compiler.
    """

    name: str
    chip: Chip
    devices: Any
    options: dict[str, Any]

    def make_mesh(self) -> Mesh:
        """Make the mesh of all devices."""
        return sharding.make_mesh(self.devices)

    @property
    def is_gpu(self) -> bool:
        """Whether the devices are GPUs."""
        return not self.chip.clock

    @property
    def num_hosts(self) -> int:
        """Number of machines, each with a process of its devices."""
        return len({device.process_index for device in self.devices})

    @property
    def pool(self) -> int:
        """Bytes that JAX takes from a device's memory."""
        fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or 0.75)
        return int(self.chip.memory * fraction) if self.is_gpu else self.chip.usable


def this_machine() -> Target | None:
    """Describe the devices of this process; None if their published figures are not known."""
    devices = np.asarray(jax.devices())
    name = _KINDS.get(devices[0].device_kind)
    return Target(f"{len(devices)} x {name}", CHIPS[name], devices, {}) if name else None


def find_target(name: str) -> Target:
    """Describe the devices of a name such as "v5e:2x2", "h100" or "h100x8".

    Raises UserError if the name is unknown or JAX's plugin for these devices is not installed.
    """
    gpus = re.fullmatch(r"(h100|h200)(?:x([1-9]\d*))?", name)
    if name in SLICES:
        return Target(name, CHIPS["v5e"], _tpu_devices(name), {})
    if gpus:
        count = int(gpus[2] or 1)
        if count > 8 and count % 8:
            raise UserError(f"--target={name}: use up to 8 GPUs or a multiple of 8")
        # Without a GPU, XLA cannot measure which variant of a matrix product is the fastest.
        options = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
        if assembler := _folder_of("cuda_nvcc"):
            options["xla_gpu_cuda_data_dir"] = assembler
        return Target(name, CHIPS[gpus[1]], _gpu_devices(gpus[1], count), options)
    raise UserError(f"--target={name} is unknown: use {', '.join(SLICES)}, h100xN or h200xN")


def _tpu_devices(name):
    if not importlib.util.find_spec("libtpu"):
        raise UserError(f'--target={name} needs libtpu, but no TPU: pip install "jax[tpu]"')
    for key, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # A host has 2 x 2 chips; of the small slices, it has all (https://cloud.google.com/tpu/docs/v5e).
    whole = {"v5e:1x1": (1, 1, 1), "v5e:2x4": (2, 4, 1)}
    bounds = {"chips_per_host_bounds": whole[name]} if name in whole else {}
    return topologies.get_topology_desc(name, "tpu", **bounds).devices


def _gpu_devices(chip, count):
    if not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
        raise UserError(
            f"--target={chip} needs JAX's CUDA plugin, but no GPU: "
            'pip install "jax[cuda12]", or --no-deps jax-cuda12-plugin jax-cuda12-pjrt'
        )
    if cudnn := _folder_of("cudnn"):  # which JAX loads for a GPU only
        ctypes.CDLL(f"{cudnn}/lib/libcudnn.so.9", ctypes.RTLD_GLOBAL)
    figures = CHIPS[chip]
    described = _HOPPER.format(
        bandwidth=figures.bandwidth, memory=figures.memory, name=chip.upper()
    )
    hosts = -(-count // 8)
    shape = f"1x{hosts}x{count // hosts}"
    found = topologies.get_topology_desc(chip, "cuda", target_config=described, topology=shape)
    return found.devices


def _folder_of(library):
    """Find the folder of one of NVIDIA's wheels; "" if it is not installed."""
    found = importlib.util.find_spec("nvidia")
    places = (found and found.submodule_search_locations) or ()
    folders = (pathlib.Path(place, library) for place in places)
    return next((str(folder) for folder in folders if folder.is_dir()), "")
