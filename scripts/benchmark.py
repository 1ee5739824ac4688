"""Compare the speed of vit_jax and PyTorch, in alternating runs.

    python scripts/benchmark.py step --peer-python=/path/to/an/environment/with/timm/bin/python
    python scripts/benchmark.py step --model=resnet18 --peer-python=...
    python scripts/benchmark.py input --folder=photos --peer-python=...

MODE is one of

  step      training step with AdamW, without dropout, clipping or augmentation; peer: timm's
            VisionTransformer or torchvision's ResNet18, eager and, with --compile, compiled; on an
            H100, H200 or TPU v5e also the lower bound of its time from FLOPs and memory traffic,
            which `finetune` prints too
  infer     evaluation step; peer: the forward pass of the same model
  finetune  training step of the head only, with a forward pass through the frozen trunk
  explain   a --method of explaining a batch; peers: timm with hooks (rollout), captum
            (input_x_gradient, integrated_gradients), pytorch-grad-cam (grad_cam), in the peer's
            environment; the other methods have none
  input     one epoch over an image folder: decode, crop, flip, normalise; the same without the
            part on the device (crop, flip, normalise); decoding alone, by Pillow in one thread per
            core; peer: torchvision's ImageFolder and a DataLoader with one worker per core
  augment   augment.kind=autoaugment (crop, flip, policy, normalise) on 32x32 images; peer:
            torchvision's policy without the rest, in one process per core
  seeds     training step of four vectorised seeds and of one; images/s are per seed
  parts     training step of the plain ViT and with one part each; ratios are to its time
  laptop    training step of configs/cifar_laptop.py on all patches, with crop, flip and Muon; peer:
            the same in PyTorch, from timm's blocks and torch.optim.Muon
  calls     multi-step dispatch: 32 training steps in one call and in 32 calls
  resident  main-thread time of a training step on a device-resident dataset
  startup   seconds from the main command to the first step of configs/cifar_patch.py's patch_4, on
            the digits or another --data, with cold and with warm caches

on one of the models cifar_vit (configs/cifar_patch.py with patch size 4), small_vit (the same with
width 128 and depth 6), digits_vit (configs/digits_patch.py with patch size 2), vit_ti, vit_b and
vit_l (patch size 16 at 224 pixels) or resnet18 (at 32 pixels). Peers get prepared float32 batches,
except in `input`. Prints one line per implementation with the ratio of medians; --json=FILE appends
them as JSON lines. For `step`, `finetune` and `infer`, also prints the TFLOP/s of matrix products
and, where the lower bound is known or with --peak=989 (an H100 in bfloat16), the model FLOPs
utilisation (MFU).
"""

import argparse
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import benchmark_modes as modes  # noqa: E402
from benchmark_input import num_cores, parse_size, start_input, with_images  # noqa: E402
from benchmark_overheads import measure_resident, measure_startup  # noqa: E402

from vit_jax.runtime import memory, sharding  # noqa: E402


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=modes.MODES, metavar="MODE")
    parser.add_argument("--peer-python", help="Python interpreter with torch, timm and torchvision")
    parser.add_argument("--model", choices=modes.MODELS, default="cifar_vit")
    parser.add_argument("--batch-size", type=int, help="default: the usual one of the model")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="compute dtype of step, finetune and infer (default auto: as train.dtype)",
    )
    parser.add_argument(
        "--method", default="rollout", help="explain: method of explanation (default rollout)"
    )
    parser.add_argument("--peak", type=float, help="peak TFLOP/s of the device, for the MFU")
    parser.add_argument(
        "--rounds", type=int, default=9, help="timed runs of each implementation (default 9)"
    )
    parser.add_argument("--compile", action="store_true", help="add torch.compile as a peer")
    add_input_options(parser)
    parser.add_argument("--data", default="digits", help="startup: data.name (default digits)")
    parser.add_argument("--json", type=pathlib.Path, help="append a JSON line to this file")
    args = parser.parse_args()
    memory.keep_freed()  # as the main command does
    if args.mode == "augment":
        args.model = "cifar_vit"  # only its image size matters
    if args.dtype != "auto" and args.mode not in ("step", "finetune", "infer"):
        parser.error(f"--dtype has no effect on {args.mode}")
    if args.peak and args.mode not in modes.TRAINED:
        parser.error(f"--peak has no effect on {args.mode}")
    if args.compile and args.mode not in modes.COMPILED_BY_PEERS:
        parser.error(f"--compile has no effect on {args.mode}")
    if args.mode == "laptop" and (args.model != "cifar_vit" or args.batch_size):
        parser.error("--model and --batch-size have no effect on laptop")
    if args.mode == "explain":
        check_method(parser, args)
    if args.mode == "input" and bool(args.folder) == bool(args.make_images):
        parser.error("input needs either --folder or --make-images")
    if args.mode != "input" and args.make_images:
        parser.error(f"--make-images has no effect on {args.mode}")
    results = with_images(args, lambda: measure(args))
    if args.json:
        line = {"mode": args.mode, "model": args.model}
        if args.mode in ("step", "finetune", "infer"):
            line["dtype"] = sharding.dtype_of(args.dtype).name
        line |= {"device": sharding.describe_devices(sharding.make_mesh())}
        with args.json.open("a") as file:
            file.write(json.dumps(line | results) + "\n")


