"""Learning-rate schedules, optimizers, and which parameters they train."""

import functools
import re
from collections.abc import Collection, Hashable, Iterable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vit_jax.errors import UserError


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


path_of = functools.partial(jax.tree_util.keystr, simple=True, separator="/")  # "head/kernel"


def trained_paths(paths: Collection[str], freeze) -> frozenset[str]:
    """Returns which of the parameters `paths` are trained.

    Args:
      paths: of all parameters, such as "Transformer/encoderblock_0/LayerNorm_0/scale".
      freeze: "none_trained"; "head"; k, the last k blocks with the final norm and the head;
        "full"; or [(pattern, whether what it matches is trained), ...], of which the first that
        matches the whole path decides.

    Raises:
      UserError: there are fewer than k blocks, a parameter matches no rule, or a rule no parameter.
    """
    if freeze == "none_trained":
        return frozenset()
    if freeze == "full":
        return frozenset(paths)
    if freeze == "head":
        return frozenset(path for path in paths if path.startswith("head/"))
    if isinstance(freeze, int):
        top = max(_depths(paths).values())
        if not 0 < freeze < top:
            raise UserError(
                f"freeze=last_{freeze}_blocks: the model has {top - 1} blocks, of which it must be "
                "at least one"
            )
        return frozenset(p for p, depth in _depths(paths).items() if depth >= top - freeze)
    trained, used = set(), set()
    for path in paths:
        rule = next((rule for rule in freeze if rule[0].fullmatch(path)), None)
        if rule is None:
            raise UserError(f"freeze has no rule that matches {path}: end with '.*=frozen', say")
        used.add(rule)
        if rule[1]:
            trained.add(path)
    for rule in freeze:
        if rule not in used:
            raise UserError(
                f"the rule {rule[0].pattern!r} of freeze decides about no parameter; there are "
                f"{', '.join(sorted(paths)[:3])}, ..."
            )
    if not trained:
        raise UserError("the rules of freeze leave nothing to train: use freeze=none_trained")
    return frozenset(trained)


def _depths(paths: Iterable[str]) -> dict[str, int]:
    """Returns {path: 0 for the input's layer, i for the i-th block, 1 more for what follows}."""
    pattern = r"(?:Transformer/encoderblock_(\d+)|layer(\d)_(\d))/"
    matches = {path: re.match(pattern, path) for path in paths}
    keys = {path: tuple(int(n) for n in m.groups() if n) for path, m in matches.items() if m}
    blocks = {key: i + 1 for i, key in enumerate(sorted(set(keys.values())))}
    depths = {}
    for path in paths:
        before = re.match(r"(cls$|embedding|Transformer/posembed_input|conv1|bn1)", path)
        depths[path] = blocks[keys[path]] if path in keys else 0 if before else len(blocks) + 1
    return depths


def _scale_by_depth(decay: float) -> optax.GradientTransformation:
    """Multiplies updates by decay^(distance from the head) (as BEiT, Bao et al. 2022)."""

    def update(updates, state, params=None):
        del params
        paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(updates)]
        depths = _depths(paths)
        top = max(depths.values())
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, u: u * decay ** (top - depths[path_of(path)]), updates
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(
    config, schedule: optax.Schedule, trained: Collection[str] | None = None
) -> optax.GradientTransformation:
    """Returns the optimizer that `config.optim` describes.

    AdamW's decay is decoupled and scaled by the learning rate (Loshchilov & Hutter 2019, as in
    optax and PyTorch). Adam and SGD add weight_decay * w to the gradient, as PyTorch does. Clipping
    is by the norm of the trained parameters' gradients.

    Args:
      config: the settings `config.optim`.
      schedule: step -> learning rate.
      trained: paths of the trained parameters; None: all. The others get no update, and have no
        state.
    """
    optimizer = _make_optimizer(config, schedule)
    if trained is not None:

        def label(params):
            return jax.tree_util.tree_map_with_path(
                lambda path, _: "trained" if path_of(path) in trained else "frozen", params
            )

        kinds: dict[Hashable, optax.GradientTransformation] = {
            "trained": optimizer,
            "frozen": optax.set_to_zero(),
        }
        optimizer = optax.multi_transform(kinds, label)
    if config.layer_decay != 1:
        optimizer = optax.chain(optimizer, _scale_by_depth(config.layer_decay))
    return optimizer


def _make_optimizer(config, schedule):
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
