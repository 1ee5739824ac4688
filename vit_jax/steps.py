"""One training step and one evaluation step, as pure functions of a state."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax.augment import augment, preprocess
from vit_jax.metrics import Sums


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      step: int32, number of updates done.
      params: nested dict of float32 arrays.
      batch_stats: running statistics of BatchNorm, {} for models without.
      opt_state: of the optimizer.
      plateau: state of `optim.Plateau`, or None; its `scale` multiplies the updates.
      ema: moving averages {"params", "batch_stats"}, or None.
      sums: training loss and accuracy since the last log row.
      grad_norm: of the last step, before clipping.
      bad_step: int32, number of the first update with a non-finite loss or gradient, else -1.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    plateau: Any
    ema: Any
    sums: Sums
    grad_norm: jax.Array
    bad_step: jax.Array

    @property
    def variables(self) -> dict:
        """What the model is applied with: {"params", "batch_stats"}."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict:
        """What is evaluated: the moving averages where there are any."""
        return self.variables if self.ema is None else self.ema


def make_init(model, optimizer: optax.GradientTransformation, config, plateau=None):
    """Returns (key, images) -> the TrainState before the first step.

    `images` is one batch [1, height, width, channels], of which only the shape matters.
    """

    def init(key, images):
        variables = {"batch_stats": {}} | dict(model.init(key, images))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            **variables,
            opt_state=optimizer.init(variables["params"]),
            plateau=plateau.init() if plateau else None,
            ema=jax.tree.map(jnp.copy, variables) if config.optim.ema_decay else None,
            sums=Sums.empty(),
            grad_norm=jnp.zeros(()),
            bad_step=jnp.full((), -1, jnp.int32),
        )

    return init


def make_train_step(model, optimizer: optax.GradientTransformation, config):
    """Returns (state, key, batch) -> state, one optimizer update.

    `key` is the run's; the step's own is folded from it, so nothing random is stored. `batch`
    holds uint8 "image" [b, h, w, c] and int32 "label" [b]. The training accuracy of mixed images
    counts the class with the larger share.
    """

    def loss_fn(params, batch_stats, key, images, targets):
        logits, changed = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        # Smoothing the mixed targets is the same as mixing smoothed ones.
        smooth = optax.smooth_labels(targets, config.train.label_smoothing)
        losses = optax.softmax_cross_entropy(logits, smooth)  # [b]
        sums = Sums.single_from_model_output(loss=losses, logits=logits, labels=targets.argmax(-1))
        return losses.mean(), (changed.get("batch_stats", {}), sums)

    def gradients(*args):
        grads, (batch_stats, sums) = jax.grad(loss_fn, has_aux=True)(*args)
        return grads, batch_stats, sums

    def train_step(state: TrainState, key: jax.Array, batch: dict) -> TrainState:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        images, targets = augment(
            augment_key, batch["image"], batch["label"], model.num_classes, config
        )
        grads, batch_stats, sums = _accumulated(
            gradients,
            config.train.accumulation_steps,
            (state.params, state.batch_stats, dropout_key, images, targets),
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        if state.plateau is not None:
            updates = optax.tree.scale(state.plateau.scale, updates)
        params = optax.apply_updates(state.params, updates)
        grad_norm = optax.tree.norm(grads)
        bad = ~(jnp.isfinite(sums.loss.total) & jnp.isfinite(grad_norm))
        return TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            plateau=state.plateau,
            ema=_moving_average(state, params, batch_stats, config.optim.ema_decay),
            sums=state.sums.merge(sums),
            grad_norm=grad_norm,
            bad_step=jnp.where(bad & (state.bad_step < 0), state.step + 1, state.bad_step),
        )

    return train_step


def _accumulated(gradients, parts, inputs):
    """Returns gradients, statistics and sums of a batch that is taken in equal parts."""
    if parts == 1:
        return gradients(*inputs)
    params, batch_stats, key, images, targets = inputs

    # Part i takes examples i, i + parts, ...: each device keeps the examples that it has.
    def spread(x):
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        i, part_images, part_targets = part
        key_i = jax.random.fold_in(key, i)
        grads, stats, sums = gradients(params, total[1], key_i, part_images, part_targets)
        return (jax.tree.map(jnp.add, total[0], grads), stats, total[2].merge(sums)), None

    zero = (jax.tree.map(jnp.zeros_like, params), batch_stats, Sums.empty())
    parts_of_batch = (jnp.arange(parts), spread(images), spread(targets))
    (grads, batch_stats, sums), _ = jax.lax.scan(add, zero, parts_of_batch)
    return jax.tree.map(lambda g: g / parts, grads), batch_stats, sums


def _moving_average(state, params, batch_stats, decay):
    if state.ema is None:
        return None
    # A short memory at first, so that the random start does not linger (as in TensorFlow's EMA).
    decay = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    new = {"params": params, "batch_stats": batch_stats}
    return optax.incremental_update(new, state.ema, 1.0 - decay)


def make_eval_step(model, config):
    """Returns (variables, sums, batch) -> sums with the batch's unmasked examples added.

    `batch` is a training batch with a bool "mask" [b], False for padding.
    """

    def eval_step(variables: dict, sums: Sums, batch: dict) -> Sums:
        logits = model.apply(variables, preprocess(batch["image"], config))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return sums.merge(
            Sums.single_from_model_output(
                loss=losses, logits=logits, labels=batch["label"], mask=batch["mask"]
            )
        )

    return eval_step
