"""Measures our code beside PyTorch's in one run, the sides taking turns.

    python scripts/benchmark.py step --peer-python=/path/to/an/environment/with/timm/bin/python
    python scripts/benchmark.py step --model=resnet18 --peer-python=...
    python scripts/benchmark.py input --folder=photos --peer-python=...

MODE is one of

  step      the training step with AdamW, without dropout, clipping or augmentation; the peer is
            timm's VisionTransformer (torchvision's ResNet18), eager and, with --compile, compiled
  infer     the evaluation step; the peer is the forward pass of the same
  finetune  the training step of the head alone, the images going through the whole model
  explain   attention rollout of a batch; the peer is timm with hooks
  input     a pass over a folder of images: decoded, cropped, mirrored, normalised; the peer is
            torchvision's ImageFolder and a DataLoader with a worker for each core
  augment   the kind "autoaugment" (crop, flip, policy, normalisation) on 32 x 32 images; the peer
            is the policy alone, by torchvision, in one process for each core
  seeds     the training step of four seeds at once, beside that of one; images/s are of each seed
  calls     32 training steps in one call, beside 32 calls
  resident  what the main thread does for a training step on images that the devices hold
  startup   from the main command to the first step of configs/cifar_patch.py's patch_4, on the
            digits or another --data set: with empty caches, and again

on one of the models cifar_vit (configs/cifar_patch.py at patch 4), small_vit (the same, 128 wide
with 6 blocks), digits_vit (configs/digits_patch.py at patch 2), vit_ti, vit_b (16-pixel patches at
224 pixels) or resnet18 (at 32 pixels). Peers get batches that are ready as float32, but in `input`.
Prints a line for each side and ratios of medians; --json=FILE adds them to a file of JSON lines.
For `step` and `infer` of a ViT also the TFLOP/s of its products, and with --peak=989 (an H100 in
bfloat16) the share of what the device could do: the model's FLOPs utilisation (MFU).
"""

import argparse
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import benchmark_modes as modes  # noqa: E402

from vit_jax.runtime import memory, sharding  # noqa: E402


def main() -> None:
    """The command line's entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=modes.MODES, metavar="MODE")
    parser.add_argument("--peer-python", help="an interpreter that has torch, timm, torchvision")
    parser.add_argument("--model", choices=modes.MODELS, default="cifar_vit")
    parser.add_argument("--batch-size", type=int, help="default: what is usual for the model")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of step, finetune and infer, on both sides (default auto: as train.dtype)",
    )
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device, for the MFU")
    parser.add_argument("--rounds", type=int, default=9, help="alternations (default 9)")
    parser.add_argument("--compile", action="store_true", help="torch.compile as one more peer")
    parser.add_argument("--folder", help="input: of images, in folders by class")
    parser.add_argument("--data", default="digits", help="startup: data.name (default digits)")
    parser.add_argument("--json", type=pathlib.Path, help="add a line to this file")
    args = parser.parse_args()
    memory.keep_freed()  # as the main command does
    if args.mode == "augment":
        args.model = "cifar_vit"  # of which only the size of the images matters
    if args.dtype != "auto" and args.mode not in ("step", "finetune", "infer"):
        parser.error(f"--dtype has no effect on {args.mode}")
    if args.peak and not modes.flops_per_image(args.mode, modes.make_spec(args)):
        parser.error(f"--peak has no effect on {args.mode} of {args.model}")
    if args.mode == "explain" and args.model == "resnet18":
        parser.error("resnet18 has no attention to explain")
    if args.mode == "startup":
        found = modes.measure_startup(args.data)
    elif args.mode == "resident":
        found = modes.measure_resident(modes.make_spec(args))
    else:
        spec = modes.make_spec(args)
        sides, count = modes.START[args.mode](spec, args)
        found = take_turns(
            sides, args.rounds, count, modes.flops_per_image(args.mode, spec), args.peak
        )
    if args.json:
        line = {"mode": args.mode, "model": args.model, "dtype": args.dtype}
        line |= {"device": sharding.describe_devices()}
        with args.json.open("a") as file:
            file.write(json.dumps(line | found) + "\n")


def take_turns(sides, rounds, count, flops=0, peak=None) -> dict:
    """Runs the sides in turn and prints their speeds.

    Args:
      sides: name -> a function that runs once and returns its seconds; ours is the first.
      rounds: how often each one runs, after a first time that is not counted.
      count: images of a run.
      flops: floating-point operations of an image, if known.
      peak: TFLOP/s of the device, if known.

    Returns:
      {name: {"seconds": median, "ratio": of that to ours}}.
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
            + (f", {speed:,.2f} TFLOP/s" if flops else "")
            + (f", MFU {speed / peak:.1%}" if flops and peak else "")
        )
    if any(name.startswith("torch") for name in medians):
        print("A ratio above 1 means that we are faster.")
    return {name: {"seconds": m, "ratio": m / ours} for name, m in medians.items()}


if __name__ == "__main__":
    main()
