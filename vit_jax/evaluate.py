"""Accuracy and loss over a whole set."""

from collections.abc import Callable, Iterable

import jax

from vit_jax import sharding
from vit_jax.metrics import Sums


def evaluate(
    eval_step: Callable,
    variables: dict,
    batches: Iterable[dict],
    stop: Callable[[], bool] = lambda: False,
) -> dict | None:
    """Evaluates a model on batches, every unmasked example once.

    Args:
      eval_step: jitted (variables, sums, batch) -> sums.
      variables: of the model, {"params", "batch_stats"}.
      batches: with "image", "label" and "mask".
      stop: asked before every batch; True abandons the evaluation.

    Returns:
      {"loss": mean, "accuracy": fraction, "count": examples}, or None if abandoned.
    """
    sums = Sums.empty()
    for batch in batches:
        if stop():
            return None
        sums = sharding.settle(eval_step(variables, sums, batch))
    sums = jax.device_get(sums)
    means = {name: float(value) for name, value in sums.compute().items()}
    return means | {"count": int(sums.loss.count)}
