"""The evaluation step and the feature step, as pure functions of variables and a batch."""

import jax
import jax.numpy as jnp
import optax

from vit_jax.augment import preprocess
from vit_jax.evaluation.metrics import Sums, binary_losses, binary_sums


def make_eval_step(model, config, on_features: bool = False):
    """Make (variables, sums, batch) -> (sums with the batch's unmasked examples added, logits).

    `batch` is a training batch with a bool "mask" [b], False for padding; `on_features` as in
    `make_train_step`.
    """

    def eval_step(variables: dict, sums: Sums, batch: dict) -> tuple[Sums, jax.Array]:
        images = batch["image"] if on_features else preprocess(batch["image"], config)
        logits = model.apply(variables, images)
        if config.data.multi_label:
            losses = binary_losses(logits, batch["label"])
            added = binary_sums(losses, logits, batch["label"], batch["mask"])
            return sums.merge(added), logits
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        added = Sums.single_from_model_output(
            loss=losses, logits=logits, labels=batch["label"], mask=batch["mask"]
        )
        return sums.merge(added), logits

    return eval_step


def make_feature_step(model, config):
    """Make (variables, batch) -> features (the input of the head), float32 [b, d]."""

    def feature_step(variables: dict, batch: dict) -> jax.Array:
        images = preprocess(batch["image"], config)
        return model.apply(variables, images, capture=True)[1]["features"].astype(jnp.float32)

    return feature_step
