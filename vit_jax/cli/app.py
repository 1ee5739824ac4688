"""Dispatch `vit-jax COMMAND ARGUMENTS` to the command's module, which alone is imported."""

import importlib
import sys
from collections.abc import Sequence

import vit_jax
from vit_jax.runtime.errors import suggest

COMMANDS = {
    "train": "train every variant and seed of a config, then write its table and report",
    "prepare-data": "prepare CIFAR-10, MNIST or EuroSAT as a TFDS array_record dataset",
    "check-data": "check a dataset for duplicates, unreadable images and more before training",
    "convert": "convert pretrained weights to a checkpoint, or export a run to another project",
    "evaluate": "evaluate a trained model on a dataset",
    "suspects": "rank the labels of a run's dataset by how wrong they look, for you to correct",
    "predict": "classify images with a trained model",
    "visualize": "draw a trained model's attention and features, or a config's augmentation",
    "explore": "write an interactive page of what a ViT attends to",
    "compile": "compile a config for TPUs or GPUs without having them: memory, FLOPs, collectives",
    "launch": "train one run in several processes on this machine",
}
HELP = """Train, fine-tune and explain Vision Transformers in JAX/Flax.

usage: vit-jax COMMAND [ARGUMENTS]

{commands}

`vit-jax COMMAND --help` lists its arguments, `vit-jax --version` prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit status."""
    name, *arguments = [*(sys.argv[1:] if argv is None else argv)] or [""]
    if name in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {n:14}{text}" for n, text in COMMANDS.items())))
        return 0
    if name == "--version":
        print(vit_jax.__version__)
        return 0
    if name not in COMMANDS:
        hint = suggest(name, COMMANDS, f"use one of {', '.join(COMMANDS)}")
        problem = f"{name!r} is not a command" if name else "the command is missing"
        print(f"error: {problem}; {hint}", file=sys.stderr)
        return 1
    sys.argv = [f"vit-jax {name}", *arguments]  # its first entry is the name in usage messages
    return importlib.import_module(f"vit_jax.cli.{name.replace('-', '_')}").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
