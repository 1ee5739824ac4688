"""The loss of the labels."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.config.rules import parse_class_weights
from vit_jax.evaluation.metrics import binary_losses
from vit_jax.runtime.errors import UserError

_SMALLEST = 1e-7  # of 1 - p, whose powers below 1 have an infinite gradient at 0


def make_loss(config: Any, class_weights: np.ndarray | None = None) -> Callable:
    """Make (logits [b, c], targets [b, c]) -> losses [b], of the config.

    The targets are distributions over the classes, one-hot or mixed. The loss of an example is
    multiplied by the mean of `class_weights` [c] under its target. For several labels per image,
    targets are in [0, 1], and the loss is the sigmoid cross-entropy, the mean over classes.
    """
    smoothing, gamma = config.train.label_smoothing, config.train.focal_gamma
    if config.data.multi_label:
        return functools.partial(binary_losses, smoothing=smoothing)

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        # Smoothing the mixed targets is the same as mixing smoothed ones.
        smooth = optax.smooth_labels(targets, smoothing)
        if gamma:
            losses = focal_loss(logits, smooth, gamma)
        else:
            losses = optax.softmax_cross_entropy(logits, smooth)
        return losses if class_weights is None else losses * (targets @ class_weights)

    return loss


def focal_loss(logits: jax.Array, targets: jax.Array, gamma: float) -> jax.Array:
    """Compute the focal loss [b] of logits and targets [b, c] (Lin et al. 2017, arXiv:1708.02002).

    The cross-entropy of a class with the probability p is multiplied by (1 - p)^gamma.
    """
    log_p = jax.nn.log_softmax(logits)
    factors = jnp.maximum(-jnp.expm1(log_p), _SMALLEST) ** gamma
    return -(targets * factors * log_p).sum(-1)


def find_class_weights(config: Any, labels: Callable[[], np.ndarray], num_classes: int) -> Any:
    """Compute the weights [c] of `config.train.class_weights`; None without any.

    "balanced" is n / (c n_i) of a class with n_i of the n training examples, so that all classes
    have the same total and the mean over the examples is 1; c counts the classes with examples.

    Args:
      config: of the run.
      labels: reads the training labels; called for "balanced" only.
      num_classes: of the dataset.

    Raises:
      UserError: the number of weights is not that of the classes.
    """
    given = parse_class_weights(config.train.class_weights)
    if given == "balanced":
        counts = np.bincount(labels(), minlength=num_classes)
        weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.where(counts, weights, 0).astype(np.float32)
    if given is None:
        return None
    if len(given) != num_classes:
        raise UserError(
            f"train.class_weights={config.train.class_weights} has {len(given)} weights for "
            f"{num_classes} classes: give one per class, in the order of the class names"
        )
    return np.array(given, np.float32)
