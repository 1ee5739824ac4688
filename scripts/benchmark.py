"""Measures the training step beside the same step in PyTorch, alternating in one run.

    python scripts/benchmark.py --peer-python=/path/to/an/environment/with/timm/bin/python

The model is the ViT of configs/cifar_patch.py at patch 4 (hidden 256, 8 blocks, 8 heads, MLP 512),
batch 128, AdamW, without dropout, clipping or augmentation; the peer is timm's VisionTransformer in
eager mode, on a batch that is ready as float32. Prints one line per side and the ratio of medians.
"""

import argparse
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
from vit_jax import sharding, train  # noqa: E402
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


def main() -> None:
    """The command line's entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", help="an interpreter that has torch and timm")
    parser.add_argument("--rounds", type=int, default=9, help="alternations (default 9)")
    args = parser.parse_args()
    config = make_config()
    ours = start_ours(config)
    sides = {"vit_jax": ours}
    if args.peer_python:
        sides["timm eager"] = start_peer(args.peer_python, config)
    for step in sides.values():  # compilation, allocation
        step()
    seconds = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, step in sides.items():
            seconds[name].append(step())
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(
            f"{name:10s} {1000 * medians[name]:7.0f} ms a step "
            f"({1000 * min(values):.0f} to {1000 * max(values):.0f}), "
            f"{config.train.batch_size / medians[name]:.0f} images/s"
        )
    if args.peer_python:
        print(f"ratio {medians['timm eager'] / medians['vit_jax']:.2f} (above 1: we are faster)")


def make_config():
    """Returns the resolved config of the measured step."""
    overrides = {
        "augment.kind": "none",
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
    data = types.SimpleNamespace(train=range(50_000), class_names=range(10))
    program = train.build_program(config, data, mesh)
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
