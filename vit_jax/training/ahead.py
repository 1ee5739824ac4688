"""Training steps compiled ahead of time, for devices that this machine need not have."""

import dataclasses
import functools
import re
import time
from collections.abc import Callable

import jax

from vit_jax.config import Config, with_overrides
from vit_jax.config.rules import validate
from vit_jax.data import Data
from vit_jax.data.images import stored_size
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.hlo import Program
from vit_jax.runtime.targets import GIB, Target
from vit_jax.training.compiled import CompiledSteps, compile_steps, lower_train
from vit_jax.training.seeds import vectorizes
from vit_jax.training.setup import make_setup, num_params

_MOST_TRIES = 6  # compilations of a search
_CLOSE = 1.06  # ratio of batch sizes at which a search ends
# Of the configs of a search: a run may become too short for its warm-up as the batch grows.
_LENGTH_OF_SEARCH = {"train.steps": 2**20, "train.epochs": 0.0, "train.budget_pflop": 0.0}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    arguments: int  # state and batch
    temporary: int
    other: int  # results that replace no argument, and the code
    dataset: int  # images of the device-resident dataset that the step does not take
    live: int = 0  # peak of the step's arrays, without the gaps between them

    @property
    def peak(self) -> int:
        """What training needs at least."""
        return self.arguments + self.temporary + self.other + self.dataset


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The training step of a variant, compiled for a target.

    `program` is None if it does not fit and the compiler gave up; `memory` then has what it needed.
    """

    target: Target
    steps: CompiledSteps
    program: Program | None
    memory: Memory
    seconds: float  # of compilation

    @property
    def batch_per_device(self) -> int:
        """Images of one optimizer update of all vectorised seeds, per device."""
        images = self.steps.setup.config.train.batch_size * self.steps.axis.num_seeds
        return images // len(self.target.devices)

    @property
    def fits(self) -> bool:
        """Whether the memory of a device is enough."""
        return self.program is not None and self.memory.peak <= self.target.chip.usable

    @property
    def dtype(self) -> str:
        """The compute dtype."""
        setup = self.steps.setup
        return sharding.dtype_of(setup.config.train.dtype, setup.mesh).name

    @functools.cached_property
    def flops(self) -> int:
        """FLOPs of a step of all seeds on all devices, without what is recomputed."""
        flops = self.steps.setup.flops
        step = flops.step if self.steps.train_whole is None else flops.whole_step
        return step * self.steps.axis.num_seeds

    def report(self) -> dict:
        """Collect the figures of the step, per device unless they say otherwise.

        The lower bound of a step's time is the longer of its FLOPs and its memory traffic at the
        published peaks of the device.
        """
        setup, chip, count = self.steps.setup, self.target.chip, len(self.target.devices)
        found = {
            "target": self.target.name,
            "device": f"{count} x {self.target.devices[0].device_kind}",
            "batch_size": setup.config.train.batch_size,
            "batch_per_device": self.batch_per_device,
            "vectorized_seeds": self.steps.axis.num_seeds,
            "dtype": self.dtype,
            "num_params": num_params(setup),
            "memory": dataclasses.asdict(self.memory) | {"peak": self.memory.peak},
            "usable_memory": chip.usable,
            "fits": self.fits,
            "compile_seconds": round(self.seconds, 1),
            "flops": self.flops,
        }
        program = self.program
        if program is None:
            return found
        compute = self.flops / count / chip.flops[self.dtype]
        traffic = program.bytes_moved / chip.bandwidth
        bound = max(compute, traffic)
        images = setup.config.train.batch_size * self.steps.axis.num_seeds
        return found | {
            "kernels": program.num_kernels,
            "fusions": program.num_fusions,
            "library_calls": program.library_calls,
            "bytes_moved": program.bytes_moved,
            "collectives": [dataclasses.asdict(one) for one in program.collectives],
            "flops_seconds": compute,
            "bytes_seconds": traffic,
            "bound_seconds": bound,
            "bound_images_per_second": images / bound,
            "estimated_cycles": program.estimated_cycles,
            "estimated_seconds": program.estimated_cycles / chip.clock if chip.clock else None,
            "largest_buffers": [
                {"type": str(b.array), "bytes": b.nbytes, "count": b.count, "source": b.source}
                for b in program.largest_buffers(8)
            ],
        }


def compile_for(config: Config, data: Data, target: Target) -> Compiled:
    """Compile the training step that a run of a resolved config on the target would take.

    With patch dropout in a part of the run, it is the step of the other part, which needs more.

    Raises:
      UserError: the config does not fit the data or the devices, or only trains a head on cached
        features.
    """
    if target.num_hosts > 1:  # a process each
        config = with_overrides(config, {"sharding.distributed": True}, "the target")
    setup = make_setup(config, data, target.make_mesh())
    if not setup.trained or setup.on_features:
        raise UserError(
            f"freeze={config.freeze} trains nothing, or the head on cached features, which any "
            "device can do: set train.cache_features=False or another freeze"
        )
    num_seeds = config.train.num_seeds
    steps = compile_steps(setup, num_seeds if vectorizes(setup, num_seeds) else 1)
    splits = [data.train, data.val, data.test]
    if setup.multi_step:
        splits = splits[1:]  # the training images are arguments
    images = sum(len(split) for split in splits if split.resident)
    dataset = images * stored_size(config.data) ** 2 * config.data.channels
    return compile_step(steps, len(data.train), target, dataset)


def compile_step(
    steps: CompiledSteps, num_images: int, target: Target, dataset: int = 0
) -> Compiled:
    """Compile a training step for the target whose mesh it was built for.

    Args:
      steps: of a variant.
      num_images: of the training split.
      target: what the step is compiled for.
      dataset: bytes of the device-resident splits that the step does not take.
    """
    started = time.monotonic()
    lowered = lower_train(steps, steps.train_whole or steps.train, num_images)
    try:
        compiled = lowered.compile(compiler_options=target.options or None)  # {} is not cached
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([GM]) of", str(error))
        if not used:
            raise
        needed = int(float(used[1]) * {"G": GIB, "M": 2**20}[used[2]])
        memory, program = Memory(0, needed, 0, dataset), None
    else:
        found = compiled.memory_analysis()
        results = found.output_size_in_bytes - found.alias_size_in_bytes
        memory = Memory(
            found.argument_size_in_bytes,
            found.temp_size_in_bytes,
            results + found.generated_code_size_in_bytes,
            dataset,
            found.peak_memory_in_bytes,
        )
        program = Program(compiled.as_text())
    return Compiled(target, steps, program, memory, time.monotonic() - started)


def find_batch(
    config: Config,
    target: Target,
    most: int,
    compile_one: Callable[[Config], Compiled],
    on_try: Callable[[Compiled], None],
) -> Compiled:
    """Find the largest batch per device that fits, to within a few percent.

    The memory of a step is nearly linear in the batch size: the size at which the line through two
    compilations reaches the memory of the device is compiled, and becomes a point of the next line.

    Args:
      config: resolved; the search starts from its batch size.
      target: with the memory.
      most: the number of training images, which no batch exceeds.
      compile_one: compiles a config.
      on_try: called with each compilation.

    Raises:
      UserError: no batch that was tried fits.
    """
    devices, pieces = len(target.devices), config.train.accumulation_steps or 1
    unit, tried = devices * pieces, {}

    def attempt(units):
        size = {"train.batch_size": units * unit}
        one = with_overrides(config, size | _LENGTH_OF_SEARCH, "the search")
        validate(one)
        tried[units] = compile_one(one)
        on_try(tried[units])

    start = max(1, config.train.batch_size // unit)
    attempt(start)
    attempt(start // 2 if start > 1 else min(2, most // unit))
    while 1 < len(tried) < _MOST_TRIES:
        units = _next_size(tried, target.chip.usable, most // unit)
        if units is None:
            break
        attempt(units)
    fitting = [units for units, one in tried.items() if one.fits]
    if not fitting:
        least = min(tried) * unit
        raise UserError(f"a batch of {least} image(s) does not fit: set train.remat=True")
    return tried[max(fitting)]


def _next_size(tried, limit, most):
    """Choose the next batch size, in units; None if the largest that fits is known."""
    (a, one), (b, other) = sorted(tried.items(), key=lambda item: _distance(item, limit))[:2]
    slope = (one.memory.peak - other.memory.peak) / (a - b)
    low = max((units for units, found in tried.items() if found.fits), default=0)
    high = min((units for units, found in tried.items() if not found.fits), default=None)
    if high is not None and (high - low <= 1 or (low and high <= low * _CLOSE)):
        return None
    guess = int(a + (limit - one.memory.peak) / slope) if slope > 0 else 2 * max(a, b)
    guess = min(most, guess // 8 * 8 if guess > 64 else guess)
    if high is not None and not low < guess < high:
        guess = (low + high) // 2
    if guess <= low:  # the next larger size is expected not to fit
        return None
    return guess


def _distance(item, limit):
    return abs(item[1].memory.peak - limit)
