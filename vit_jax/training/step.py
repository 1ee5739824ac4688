"""The training step, as a pure function of a state."""

import functools
from collections.abc import Collection
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from vit_jax.augment import augment, to_targets
from vit_jax.evaluation.metrics import Sums, binary_sums
from vit_jax.training.loss import make_loss
from vit_jax.training.optim import averaged_params, averages_weights, map_paths
from vit_jax.training.teacher import Teacher, distillation_loss


@flax.struct.dataclass
class TrainState:
    """State of a run."""

    step: jax.Array  # int32, number of updates done
    params: Any  # nested dict of float32 arrays
    batch_stats: Any  # running statistics of BatchNorm, {} for models without
    opt_state: Any
    plateau: Any  # state of `optim.Plateau`, or None; its `scale` multiplies the updates
    ema: Any  # averages {"params", "batch_stats"} to evaluate, or None
    sums: Sums  # training loss and accuracy since the last log entry
    grad_norm: jax.Array  # of the last step, over the trained parameters, before clipping
    bad_step: jax.Array  # int32, the first update with a non-finite loss or gradient, else -1

    @property
    def variables(self) -> dict:
        """Variables of the model: {"params", "batch_stats"}."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict:
        """Variables to evaluate: the averages where there are any."""
        return self.variables if self.ema is None else self.ema


@functools.partial(jax.jit, static_argnums=0)
def init(model, key: jax.Array, images: jax.Array) -> dict:
    """Initialise the variables of a model; equal models are traced once.

    Of the images [1, height, width, channels], only the shape matters.
    """
    return dict(model.init(key, images))


def make_init(model, optimizer: optax.GradientTransformation, config, plateau=None):
    """Make (key, images) -> the TrainState before the first step, with images as in `init`."""

    def first_state(key, images):
        variables = {"batch_stats": {}} | init(model, key, images)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            **variables,
            opt_state=optimizer.init(variables["params"]),
            plateau=plateau.init() if plateau else None,
            ema=jax.tree.map(jnp.copy, variables) if averages_weights(config.optim) else None,
            sums=Sums.empty(),
            grad_norm=jnp.zeros(()),
            bad_step=jnp.full((), -1, jnp.int32),
        )

    return first_state


def make_train_step(
    model,
    optimizer: optax.GradientTransformation,
    config,
    trained: Collection[str] | None = None,
    on_features: bool = False,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
    teacher: Teacher | None = None,
    class_weights: np.ndarray | None = None,
):
    """Make the training step, (state, key, batch) -> state: one optimizer update.

    `key` is the run's; the step's own is folded from it. `batch` holds uint8 "image" [b, h, w, c]
    and int32 "label" [b], or uint8 [b, classes] of several labels per image. The training accuracy
    of mixed images counts the class with the larger share.

    Args:
      model: maps images to logits.
      optimizer: of the trained parameters.
      config: resolved.
      trained: paths of the trained parameters; None: all. The others keep every bit.
      on_features: `model` maps features to logits, and "image" holds features [b, d].
      micro_batches: into which the batch is split.
      mesh: whose axis "data" splits the batch; None: the compiler splits it.
      teacher: predicts the same augmented images; its variables are a fourth argument of the step.
      class_weights: of the loss, [classes]; None: all 1.
    """
    loss = functools.partial(_loss, make_loss(config, class_weights))
    gradients = _make_gradients(model, config, trained, micro_batches, mesh, teacher, loss)

    def train_step(state: TrainState, key: jax.Array, batch: dict, teacher_variables: Any = None):
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        if on_features:
            images, targets = batch["image"], to_targets(batch["label"], model.num_classes)
        else:
            images, targets = augment(
                augment_key, batch["image"], batch["label"], model.num_classes, config
            )
        keys = jax.random.split(dropout_key, len(images))
        constants = state.batch_stats, teacher_variables
        grads, batch_stats, sums = gradients(state.params, *constants, keys, images, targets)
        params, opt_state = _update(optimizer, trained, grads, state)
        grad_norm = optax.tree.norm(grads)
        bad = ~(jnp.isfinite(sums.loss.total) & jnp.isfinite(grad_norm))
        return TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            plateau=state.plateau,
            ema=_averages(state, params, batch_stats, opt_state, config.optim),
            sums=state.sums.merge(sums),
            grad_norm=grad_norm,
            bad_step=jnp.where(bad & (state.bad_step < 0), state.step + 1, state.bad_step),
        )

    return train_step


def _update(optimizer, trained, grads, state):
    """Update the trained parameters; return all parameters and the optimizer's state."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    if state.plateau is not None:
        updates = optax.tree.scale(state.plateau.scale, updates)

    def updated(path, p, u):
        return optax.apply_updates(p, u) if trained is None or path in trained else p

    return map_paths(updated, state.params, updates), opt_state


