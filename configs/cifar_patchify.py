"""Patches by a convolution or by reshaping and a dense layer, on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_patchify.py

Both are the same linear map of a patch, with the same initial spread: what differs is the order of
its inputs, so any difference beyond the spread over seeds would be a mistake.

Measured so far, reduced, on two CPU cores: docs/results/cifar_patchify.md.
"""

from vit_jax.config import presets


def get_config(profile=""):
    """Build the base config of all variants."""
    return presets.cifar10_vit(profile)


def sweep():
    """Name the variants: settings that differ from the base config."""
    return {kind: {"model.patchify": kind} for kind in ("conv", "manual")}
