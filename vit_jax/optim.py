"""Learning-rate schedules and optimizers."""

import jax
import jax.numpy as jnp
import optax
from optax import contrib


def make_schedule(config, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Returns step -> learning rate.

    Args:
      config: the settings `config.optim`.
      warmup_steps: linear to the peak; the rate of step 0 is peak / warmup_steps.
      total_steps: of the run; cosine and linear end there, one step after the last.
    """
    peak, end = config.learning_rate, config.end_learning_rate
    rest = max(1, total_steps - warmup_steps)
    if config.schedule in ("constant", "reduce_on_plateau"):  # the plateau's scale comes on top
        main = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, alpha=end / peak if peak else 0.0)
    elif config.schedule == "linear":
        main = optax.linear_schedule(peak, end, rest)
    elif config.schedule == "step":
        factors = {}
        for percent in config.decay_at_percent:
            step = max(0, round(percent / 100 * total_steps) - warmup_steps)
            factors[step] = factors.get(step, 1.0) * config.decay_factor
        main = optax.piecewise_constant_schedule(peak, factors)
    else:
        raise ValueError(f"unknown schedule {config.schedule!r}")
    if not warmup_steps:
        return main
    first = peak / warmup_steps  # a first step at rate 0 would be lost
    warmup = optax.linear_schedule(first, peak, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, main], [warmup_steps])


class Plateau:
    """Lowers the learning rate when the validation loss stops falling, as PyTorch's scheduler.

    The state is a tree of arrays, whose `scale` multiplies the schedule's rate. An evaluation
    counts as better if its loss is below (1 - threshold) times the best; of those in a row that do
    not, the (patience + 1)th multiplies the scale by the factor, as does
    `torch.optim.lr_scheduler.ReduceLROnPlateau` in its default mode.
    """

    def __init__(self, config):
        """Takes the settings `config.optim`."""
        self._transform = contrib.reduce_on_plateau(
            factor=config.decay_factor,
            patience=config.plateau_patience + 1,  # optax reduces at the count, PyTorch above it
            rtol=config.plateau_threshold,
            cooldown=config.plateau_cooldown,
            min_scale=config.end_learning_rate / config.learning_rate,
        )

    def init(self):
        """Returns the state before the first evaluation."""
        return self._transform.init(jnp.zeros(()))

    def update(self, state, val_loss: float):
        """Returns the state after an evaluation."""
        return self._transform.update(jnp.zeros(()), state, value=jnp.float32(val_loss))[1]


def make_plateau(config) -> Plateau | None:
    """Returns what `config.optim` asks for, None for other schedules."""
    return Plateau(config) if config.schedule == "reduce_on_plateau" else None


def decay_mask(params) -> dict:
    """Returns a tree of bools: True where weight decay applies, which is on kernels only.

    Biases, norm scales, the class token, positions (added or relative) and the vectors behind
    differential attention's lambda are left alone.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer that `config.optim` describes.

    AdamW's decay is decoupled and scaled by the learning rate (Loshchilov & Hutter 2019, as in
    optax and PyTorch). Adam and SGD add weight_decay * w to the gradient, as PyTorch does.
    """
    parts = []
    if config.grad_clip_norm:
        parts.append(optax.clip_by_global_norm(config.grad_clip_norm))
    if config.name == "adamw":
        parts.append(
            optax.adamw(
                schedule,
                b1=config.b1,
                b2=config.b2,
                eps=config.eps,
                weight_decay=config.weight_decay,
                mask=decay_mask,
            )
        )
        return optax.chain(*parts)
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    if config.name == "adam":
        parts.append(optax.adam(schedule, b1=config.b1, b2=config.b2, eps=config.eps))
    elif config.name == "sgd":
        parts.append(optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov))
    else:
        raise ValueError(f"unknown optimizer {config.name!r}")
    return optax.chain(*parts)
