"""Patch embedding by convolution and by reshape and dense layer, on CIFAR-10.

python -m vit_jax.main --config=configs/cifar_patchify.py
"""

from vit_jax.config import presets


def get_config(profile=""):
    """Build the base config of all variants."""
    return presets.cifar10_vit(profile)


def sweep():
    """Name the variants: settings that differ from the base config."""
    # Both are the same linear map with the same initial std, up to the order of its inputs, so that
    # a difference beyond the std over seeds would be a bug.
    return {kind: {"model.patchify": kind} for kind in ("conv", "manual")}
