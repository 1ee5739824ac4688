"""Compile the training step of a config for TPUs or GPUs without having them.

    vit-jax compile cifar_patch --variant=patch_4 --target=v5e:2x2
    vit-jax compile configs/photos.py --target=h100x8 --num-classes=3 --num-images=12000
    vit-jax compile cifar_vit --target=h100 --find-batch

Nothing is trained: XLA compiles the step that `vit-jax train` would run there, which takes minutes
for a large model. Printed are the memory per device and whether it fits, FLOPs, memory traffic,
kernels, collectives, the largest buffers, and a lower bound of the time of a step from the FLOPs
and the traffic at the device's published peaks.

--config.SECTION.KEY=VALUE changes a setting. TPUs need libtpu (pip install "jax[tpu]"), NVIDIA GPUs
JAX's CUDA plugin (pip install "jax[cuda12]"); neither needs a device.
"""

import json
from collections.abc import Sequence

from vit_jax.cli import command
from vit_jax.runtime.errors import UserError

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
    parser.add_argument("--num-classes", type=int, default=0, help="of a dataset that is not here")
    parser.add_argument(
        "--num-images",
        type=int,
        default=0,
        help="of that dataset, from which validation and test images are held out",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, overrides = parser.parse_with_overrides(argv)
    if min(args.num_classes, args.num_images) < 0:
        raise UserError("--num-classes and --num-images must be positive")
    name, config = _load(args, overrides)
    import jax

    jax.config.update("jax_platforms", "cpu")  # of this process; a GPU of this machine stays free
    jax.config.update("jax_compilation_cache_dir", None)
    from vit_jax.runtime.progress import quiet_libraries
    from vit_jax.runtime.targets import find_target

    reports = []
    for target in map(find_target, args.target):
        with quiet_libraries():
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
    from vit_jax.training.sweep import make_variants

    configs = make_variants(experiment.config, experiment.variants, set(experiment.given))
    name = args.variant or next(iter(configs))
    return f"{experiment.name} {name}", configs[name]


def _compile(config, target, args):
    """Compile a config for a target, or find the largest batch."""
    from vit_jax.data.described import describe_data
    from vit_jax.runtime import sharding
    from vit_jax.runtime.files import warn
    from vit_jax.training.ahead import compile_for, find_batch

    mesh = target.make_mesh()
    if target.is_gpu and not sharding.has_fused_attention(mesh):
        warn(
            "libcudnn.so.9 was not found: attention, one kernel on these GPUs, is compiled as "
            'separate products: pip install "jax[cuda12]"'
        )
    data = describe_data(config, mesh, args.num_classes, args.num_images)

    def compile_one(config):
        return compile_for(config, data, target)

    def on_try(compiled):
        fits = "fits" if compiled.fits else "does not fit"
        needs = compiled.memory.peak / 2**30
        if not args.json:
            print(f"{compiled.batch_per_device} images per device: {needs:.2f} GiB, {fits}")

    if not args.find_batch:
        return compile_one(config)
    return find_batch(config, target, len(data.train), compile_one, on_try)


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
            "             state and batch {arguments:.2f}, temporary {temporary:.2f}, other "
            "results {other:.2f}, other images {dataset:.2f} GiB".format(**parts)
            + f"; {memory['live'] / 2**30:.2f} of the step alive at a time"
        )
    lines.append(f"FLOPs        {report['flops'] / 1e9:,.1f} GFLOP per step on all devices")
    if "kernels" in report:
        lines += _describe_program(report)
    return "\n".join(lines)


def _describe_program(report):
    """Format the figures of the compiled program."""
    yield f"traffic      {report['bytes_moved'] / 1e9:,.2f} GB per step and device"
    yield f"kernels      {report['kernels']:,}, of which {report['fusions']:,} fusions"
    for one in report["collectives"]:
        kind = "asynchronous" if one["is_async"] else "synchronous"
        yield (
            f"collectives  {one['count']} x {one['kind']} {one['dtype']}, "
            f"{one['nbytes'] / 2**20:,.1f} MiB, {kind}"
        )
    times = (report[f"{key}_seconds"] * 1e3 for key in ("bound", "flops", "bytes"))
    yield (
        "lower bound  {:.2f} ms per step (FLOPs {:.2f} ms, traffic {:.2f} ms): at most ".format(
            *times
        )
        + f"{report['bound_images_per_second']:,.0f} images/s"
    )
    if report["estimated_seconds"]:
        yield (
            f"XLA estimate {report['estimated_seconds'] * 1e3:.2f} ms for the kernels "
            f"({report['estimated_cycles'] / 1e6:.2f} M cycles), without gathers and collectives"
        )
    yield "largest buffers"
    for one in report["largest_buffers"]:
        size = f"{one['bytes'] / 2**20:,.1f} MiB"
        source = "/".join(one["source"].split("/")[-3:])
        yield f"{size:>14}  {one['count']} x {one['type']}  {source}"


def _verdict(report, target):
    """Format whether the step fits, and what it needs if JAX takes too little memory for it."""
    if not report["fits"]:
        return "does not fit"
    if report["memory"]["peak"] > target.pool:
        fraction = target.chip.usable / target.chip.memory
        return f"fits with XLA_PYTHON_CLIENT_MEM_FRACTION={fraction:.3f}"
    return "fits"
