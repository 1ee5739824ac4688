"""Learning-rate schedules, optimizers, and which parameters they train."""

import functools
import math
import re
from collections.abc import Collection, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from optax import contrib

from vit_jax.models import lora
from vit_jax.runtime.errors import UserError


def make_schedule(config, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Make step -> learning rate.

    Args:
      config: `config.optim`.
      warmup_steps: linear to the peak; the learning rate of step 0 is peak / warmup_steps.
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
    else:  # "step"
        factors = {}
        for percent in config.decay_at_percent:
            step = max(0, round(percent / 100 * total_steps) - warmup_steps)
            factors[step] = factors.get(step, 1.0) * config.decay_factor
        main = optax.piecewise_constant_schedule(peak, factors)
    if not warmup_steps:
        return main
    first = peak / warmup_steps  # a first step at a learning rate of 0 would be lost
    warmup = optax.linear_schedule(first, peak, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, main], [warmup_steps])


class Plateau:
    """Lowers the learning rate when the validation loss stops falling.

    As `torch.optim.lr_scheduler.ReduceLROnPlateau` in its default mode: an evaluation is better if
    its loss is below (1 - threshold) times the best; of those in a row that are not, the
    (patience + 1)th multiplies the scale by the factor. The `scale` of the state, a tree of arrays,
    multiplies the schedule's learning rate.
    """

    def __init__(self, config):
        self._transform = contrib.reduce_on_plateau(
            factor=config.decay_factor,
            patience=config.plateau_patience + 1,  # optax reduces at the count, PyTorch above it
            rtol=config.plateau_threshold,
            cooldown=config.plateau_cooldown,
            min_scale=config.end_learning_rate / config.learning_rate,
        )

    def init(self):
        """Make the state before the first evaluation."""
        return self._transform.init(jnp.zeros(()))

    def update(self, state, val_loss: float):
        """Compute the state after an evaluation."""
        return self._transform.update(jnp.zeros(()), state, value=jnp.float32(val_loss))[1]


def make_plateau(config) -> Plateau | None:
    """Make the plateau of `config.optim`; None for other schedules."""
    return Plateau(config) if config.schedule == "reduce_on_plateau" else None


_DECAYED = ("kernel", *lora.NAMES)