def measure(args) -> dict:
    """Measure a mode; return the results of `take_turns`, batch size and lower bound."""
    if args.mode == "startup":
        return measure_startup(args.data)
    if args.mode == "resident":
        return measure_resident(modes.make_spec(args))
    spec = modes.make_spec(args)
    if args.mode == "input":
        sides, count = start_input(spec, args)
        return take_turns(sides, args.rounds, count, cores=num_cores())
    sides, count = modes.START[args.mode](spec, args)
    flops = modes.flops_per_image(args.mode, spec)
    known = {key: spec[key] for key in ("model", "batch_size", "bound_seconds") if key in spec}
    return take_turns(sides, args.rounds, count, flops, args.peak or spec.get("peak")) | known


def add_input_options(parser) -> None:
    """Add the options of the mode `input`."""
    parser.add_argument("--folder", help="input: image folder, <class>/*")
    parser.add_argument(
        "--make-images",
        metavar="WIDTHxHEIGHT",
        type=parse_size,
        help="input: instead of --folder, make 1,024 JPEG files of this size in a temporary folder",
    )
    parser.add_argument(
        "--crop-min-area",
        type=float,
        default=0.0,
        help="input: smallest area fraction of a random resized crop (default 0: padded crop)",
    )
    parser.add_argument(
        "--scaled-decoding", action="store_true", help="input: set data.scaled_decoding"
    )


def check_method(parser, args) -> None:
    """End the command if the model has no explanation by --method."""
    from vit_jax.explanation.methods import METHODS

    if args.method not in METHODS:
        parser.error(f"--method={args.method}: use {', '.join(METHODS)}")
    if args.model == "resnet18":
        parser.error("resnet18 has no peer for the explanations: use a ViT")


def take_turns(sides, rounds, count, flops=0, peak=None, cores=0) -> dict:
    """Time the implementations in alternation and print their speeds.

    Args:
      sides: {name: function that runs once and returns seconds}; the first one is vit_jax.
      rounds: timed runs of each, after one warm-up run.
      count: images per run.
      flops: floating-point operations per image, if known.
      peak: peak TFLOP/s of the device, if known.
      cores: number of cores, to print images/s per core; 0: not printed.

    Returns:
      {name: {"seconds": median, "ratio": median divided by that of vit_jax}}.
    """
    for run in sides.values():  # compilation, allocation
        run()
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            seconds[name].append(run())
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    ours = next(iter(medians.values()))
    for name, values in seconds.items():
        speed = flops * count / medians[name] / 1e12
        print(
            f"{name:15s} {1000 * medians[name]:9.2f} ms "
            f"({1000 * min(values):.2f} to {1000 * max(values):.2f}), "
            f"{count / medians[name]:,.0f} images/s, ratio {medians[name] / ours:.2f}"
            + (f", {count / medians[name] / cores:,.0f} images/s per core" if cores else "")
            + (f", {speed:,.2f} TFLOP/s" if flops else "")
            + (f", MFU {speed / peak:.1%}" if flops and peak else "")
        )
    if any(name.startswith("torch") for name in medians):
        print("A ratio above 1 means that vit_jax is faster.")
    return {name: {"seconds": m, "ratio": m / ours} for name, m in medians.items()}


if __name__ == "__main__":
    main()
