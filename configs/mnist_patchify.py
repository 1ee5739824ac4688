"""Patch embedding by convolution and by reshape and dense layer, on MNIST.

python -m vit_jax.main --config=configs/mnist_patchify.py
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    return presets.mnist_vit()


def sweep():
    """Name the variants: settings that differ from the base config."""
    # Both are the same linear map with the same initial std, up to the order of its inputs, so that
    # a difference beyond the std over seeds would be a bug.
    return {kind: {"model.patchify": kind} for kind in ("conv", "manual")}
