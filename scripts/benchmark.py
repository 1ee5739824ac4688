"""Measures our code beside others' in one run, the sides taking turns.

    python scripts/benchmark.py step --peer-python=/path/to/an/environment/with/timm/bin/python
    python scripts/benchmark.py augment --peer-python=/an/environment/with/torchvision/bin/python

step: the training step of configs/cifar_patch.py's ViT at patch 4 (hidden 256, 8 blocks, 8 heads,
MLP 512), batch 128, AdamW, without dropout, clipping or augmentation; the peer is timm's
VisionTransformer in eager mode, on a batch that is ready as float32.

augment: the kind "autoaugment" (crop, flip, policy, normalisation) on batches of 32 x 32 images;
the peers do the policy alone, in one process per core: torchvision's AutoAugment, if there is a
--peer-python, and the same policy written with Pillow. Then that same training step with the
augmentation and without.

Prints one line per side, and ratios of medians.
"""

import argparse
import math
import os
import pathlib
import subprocess
import sys
import time
import types

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from configs import cifar_patch  # noqa: E402
from vit_jax import config as settings  # noqa: E402
from vit_jax import sharding  # noqa: E402
from vit_jax.program import build_program  # noqa: E402
from vit_jax.validation import validate  # noqa: E402

# Runs in the peer's interpreter: one line on standard input asks for one step, and its seconds are
# the answer.
PEER = """
import sys, time, torch
from timm.models.vision_transformer import VisionTransformer
batch, image, patch, width, depth, heads, mlp = map(int, sys.argv[1:])
model = VisionTransformer(img_size=image, patch_size=patch, num_classes=10, embed_dim=width,
                          depth=depth, num_heads=heads, mlp_ratio=mlp / width)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
images, labels = torch.randn(batch, 3, image, image), torch.randint(0, 10, (batch,))
print(sum(p.numel() for p in model.parameters()), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    print(time.perf_counter() - start, flush=True)
"""


# Run in processes of their own, one per core: each line asks for one pass over its images.
PEER_AUGMENT = """
import sys, numpy as np
from PIL import Image
pixels = np.random.default_rng(0).integers(0, 256, (int(sys.argv[1]), 32, 32, 3), np.uint8)
images = [Image.fromarray(image) for image in pixels]
print(flush=True)
for line in sys.stdin:
    for image in images:
        transform(image)
    print(flush=True)
"""
TORCHVISION = """
import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
torch.set_num_threads(1)
transform = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=128)
"""
PILLOW = """
import random
from PIL import Image, ImageEnhance, ImageOps
from vit_jax.augment import policies

def affine(*matrix):
    nearest = Image.Resampling.NEAREST
    return lambda image: image.transform((32, 32), Image.Transform.AFFINE, matrix, nearest,
                                         fillcolor=(128, 128, 128))

def operation(name, m):
    if name in policies.ENHANCEMENTS:
        return lambda image: getattr(ImageEnhance, name)(image).enhance(1 + m)
    if name == "Rotate":
        return lambda image: image.rotate(m, fillcolor=(128, 128, 128))
    if name in ("Solarize", "Posterize"):
        return lambda image: getattr(ImageOps, name.lower())(image, int(m))
    if name in policies.GEOMETRIC:
        shift = -int(m)
        return affine(*{"ShearX": (1, m, 0, 0, 1, 0), "ShearY": (1, 0, 0, m, 1, 0),
                        "TranslateX": (1, 0, shift, 0, 1, 0),
                        "TranslateY": (1, 0, 0, 0, 1, shift)}[name])
    return getattr(ImageOps, name.lower())

pairs = []
for pair in policies.POLICIES["cifar10"]:
    pairs.append([])
    for name, rate, level in pair:
        m = float(policies.magnitudes(name, 10, 32, 32)[level])
        signs = (m, -m) if name in policies.SIGNED else (m,)
        pairs[-1].append((rate, [operation(name, m) for m in signs]))

def transform(image):
    for rate, operations in random.choice(pairs):
        if random.random() < rate:
            image = random.choice(operations)(image)
    return image
"""


