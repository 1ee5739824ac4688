"""What is inside a model: arrays in, arrays out."""

import re

import jax
import jax.numpy as jnp

_ENDS = {"embedding": 0, "conv1": 0, "pre_logits": 2, "head": 3}  # others lie between: 1


def kernel_magnitudes(params: dict) -> dict[str, dict[str, float]]:
    """Returns {layer: {"mean_abs": mean |w|, "l2": sqrt(sum w^2)}} of every kernel.

    The layers come in the order in which an image goes through them.

    Args:
      params: nested dict of arrays; a kernel is a leaf of that name.
    """
    kernels = {
        "/".join(key.key for key in path[:-1]): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
        if path[-1].key == "kernel"
    }

    def place(name):
        numbers = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
        return _ENDS.get(name.split("/")[0], 1), numbers

    found = jax.device_get(
        {
            name: {"mean_abs": jnp.abs(w).mean(), "l2": jnp.sqrt(jnp.square(w).sum())}
            for name, w in kernels.items()
        }
    )
    return {
        name: {k: float(v) for k, v in found[name].items()} for name in sorted(found, key=place)
    }