def make_multi_step(train_step, split: NamedSharding):
    """Make a multi-step, (state, key, batches, ...) -> the state after several of `train_step`.

    `batches` holds "image" and "label" of the whole dataset, [n, ...]; "rows" [k, ..., b], the
    indices of up to k batches; and "count", the number of batches to take. One program serves any
    number, so the results do not depend on how the steps are grouped into calls. `split` is the
    sharding of a batch.
    """

    def multi_step(state, key, batches, *constants):
        def one(i, state):
            place = functools.partial(jax.lax.with_sharding_constraint, shardings=split)
            rows = place(batches["rows"][i])
            batch = {name: place(batches[name][rows]) for name in ("image", "label")}
            return train_step(state, key, batch, *constants)

        return jax.lax.fori_loop(0, batches["count"], one, state)

    return multi_step


def _loss(
    loss, model, config, trained, teacher, params, batch_stats, taught_by, keys, images, targets
):
    """Compute the mean loss, and (new statistics, sums); `taught_by`: variables of the teacher."""
    # Here, so that the backward pass ends at the lowest trained layer.
    if trained is not None:
        frozen = jax.lax.stop_gradient
        params = map_paths(lambda path, p: p if path in trained else frozen(p), params)
    logits, changed = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        keys=keys,
        mutable=["batch_stats"],
    )
    losses = loss(logits, targets)  # [b]
    if teacher is not None:
        weight, temperature = config.train.distill_weight, config.train.distill_temperature
        learned = distillation_loss(logits, teacher.logits(taught_by, images), temperature)
        losses = (1 - weight) * losses + weight * learned
    if config.data.multi_label:
        sums = binary_sums(losses, logits, targets)
    else:
        sums = Sums.single_from_model_output(loss=losses, logits=logits, labels=targets.argmax(-1))
    return losses.mean(), (changed.get("batch_stats", {}), sums)


def _make_gradients(model, config, trained, micro_batches, mesh, teacher, loss):
    """Make (params, batch_stats, teacher's variables, *examples) -> (gradients, statistics, sums).

    The examples are keys, images and targets.
    """
    if mesh is not None and hasattr(model, "axis_name"):  # batch statistics are of all devices
        model = model.clone(axis_name="data")
    grad = jax.grad(functools.partial(loss, model, config, trained, teacher), has_aux=True)
    gradients = functools.partial(_of_batch, grad, micro_batches)
    if mesh is None:
        return gradients
    # Each device separately: the compiler would all-reduce the gradients of every micro-batch, and
    # of every chunk of `layers.convolve`.
    whole, split = jax.P(), jax.P("data")
    return jax.shard_map(
        functools.partial(_of_device, gradients),
        mesh=mesh,
        in_specs=(whole, whole, whole, split, split, split),
        out_specs=whole,
        check_vma=False,  # else the gradients would come summed already
    )


def _of_batch(grad, micro_batches, params, batch_stats, taught_by, *examples):
    """Compute the mean gradients of a batch in micro-batches, and the mean running statistics."""
    if micro_batches == 1:
        grads, (batch_stats, sums) = grad(params, batch_stats, taught_by, *examples)
        return grads, batch_stats, sums

    def add(total, micro_batch):
        grads, (stats, sums) = grad(params, batch_stats, taught_by, *micro_batch)
        return (jax.tree.map(jnp.add, total[0], grads), total[1].merge(sums)), stats

    # Micro-batch i takes examples i, i + n, ...: each device keeps the examples that it has.
    spread = [x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1) for x in examples]
    zero = (jax.tree.map(jnp.zeros_like, params), Sums.empty())
    (grads, sums), stats = jax.lax.scan(add, zero, spread)
    # One update of the running statistics: an update after every micro-batch would forget all but
    # the last few. The statistics of frozen norms do not change and are not rounded.
    batch_stats = jax.tree.map(lambda old, new: old + (new - old).mean(0), batch_stats, stats)
    return jax.tree.map(lambda g: g / micro_batches, grads), batch_stats, sums


def _of_device(gradients, params, batch_stats, taught_by, *examples):
    """Average the gradients of each device's shard of a batch over the devices."""
    grads, batch_stats, sums = gradients(params, batch_stats, taught_by, *examples)
    return jax.lax.pmean(grads, "data"), batch_stats, jax.lax.psum(sums, "data")


def _averages(state, params, batch_stats, opt_state, config):
    """Compute the averages to evaluate after a step."""
    if state.ema is None:
        return None
    new = {"params": params, "batch_stats": batch_stats}
    if not config.ema_decay:
        return new | {"params": averaged_params(config, opt_state, params)}
    # A short memory at first, so that the initial values do not linger (as in TensorFlow's EMA).
    decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    average = optax.incremental_update(new, state.ema, 1.0 - decay)
    # Values that do not change are not rounded.
    return jax.tree.map(lambda n, old, a: jnp.where(n == old, old, a), new, state.ema, average)
