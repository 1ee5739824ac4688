"""LoRA: trained low-rank adapters of frozen attention kernels (Hu et al. 2021, arXiv:2106.09685).

A kernel W [inputs, outputs] becomes W + scale A B, with A [inputs, rank] and B [rank, outputs]. The
adapters "lora_a" and "lora_b" are parameters next to the "kernel" of query, key, value and out of
every block. They are merged into the kernels before the model, which has no code for them, is
applied.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

NAMES = ("lora_a", "lora_b")
_KERNEL = re.compile(r"(Transformer/encoderblock_\d+/\w+/(query|key|value|out))/kernel")


def scale_of(config: Any) -> float:
    """Compute the scale of the adapters, lora_alpha / lora_rank, from a run's config."""
    return (config.lora_alpha or config.lora_rank) / config.lora_rank


def merge(params: dict, scale: float) -> dict:
    """Merge adapters into the kernels of a nested dict of arrays; without adapters, a copy."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    for path in [path for path in flat if path.endswith("/lora_a")]:
        layer = path.removesuffix("/lora_a")
        a, b = flat.pop(path), flat.pop(f"{layer}/lora_b")
        product = jnp.tensordot(a, b, 1, precision="highest")  # [inputs, outputs]
        flat[f"{layer}/kernel"] = flat[f"{layer}/kernel"] + scale * product
    return unflatten_dict(flat, sep="/")


def adapt(model: Any, config: Any) -> Any:
    """Add adapters to a model if the `freeze` of a run's config is "lora"."""
    is_lora = config.freeze == "lora"
    return Adapted(model, config.lora_rank, scale_of(config)) if is_lora else model


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model with adapters, to be initialised and applied like a module."""

    model: Any
    rank: int
    scale: float

    @property
    def num_classes(self) -> int:
        """Width of the head."""
        return self.model.num_classes

    def init(self, key: jax.Array, images: jax.Array) -> dict:
        """Initialise the variables: A as in PEFT, uniform in +-1 / sqrt(inputs), and B = 0."""
        variables = self.model.init(key, images)
        flat: dict[str, Any] = flatten_dict(variables["params"], sep="/")
        kernels = [match for match in map(_KERNEL.fullmatch, flat) if match]
        keys = jax.random.split(jax.random.fold_in(key, 2), len(kernels))
        for match, own in zip(kernels, keys, strict=True):
            shape = flat[match[0]].shape
            axes = 2 if match[2] == "out" else 1  # [heads, width, d], or [d, heads, width]
            bound = math.prod(shape[:axes]) ** -0.5
            a = jax.random.uniform(own, (*shape[:axes], self.rank), minval=-bound, maxval=bound)
            flat[f"{match[1]}/lora_a"] = a
            flat[f"{match[1]}/lora_b"] = jnp.zeros((self.rank, *shape[axes:]))
        return variables | {"params": unflatten_dict(flat, sep="/")}

    def apply(self, variables: dict, *args: Any, **options: Any) -> Any:
        """Apply the model with merged kernels."""
        params = merge(variables["params"], self.scale)
        return self.model.apply(variables | {"params": params}, *args, **options)