def main() -> None:
    """The command line's entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="the training step")
    step.add_argument("--peer-python", help="an interpreter that has torch and timm")
    augment = commands.add_parser("augment", help="the augmentation, and its share of the step")
    augment.add_argument("--peer-python", help="an interpreter that has torchvision")
    augment.add_argument("--batch-size", type=int, default=512, help="images (default 512)")
    for command in (step, augment):
        command.add_argument("--rounds", type=int, default=9, help="alternations (default 9)")
    args = parser.parse_args()
    if args.command == "step":
        measure_step(args.peer_python, args.rounds)
    else:
        measure_augment(args.peer_python, args.rounds, args.batch_size)


def measure_step(peer_python, rounds):
    """Prints the speed of the training step."""
    config = make_config("none")
    sides = {"vit_jax": start_ours(config)}
    if peer_python:
        sides["timm eager"] = start_peer(peer_python, config)
    medians = take_turns(sides, rounds, config.train.batch_size, "step")
    if peer_python:
        print(f"ratio {medians['timm eager'] / medians['vit_jax']:.2f} (above 1: we are faster)")


def measure_augment(peer_python, rounds, batch_size):
    """Prints the speed of the augmentation, and of the training step with and without it."""
    config = make_config("autoaugment")
    sharding.start(False, config.sharding.cpu_devices, math.gcd(batch_size, 128))
    sides = {"vit_jax": start_augment(config, batch_size)}
    sides["Pillow"] = start_augment_peers(sys.executable, PILLOW, batch_size)
    if peer_python:
        sides["torchvision"] = start_augment_peers(peer_python, TORCHVISION, batch_size)
    medians = take_turns(sides, rounds, batch_size, "batch")
    for name in list(sides)[1:]:
        print(f"ratio to {name} {medians[name] / medians['vit_jax']:.2f} (above 1: we are faster)")
    sides = {kind: start_ours(make_config(kind)) for kind in ("none", "autoaugment")}
    medians = take_turns(sides, rounds, config.train.batch_size, "step")
    alone = start_augment(config, config.train.batch_size)
    alone()
    share = float(np.median([alone() for _ in range(rounds)])) / medians["autoaugment"]
    print(f"the augmentation alone takes {100 * share:.2f} % of the step's time")


def take_turns(sides, rounds, batch_size, unit):
    """Runs the sides in turn, prints a line for each, and returns their median seconds."""
    for run in sides.values():  # compilation, allocation
        run()
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            seconds[name].append(run())
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(
            f"{name:11s} {1000 * medians[name]:8.2f} ms a {unit} "
            f"({1000 * min(values):.2f} to {1000 * max(values):.2f}), "
            f"{batch_size / medians[name]:,.0f} images/s"
        )
    return medians


def make_config(kind):
    """Returns the resolved config of the measured step, with a kind of augmentation."""
    overrides = {
        "augment.kind": kind,
        "model.dropout_rate": 0.0,
        "optim.grad_clip_norm": 0.0,
        "train.label_smoothing": 0.0,
    }
    config = settings.resolve(
        settings.with_overrides(cifar_patch.get_config(), overrides, "the benchmark")
    )
    validate(config)
    return config


def start_ours(config):
    """Returns a function that runs one step and returns its seconds."""
    sharding.start(False, config.sharding.cpu_devices, config.train.batch_size)
    import jax

    mesh = sharding.make_mesh()
    # Of the data, a program needs the sizes only.
    data = types.SimpleNamespace(train=range(50_000), class_names=range(10), fingerprint={})
    program = build_program(config, data, mesh)
    rng, batch_size = np.random.default_rng(0), config.train.batch_size
    batch = sharding.put_split(
        mesh,
        {
            "image": rng.integers(0, 256, (batch_size, 32, 32, 3), np.uint8),
            "label": rng.integers(0, 10, batch_size).astype(np.int32),
            "mask": np.ones(batch_size, bool),
        },
    )
    key = jax.random.key(0)
    state = [program.init(key, np.zeros((1, 32, 32, 3), np.float32))]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state[0].params))
    print(f"vit_jax: {parameters:,} parameters, {sharding.describe_devices()}")

    def step():
        start = time.perf_counter()
        state[0] = program.train_step(state[0], key, batch)
        jax.block_until_ready(state[0])
        return time.perf_counter() - start

    return step


def start_augment(config, batch_size):
    """Returns a function that augments some batches and returns the seconds of one."""
    import jax

    from vit_jax.augment import augment

    mesh = sharding.make_mesh()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, batch_size).astype(np.int32)
    batch = sharding.put_split(mesh, (images, labels))
    program = jax.jit(
        lambda key, images, labels: augment(key, images, labels, 10, config),
        out_shardings=sharding.split(mesh),
    )
    keys = jax.random.split(jax.random.key(0), 16)

    def run():
        start = time.perf_counter()
        for key in keys:
            result = sharding.settle(program(key, *batch))
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / len(keys)

    return run


def start_augment_peers(python, transform, batch_size):
    """Returns a function that has a peer per core augment its share of a batch: -> seconds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    command = [python, "-c", transform + PEER_AUGMENT, str(batch_size // cores)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(cores)]

    def wait():
        for process in processes:
            if not process.stdout.readline():
                sys.exit(f"error: the peer {python} ended; does it have what it imports?")

    def run():
        start = time.perf_counter()
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        wait()
        return time.perf_counter() - start

    wait()
    return run


def start_peer(python, config):
    """Returns a function that has the peer run one step and returns its seconds."""
    model = config.model
    sizes = (
        *(config.train.batch_size, config.data.image_size, model.patch_size),
        *(model.hidden_size, model.depth, model.num_heads, model.mlp_dim),
    )
    process = subprocess.Popen(
        [python, "-c", PEER, *map(str, sizes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def answer():
        line = process.stdout.readline()
        if not line:
            sys.exit(f"error: the peer {python} ended; does it have torch and timm?")
        return line

    print(f"timm eager: {int(answer()):,} parameters")

    def step():
        process.stdin.write("\n")
        process.stdin.flush()
        return float(answer())

    return step


if __name__ == "__main__":
    main()
