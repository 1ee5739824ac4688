"""Metrics as sums over examples, divided once; kernel magnitudes."""

import re
from collections.abc import Iterable, Iterator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics


@flax.struct.dataclass
class Sums(clu_metrics.Collection):
    """Sums of per-example loss and correctness, with the number of examples."""

    loss: clu_metrics.Average.from_output("loss")  # pyright: ignore[reportInvalidTypeForm]
    accuracy: clu_metrics.Accuracy


def binary_losses(logits: jax.Array, targets: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Compute the sigmoid cross-entropy of each example [b], the mean over classes.

    Smoothing moves every target towards 1/2, by that fraction of the distance.
    """
    targets = (1 - smoothing) * targets + smoothing / 2
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def binary_sums(losses: jax.Array, logits: jax.Array, targets: jax.Array, mask=None) -> Sums:
    """Sum the losses [b] and how many labels of `targets` [b, classes] a threshold of 1/2 meets."""
    return Sums.single_from_model_output(
        loss=losses,
        logits=jnp.stack([jnp.zeros_like(logits), logits], -1),
        labels=(targets > 0.5).astype(jnp.int32),
        mask=mask,
    )


def reorder_labels(
    batches: Iterable[dict], numbers: np.ndarray, num_classes: int
) -> Iterator[dict]:
    """Yield batches with the several labels of an image in the order of the head.

    Class i of the dataset is class numbers[i] of the head.
    """
    for batch in batches:
        labels = jnp.zeros((len(batch["label"]), num_classes), batch["label"].dtype)
        yield batch | {"label": labels.at[:, numbers].set(batch["label"])}


# Layers that alphabetical order would misplace; others have rank 0.
_RANKS = {"embedding": -4, "conv1": -4, "query": -3, "key": -2, "value": -1, "gate": -1}
_RANKS |= {"MlpBlock_0": 1, "out": 1, "downsample_conv": 1, "MAPHead_0": 1, "sequence_pool": 1}
_RANKS |= {"pre_logits": 2, "head": 3}


def kernel_magnitudes(params: dict) -> dict[str, dict[str, float]]:
    """Measure every leaf "kernel" of `params`: {layer: {"mean_abs": mean |w|, "l2": L2 norm}}.

    Layers are in the order of the forward pass.
    """
    kernels = {
        "/".join(key.key for key in path[:-1]): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
        if path[-1].key == "kernel"
    }

    def rank(layer):
        name = layer.split("/")
        numbers = [[int(t) if t.isdigit() else t for t in re.split(r"(\d+)", p)] for p in name]
        return [(_RANKS.get(part, 0), split) for part, split in zip(name, numbers, strict=True)]

    return {
        name: {
            "mean_abs": float(jnp.abs(kernels[name]).mean()),
            "l2": float(jnp.sqrt(jnp.square(kernels[name]).sum())),
        }
        for name in sorted(kernels, key=rank)
    }