def decay_mask(params) -> dict:
    """Make a tree of bools: weight decay applies to kernels and their adapters only."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


path_of = functools.partial(jax.tree_util.keystr, simple=True, separator="/")  # "head/kernel"


def map_paths(function, *trees):
    """Map function(path, *leaves) over trees, with the paths of `path_of`."""
    return jax.tree.map_with_path(lambda path, *leaves: function(path_of(path), *leaves), *trees)


def trained_paths(paths: Collection[str], freeze) -> frozenset[str]:
    """Select the trained ones of all parameters.

    Args:
      paths: of all parameters, such as "Transformer/encoderblock_0/LayerNorm_0/scale".
      freeze: "none_trained"; "head"; "lora", the adapters and the head; k, the last k blocks with
        the final norm and the head; "full"; or [(pattern, trained), ...], of which the first that
        matches the whole path applies.

    Raises:
      UserError: there are fewer than k blocks, a parameter matches no rule, or a rule no parameter.
    """
    if freeze == "none_trained":
        return frozenset()
    if freeze in ("head", "full"):
        return frozenset(path for path in paths if freeze == "full" or path.startswith("head/"))
    if freeze == "lora":
        return frozenset(
            path for path in paths if path.startswith("head/") or path.endswith(lora.NAMES)
        )
    if isinstance(freeze, int):
        depths = block_depths(paths)
        top = max(depths.values())
        if not 0 < freeze < top:
            raise UserError(
                f"freeze=last_{freeze}_blocks: the model has {top - 1} blocks: use last_1_blocks "
                f"to last_{top - 1}_blocks"
            )
        return frozenset(path for path, depth in depths.items() if depth >= top - freeze)
    rules = {
        path: next((rule for rule in freeze if rule[0].fullmatch(path)), None) for path in paths
    }
    for path, rule in rules.items():
        if rule is None:
            raise UserError(
                f"freeze has no rule that matches {path}: end the rules with '.*=frozen' or "
                "'.*=trained'"
            )
    for rule in freeze:
        if rule not in rules.values():
            raise UserError(
                f"the rule {rule[0].pattern!r} of freeze applies to no parameter; parameters are "
                f"{', '.join(sorted(paths)[:3])}, ..."
            )
    trained = frozenset(path for path, rule in rules.items() if rule and rule[1])
    if not trained:
        raise UserError("the rules of freeze leave nothing to train: use freeze=none_trained")
    return trained


_BLOCK = re.compile(r"(?:Transformer/encoderblock_(\d+)|layer(\d)_(\d))/")


def block_depths(paths: Iterable[str]) -> dict[str, int]:
    """Map paths to depths: 0 for the input layer, i for the i-th block, 1 more for what follows."""
    matches = {path: _BLOCK.match(path) for path in paths}
    keys = {path: tuple(int(n) for n in m.groups() if n) for path, m in matches.items() if m}
    blocks = {key: i + 1 for i, key in enumerate(sorted(set(keys.values())))}
    depths = {}
    for path in paths:
        before = re.match(
            r"(cls$|embedding|Transformer/(posembed_input|registers|pre_norm)|conv1|bn1)", path
        )
        depths[path] = blocks[keys[path]] if path in keys else 0 if before else len(blocks) + 1
    return depths


def _scale_by_depth(decay: float) -> optax.GradientTransformation:
    """Multiply updates by decay^(distance from the head) (as BEiT, Bao et al. 2022)."""

    def scale(updates, params):
        depths = block_depths([path_of(path) for path, _ in jax.tree.leaves_with_path(updates)])
        top = max(depths.values())
        return map_paths(lambda path, u: u * decay ** (top - depths[path]), updates)

    return optax.stateless(scale)


def make_optimizer(
    config,
    schedule: optax.Schedule,
    trained: Collection[str] | None = None,
    mesh: Mesh | None = None,
) -> optax.GradientTransformation:
    """Make the optimizer of `config.optim`.

    AdamW's decay is decoupled and scaled by the learning rate (Loshchilov & Hutter 2019, as in
    optax and PyTorch). Adam and SGD add weight_decay * w to the gradient, as PyTorch does. Muon
    (Jordan et al. 2024) updates the kernels of the blocks, AdamW the rest. Lion is that of Chen et
    al. 2023 (arXiv:2302.06675); for schedule-free AdamW see `averaged_params`. Clipping is by the
    norm of the trained parameters' gradients.

    Args:
      config: `config.optim`.
      schedule: step -> learning rate.
      trained: paths of the trained parameters; None: all. The others get no update and no state.
      mesh: whose devices share Muon's matrix products; None: no sharing.
    """
    optimizer = _make_optimizer(config, schedule, mesh)
    if trained is not None:

        def label(params):
            return map_paths(lambda path, _: "trained" if path in trained else "frozen", params)

        frozen = optax.set_to_zero()
        optimizer = optax.multi_transform({"trained": optimizer, "frozen": frozen}, label)
    if config.layer_decay != 1:
        optimizer = optax.chain(optimizer, _scale_by_depth(config.layer_decay))
    return optimizer


def _make_optimizer(config, schedule, mesh):
    parts = []
    if config.grad_clip_norm:
        parts.append(optax.clip_by_global_norm(config.grad_clip_norm))
    if config.weight_decay and config.name in ("adam", "sgd"):
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    moments = dict(b1=config.b1, b2=config.b2, eps=config.eps)
    adamw = optax.adamw(schedule, **moments, weight_decay=config.weight_decay, mask=decay_mask)
    if config.name == "adamw":
        parts.append(adamw)
    elif config.name == "muon":
        muon = _muon(config, schedule, mesh)
        parts.append(optax.multi_transform({"muon": muon, "adamw": adamw}, muon_labels))
    elif config.name == "adam":
        parts.append(optax.adam(schedule, **moments))
    elif config.name == "lion":
        betas, decay = (config.lion_b1, config.lion_b2), config.weight_decay
        parts.append(optax.lion(schedule, *betas, weight_decay=decay, mask=decay_mask))
    elif config.name == "schedule_free_adamw":
        parts.append(_schedule_free_adamw(config, schedule))
    else:
        parts.append(optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov))
    return optax.chain(*parts)


def _schedule_free_adamw(config, schedule):
    """Build `contrib.schedule_free_adamw` with weight decay of kernels only."""
    base = optax.chain(
        optax.scale_by_rms(config.b2, config.eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
    return contrib.schedule_free(base, schedule, config.b1)


def averages_weights(config) -> bool:
    """Whether evaluation uses averaged weights, with `config.optim`."""
    return config.ema_decay > 0 or config.name == "schedule_free_adamw"


def averaged_params(config, opt_state, params):
    """Compute the averaged parameters of schedule-free AdamW; frozen ones are unchanged.

    The gradient is that at `params`, y = (1 - b1) z + b1 x, and updates z, which is in the
    optimizer state; x is the average of z to evaluate (Defazio et al. 2024, arXiv:2405.15682).
    """

    def is_found(node):
        return isinstance(node, contrib.ScheduleFreeState)

    def average(y, z):
        is_frozen = isinstance(z, optax.MaskedNode)
        return y if is_frozen else (y - (1 - config.b1) * z) / config.b1

    state = next(filter(is_found, jax.tree.leaves(opt_state, is_leaf=is_found)))
    return jax.tree.map(average, params, state.z)


def muon_labels(params):
    """Label the kernels and adapters of the blocks "muon", all other parameters "adamw"."""

    def label(path, _):
        return "muon" if _BLOCK.match(path) and path.endswith(_DECAYED) else "adamw"

    return map_paths(label, params)


def _muon(config, schedule, mesh):
    return optax.chain(
        _orthogonalize(config, mesh),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


def _orthogonalize(config, mesh: Mesh | None) -> optax.GradientTransformation:
    """Build Muon's update direction (Jordan et al. 2024), scaled to a constant RMS.

    Scaling by `muon_rms` * sqrt(max(rows, columns)) is that of Liu et al. 2025
    (arXiv:2502.16982), section 2.2. Kernels of equal shape are stacked, so that a few batched
    products do the work of many small ones.
    """
    momentum = optax.ema(config.muon_momentum, debias=False)

    def direction(stack):
        scale = config.muon_rms * max(stack.shape[1:]) ** 0.5
        return _newton_schulz(stack, config.muon_iterations) * scale

    def update(updates, state, params=None):
        del params
        average, state = momentum.update(updates, state)
        beta = config.muon_momentum
        nesterov = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, average, updates)
        stacks = _map_shared(direction, _stack_matrices(nesterov), mesh)
        return _unstack_matrices(stacks, updates), state

    return optax.GradientTransformation(momentum.init, update)


def _newton_schulz(x: jax.Array, iterations: int) -> jax.Array:
    """Bring the singular values of matrices x [n, rows, columns] near 1 (Jordan et al. 2024).

    The quintic's coefficients make it steep at 0 rather than exact: values end in about [0.7, 1.2].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.swapaxes(1, 2)
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
    for _ in range(iterations):
        gram = x @ x.swapaxes(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.swapaxes(1, 2)


def _map_shared(function, stacks, mesh):
    """Map stacks [n, rows, columns], split over the devices of `mesh`."""
    if mesh is None or mesh.size == 1 or not stacks:  # no kernel of a block is trained
        return jax.tree.map(function, stacks)

    def of_device(stacks):
        own = jax.tree.map(function, stacks)
        flat = jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(own)])
        return jax.lax.all_gather(flat, "data")  # one: XLA:CPU would mix up the order of several

    def pad(x):
        return jnp.pad(x, ((0, -len(x) % mesh.size), (0, 0), (0, 0)))

    padded = jax.tree.map(pad, stacks)
    split, whole = jax.P("data"), jax.P()
    gathered = jax.shard_map(
        of_device, mesh=mesh, in_specs=split, out_specs=whole, check_vma=False
    )(padded)  # [devices, ...]
    leaves, structure = jax.tree.flatten(padded)
    ends = np.cumsum([x.size // mesh.size for x in leaves])[:-1]
    parts = jnp.split(gathered, ends, 1)
    whole_stacks = [part.reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
    return jax.tree.map(lambda x, like: x[: len(like)], structure.unflatten(whole_stacks), stacks)


def _matrix_shape(path, shape) -> tuple[int, int]:
    """Compute (inputs, outputs) of a kernel, each of which may have several axes."""
    if path[-2].key in ("query", "key", "value"):  # [d, heads, width]
        return shape[0], math.prod(shape[1:])
    return math.prod(shape[:-1]), shape[-1]


def _stack_matrices(kernels) -> dict[str, jax.Array]:
    """Stack kernels by shape, in the tree's order, as {"rows x columns": [n, rows, columns]}."""
    groups = {}
    for path, kernel in jax.tree.leaves_with_path(kernels):
        rows, columns = _matrix_shape(path, kernel.shape)
        groups.setdefault(f"{rows}x{columns}", []).append(kernel.reshape(rows, columns))
    return {shape: jnp.stack(group) for shape, group in groups.items()}


def _unstack_matrices(stacks, kernels):
    """Undo `_stack_matrices`, into a tree like `kernels`."""
    parts = {shape: iter(stack) for shape, stack in stacks.items()}

    def take(path, kernel):
        rows, columns = _matrix_shape(path, kernel.shape)
        return next(parts[f"{rows}x{columns}"]).reshape(kernel.shape)

    return jax.tree.map_with_path(take, kernels)
