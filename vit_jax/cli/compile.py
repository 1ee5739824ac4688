"""Compile the training step of a config for TPUs or GPUs without having them.

    vit-jax compile cifar_patch --variant=patch_4 --target=v5e:2x2
    vit-jax compile configs/photos.py --target=h100x8 --num-classes=3 --num-images=12000
    vit-jax compile cifar_vit --target=h100 --find-batch

Nothing is trained: XLA compiles the step that `vit-jax train` would run there, which takes minutes
for a large model. Printed are the memory per device and whether it fits, FLOPs, memory traffic,
kernels, collectives, the largest arrays, and a lower bound of the time of a step from the FLOPs
and the traffic at the device's published peaks.

--config.SECTION.KEY=VALUE changes a setting. TPUs need libtpu (pip install "jax[tpu]"), NVIDIA GPUs
JAX's CUDA plugin (pip install "jax[cuda12]"); neither needs a device.
"""

import contextlib
import json
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Sequence

from vit_jax.cli import command
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import expand

# JAX is imported where it is used, so that --help and a mistyped flag answer at once.


@command.main
def main(argv: Sequence[str]) -> int:
    """Compile for the targets; return 1 if a step does not fit. Raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file, or name of a bundled config")
    parser.add_argument(
        "--target",
        action="append",
        required=True,
        help="devices: a TPU slice such as v5e:1x1, v5e:2x2 or v5e:4x4; or GPUs such as h100, "
        "h100x8 or h200x8; repeat it to compare",
    )
    parser.add_argument("--variant", help="variant of the config; default: the first one")
    parser.add_argument(
        "--find-batch",
        action="store_true",
        help="search the largest batch that fits, in at most six compilations",
    )
    parser.add_argument(
        "--num-classes",
        type=int,
        default=0,
        help="classes of a dataset that is not on this machine",
    )
    parser.add_argument(
        "--num-images",
        type=int,
        default=0,
        help="images of that dataset, before validation and test images are held out",
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        help="output folder with the variant that teaches this one; default: runs/NAME",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, overrides = parser.parse_with_overrides(argv)
    if min(args.num_classes, args.num_images) < 0:
        raise UserError("--num-classes and --num-images must be positive")
    with _without_driver_notes(), _interruptible():
        return _compile_all(args, overrides)


def _compile_all(args, overrides):
    """Compile for every target and print the reports; return 1 if a step does not fit."""
    name, config = _load(args, overrides)
    import jax

    jax.config.update("jax_platforms", "cpu")  # of this process; a GPU of this machine stays free
    jax.config.update("jax_compilation_cache_dir", None)
    from vit_jax.runtime.progress import quiet_libraries
    from vit_jax.runtime.targets import find_target

    reports = []
    for one in args.target:
        with quiet_libraries():
            target = find_target(one)
            compiled = _compile(config, target, args)
        reports.append({"config": name} | compiled.report())
        if not args.json:
            print(_describe(reports[-1], target), flush=True)
    if args.json:
        print(json.dumps(reports, indent=2))
    return int(not all(report["fits"] for report in reports))


def _load(args, overrides):
    """Load the variant of the arguments; return its name and its resolved, valid config."""
    from vit_jax.config.loading import load_config

    experiment = load_config(args.config, overrides, args.variant)
    from vit_jax.training.sweep import locate_teachers
    from vit_jax.training.variants import make_variants

    configs = make_variants(experiment.config, experiment.variants, set(experiment.given))
    name = args.variant or next(iter(configs))
    workdir = expand(args.workdir or pathlib.Path("runs", experiment.name))
    configs, teachers = locate_teachers(workdir, configs)
    if args.workdir and name not in teachers:
        raise UserError(f"--workdir has no effect: no variant teaches {name}")
    if name in teachers and not (teachers[name] / "summary.json").exists():
        raise UserError(
            f"variant {name} learns from a variant that is not trained in {teachers[name]}: train "
            "it first, or give the --workdir of its training"
        )
    return f"{experiment.name} {name}", configs[name]


def _compile(config, target, args):
    """Compile a config for a target, or find the largest batch."""
    from vit_jax.data.described import describe_data
    from vit_jax.models import attention
    from vit_jax.runtime import sharding
    from vit_jax.runtime.files import warn
    from vit_jax.training.ahead import compile_for, find_batch

    mesh = target.make_mesh()
    data = describe_data(config, mesh, args.num_classes, args.num_images)
    can_fuse = config.model.name == "vit" and attention.can_fuse(
        config.model, sharding.dtype_of(config.train.dtype, mesh)
    )
    if target.is_gpu and can_fuse and not sharding.has_fused_attention(mesh):
        warn(
            "cuDNN was not found, with which these GPUs compute attention in one kernel: the step "
            'will take less memory and traffic than printed; pip install "jax[cuda12]"'
        )

    def compile_one(config):
        size = config.train.batch_size
        print(
            f"compiling for {target.name}, batch {size:,}: minutes for a large model",
            file=sys.stderr,
            flush=True,
        )
        return compile_for(config, data, target)

    def on_try(compiled):
        fits = "fits" if compiled.fits else "does not fit"
        needs = compiled.memory.peak / 2**30
        if not args.json:
            text = f"{compiled.batch_per_device} images per device: {needs:.2f} GiB, {fits}"
            print(text, flush=True)

    if not args.find_batch:
        return compile_one(config)
    found = find_batch(config, target, len(data.train), compile_one, on_try)
    unit = len(target.devices) * (config.train.accumulation_steps or 1)
    rest = len(data.train) - found.steps.setup.config.train.batch_size
    if rest < unit and not args.json:
        print(f"no larger batch is possible with {len(data.train):,} training images", flush=True)
    return found


def _describe(report, target):
    """Format a report."""
    seeds, memory = report["vectorized_seeds"], report["memory"]
    parts = {key: memory[key] / 2**30 for key in ("arguments", "temporary", "other", "dataset")}
    lines = [
        f"{report['config']} on {report['target']} ({report['device']}): batch "
        f"{report['batch_size']:,}, {report['batch_per_device']:,} per device, {report['dtype']}"
        + f", {seeds} vectorised seeds" * (seeds > 1)
        + f"; compiled in {report['compile_seconds']:.0f} s",
        f"memory       {memory['peak'] / 2**30:.2f} of {report['usable_memory'] / 2**30:.2f} GiB "
        f"per device: {_verdict(report, target)}",
    ]
    if memory["arguments"]:
        lines.append(
            "             state and batches {arguments:.2f}, temporary {temporary:.2f}, other "
            "results {other:.2f}, val and test images {dataset:.2f} GiB".format(**parts)
        )
    lines.append(f"FLOPs        {_quantity(report['flops'])}FLOP per step on all devices")
    if "kernels" in report:
        lines += _describe_program(report, target.is_gpu)
    return "\n".join(lines)


def _describe_program(report, is_gpu):
    """Format the figures of the compiled program."""
    yield f"traffic      {_quantity(report['bytes_moved'])}B per step and device"
    yield f"kernels      {report['kernels']:,}, of which {report['fusions']:,} fusions"
    for one in report["collectives"]:
        kind = "asynchronous" if one["is_async"] else "synchronous"
        yield (
            f"collectives  {one['count']} x {one['kind']} {one['dtype']}, "
            f"{_quantity(one['nbytes'])}B, {kind}"
        )
    bound, flops, traffic = (
        _quantity(report[f"{key}_seconds"]) for key in ("bound", "flops", "bytes")
    )
    most = float(format(report["bound_images_per_second"], ".2g"))
    condition = ", if no array stays in the L2 cache" if is_gpu else ""
    yield (
        f"lower bound  {bound}s per step (FLOPs {flops}s, traffic {traffic}s): at most "
        f"{most:,.0f} images/s{condition}"
    )
    if report["estimated_seconds"]:
        yield (
            f"XLA estimate {_quantity(report['estimated_seconds'])}s for the kernels "
            f"({_quantity(report['estimated_cycles'])}cycles), without gathers and collectives"
        )
    yield "largest arrays of the step"
    for one in report["largest_buffers"]:
        size = f"{one['bytes'] / 2**20:,.1f} MiB"
        source = "/".join(one["source"].split("/")[-3:])
        yield f"{size:>14}  {one['count']} x {one['type']}  {source}"


def _quantity(value):
    """Format a number with three digits and the prefix of its unit."""
    prefixes = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1: "", 1e-3: "m", 1e-6: "µ"}
    scale = next((scale for scale in prefixes if value >= scale), 1e-6 if value else 1)
    return f"{value / scale:.3g} {prefixes[scale]}"


def _verdict(report, target):
    """Format whether the step fits, and what it needs if JAX takes too little memory for it."""
    if not report["fits"]:
        return "does not fit"
    if report["memory"]["peak"] > target.pool:
        fraction = target.chip.usable / target.chip.memory
        return f"fits with XLA_PYTHON_CLIENT_MEM_FRACTION={fraction:.3f}"
    return "fits"


@contextlib.contextmanager
def _interruptible():
    """Let Ctrl-C end the process at once: Python's handler runs only after a compilation."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _without_driver_notes():
    """Drop what JAX's plugins write to standard error about drivers that are not needed here."""
    notes = (b"cudart_stub", b"before absl::InitializeLog")
    sys.stderr.flush()
    stderr, (output, own) = os.dup(2), os.pipe()
    os.dup2(own, 2)
    os.close(own)

    def forward():
        with open(output, "rb") as lines:
            for line in lines:
                if not any(note in line for note in notes):
                    os.write(stderr, line)

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        thread.join()
        os.close(stderr)
