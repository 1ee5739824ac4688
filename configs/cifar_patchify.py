"""Patches by a convolution or by reshaping and a dense layer, on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_patchify.py

Both are the same linear map of a patch, with the same initial spread: what differs is the order of
its inputs, so any difference beyond the spread over seeds would be a mistake.

Measured so far, reduced, on two CPU cores: docs/results/cifar_patchify.md.
"""

from vit_jax.config import presets


def get_config():
    """Returns the experiment's settings."""
    return presets.cifar10_vit()


def sweep():
    """Returns the variants."""
    return {kind: {"model.patchify": kind} for kind in ("conv", "manual")}
