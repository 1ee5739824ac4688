"""Patches by a convolution or by reshaping and a dense layer, on MNIST.

python -m vit_jax.main --config=configs/mnist_patchify.py

Both are the same linear map of a patch, with the same initial spread: what differs is the order of
its inputs, so any difference beyond the spread over seeds would be a mistake.

Measured so far, reduced, on two CPU cores: docs/results/mnist_patchify.md.
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.mnist_vit()
    config.train.num_seeds = 3
    return config


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {kind: {"model.patchify": kind} for kind in ("conv", "manual")}
