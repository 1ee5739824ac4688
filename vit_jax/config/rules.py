"""Rules across settings; the schema validates single settings."""

import importlib.util
import re

from vit_jax.config.rules_data import validate_augment, validate_data
from vit_jax.config.schema import SCHEMA
from vit_jax.config.settings import (
    DIMENSIONS,
    Config,
    check_values,
    flatten,
    has_cls,
    num_kept,
)
from vit_jax.runtime.errors import UserError, truncate_repr

FREEZES = ("none_trained", "head", "lora", "full")


def validate(config: Config) -> None:
    """Raise UserError for the first invalid value or combination of a resolved config."""
    check_values(config)
    if config.seed + config.train.num_seeds > 2**32:
        raise UserError(f"seed={truncate_repr(config.seed)} is too large: seeds stay below 2**32")
    parse_freeze(config.freeze)
    validate_data(config)
    validate_augment(config)
    if config.model.name == "vit":
        _validate_vit(config)
        _validate_positions(config.model)
        _validate_parts(config.model, config.data.image_size)
    if config.freeze == "lora":
        _validate_lora(config)
    _validate_train(config)
    _validate_teacher(config)
    _validate_optim(config.optim)
    _validate_schedule(config.optim, config.train)
    if config.optim.name == "schedule_free_adamw":
        _validate_schedule_free(config)
    _validate_log(config.log)


def one_seed_at_a_time(config: Config) -> str:
    """Name the setting that rules out vectorised seeds; "" if none does."""
    if evaluations := config.train.stop_after_evaluations:  # each seed ends at its own step
        return f"train.stop_after_evaluations={evaluations}"
    # Weights & Biases has one run per process; multi-process runs and FSDP are for large models.
    # The mAP needs the logits of each seed.
    others = {"log.wandb=True": config.log.wandb, "data.multi_label=True": config.data.multi_label}
    return next(filter(others.get, others), one_step_at_a_time(config))


def one_step_at_a_time(config: Config) -> str:
    """Name the setting that rules out multi-step dispatch; "" if none does."""
    # Processes synchronise after each step whether to stop; FSDP is for models with long steps.
    keys = ("distributed", "fsdp")
    return next((f"sharding.{key}=True" for key in keys if config.sharding[key]), "")


def parse_freeze(freeze: str) -> str | int | list[tuple[re.Pattern, bool]]:
    """Parse `config.freeze`; raises UserError.

    Returns:
      "none_trained", "head", "lora" or "full"; k of "last_k_blocks"; or, of "REGEX=trained;
      REGEX=frozen; ...", [(pattern, whether what it matches is trained), ...].
    """
    if freeze in FREEZES:
        return freeze
    if match := re.fullmatch(r"last_(\d{1,9})_blocks", freeze):
        return int(match[1])
    rules = []
    for rule in filter(None, map(str.strip, freeze.split(";"))):
        match = re.fullmatch(r"(.+)=(trained|frozen)", rule)
        if not match:
            raise UserError(
                f"freeze={truncate_repr(freeze)} is not one of {', '.join(FREEZES)}, "
                "last_4_blocks (with any number), or rules such as 'head/.*=trained; .*=frozen'"
            )
        try:
            rules.append((re.compile(match[1]), match[2] == "trained"))
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"freeze: {truncate_repr(match[1])} is not a regular expression: {error}"
            ) from None
    if not rules:
        raise UserError(f"freeze is empty: give one of {', '.join(FREEZES)}")
    return rules


def parse_class_weights(text: str) -> str | list[float] | None:
    """Parse `train.class_weights`: "balanced", numbers, or None for ""; raises UserError."""
    if text in ("", "balanced"):
        return text or None
    try:
        weights = [float(number) for number in text.split(",")]
    except ValueError:
        weights = []
    if not any(weights) or not all(0 <= weight <= 1e6 for weight in weights):
        raise UserError(
            f"train.class_weights={truncate_repr(text)} is neither balanced nor numbers from 0 to "
            "1e6, such as 1,1,5"
        )
    return weights


def _validate_vit(config):
    model, image_size = config.model, config.data.image_size
    for key in (*DIMENSIONS, "patch_size"):
        if model[key] == 0:
            raise UserError(
                f"model.{key} must be set, or a named size in model.size; to fine-tune, set "
                "init_from, whose weights define the model"
            )
    if image_size % model.patch_size:
        divisors = [n for n in range(1, image_size + 1) if image_size % n == 0]
        raise UserError(
            f"model.patch_size={model.patch_size} does not divide "
            f"data.image_size={image_size}: use one of {', '.join(map(str, divisors))}"
        )
    if model.hidden_size % model.num_heads and not model.head_dim:
        raise UserError(
            f"model.hidden_size={model.hidden_size} is not divisible by "
            f"model.num_heads={model.num_heads}: set model.head_dim"
        )
    _validate_heads(model)
    if model.init != "default" and config.init_from:
        raise UserError(
            f"model.init={model.init} has no effect with init_from={config.init_from}, whose "
            "weights replace all initial ones"
        )


def _validate_heads(model):
    total = model.head_dim * model.num_heads or model.hidden_size
    if model.attention == "differential" and total % (2 * model.num_heads):
        if model.head_dim:
            raise UserError(
                f"model.head_dim={model.head_dim} must be even for model.attention=differential"
            )
        raise UserError(
            f"model.hidden_size={model.hidden_size} is not divisible by twice "
            f"model.num_heads={model.num_heads}, which model.attention=differential needs"
        )
    if model.init != "default" and total != model.hidden_size:
        raise UserError(
            f"model.init={model.init} needs heads as wide as the tokens together: "
            f"model.head_dim={model.head_dim} times model.num_heads={model.num_heads} is not "
            f"model.hidden_size={model.hidden_size}"
        )


def _validate_positions(model):
    if model.pos_embed == "sincos_2d" and (model.hidden_size % 4 or model.hidden_size < 8):
        raise UserError(
            f"model.pos_embed=sincos_2d needs a model.hidden_size of at least 8 that 4 divides, "
            f"not {model.hidden_size}"
        )
    if model.pos_embed == "sinusoidal" and model.hidden_size % 2:
        raise UserError(
            f"model.pos_embed=sinusoidal needs an even model.hidden_size, not {model.hidden_size}"
        )
    maps = model.num_heads * (2 if model.attention == "differential" else 1)
    width = (model.head_dim * model.num_heads or model.hidden_size) // maps
    if model.pos_embed == "rope_2d" and width % 4:
        given = f"model.head_dim={model.head_dim}"
        if not model.head_dim:
            given = f"model.hidden_size={model.hidden_size} over {maps} maps"
        raise UserError(
            f"model.pos_embed=rope_2d needs a width per attention map that 4 divides, not {width} "
            f"({given})"
        )
    if model.init == "impulse" and (model.pos_embed != "learned_1d" or has_cls(model)):
        raise UserError(
            "model.init=impulse needs model.pos_embed=learned_1d and no class token, not "
            f"{model.pos_embed} and model.pool={model.pool}"
        )
    if model.pos_embed == "relative_bias" and model.num_registers:
        raise UserError(
            f"model.num_registers={model.num_registers} cannot be combined with "
            "model.pos_embed=relative_bias, which has no bias for registers"
        )


def _validate_parts(model, image_size):
    if model.pool == "cls_dist" and not model.num_registers:
        raise UserError(
            "model.pool=cls_dist needs model.num_registers of at least 1: the first register is "
            "the distillation token"
        )
    if model.mlp == "swiglu" and model.gelu != "tanh":
        raise UserError(f"model.gelu={model.gelu} has no effect with model.mlp=swiglu")
    patches = num_kept((image_size // model.patch_size) ** 2, model.patch_drop_rate)
    if model.attention == "lsa" and patches + model.num_registers + has_cls(model) < 2:
        raise UserError(
            "model.attention=lsa needs at least two tokens, as no token attends to itself: lower "
            f"model.patch_size={model.patch_size} or model.patch_drop_rate={model.patch_drop_rate}"
        )
    if model.patch_drop_rate and model.pos_embed in ("rope_2d", "relative_bias"):
        raise UserError(
            f"model.patch_drop_rate={model.patch_drop_rate} cannot be combined with "
            f"model.pos_embed={model.pos_embed}, which needs the whole grid of patches"
        )
    size = model.patch_size
    if model.patchify == "conv_stem" and (size < 2 or size & (size - 1)):
        raise UserError(
            f"model.patchify=conv_stem halves the image several times: model.patch_size={size} "
            "must be 2, 4, 8, ..."
        )
    if model.patchify == "spt" and size < 2:
        raise UserError("model.patchify=spt shifts by half a patch: model.patch_size=1 has none")


def _validate_lora(config):
    model, rank = config.model, config.lora_rank
    if model.name != "vit":
        raise UserError(f"freeze=lora adapts attention, which model.name={model.name} lacks")
    if not config.init_from:
        raise UserError("freeze=lora adapts pretrained weights: set init_from")
    width = min(model.hidden_size, model.head_dim * model.num_heads or model.hidden_size)
    if rank > width:
        raise UserError(f"lora_rank={rank} is above {width}, the width of the attention")


def _validate_log(log):
    if log.figures_every and not (log.tensorboard or log.wandb):
        raise UserError(
            f"log.figures_every={log.figures_every} has no effect with log.tensorboard=False and "
            "log.wandb=False"
        )
    # A local output folder wandb/ looks like a namespace package, which has no origin.
    if log.wandb and getattr(importlib.util.find_spec("wandb"), "origin", None) is None:
        raise UserError("log.wandb=True needs the package wandb: pip install wandb")


def _validate_train(config):
    train = config.train
    _only_one(config, "train.epochs", "train.steps", "train.budget_pflop")
    if train.vmap_seeds == "always":
        if train.num_seeds == 1:
            raise UserError("train.vmap_seeds=always has no effect with train.num_seeds=1")
        if reason := one_seed_at_a_time(config):
            raise UserError(f"train.vmap_seeds=always is incompatible with {reason}: use auto")
    if train.multi_step == "always" and (reason := one_step_at_a_time(config)):
        raise UserError(f"train.multi_step=always is incompatible with {reason}: use auto")
    if not (train.epochs or train.steps or train.budget_pflop):
        raise UserError(
            "train.epochs, train.steps and train.budget_pflop are all 0: set one, the run's length"
        )
    if train.patch_drop_percent != 100 and not config.model.patch_drop_rate:
        raise UserError(
            f"train.patch_drop_percent={train.patch_drop_percent} has no effect with "
            "model.patch_drop_rate=0"
        )
    for stem in ("optim.warmup", "train.eval_every", "log.every"):
        _only_one(config, *(f"{stem}_{unit}" for unit in ("steps", "epochs", "percent")))
    if train.stop_after_evaluations:
        _needs_evaluations(train, f"train.stop_after_evaluations={train.stop_after_evaluations}")
        if config.freeze == "none_trained":
            raise UserError(
                f"train.stop_after_evaluations={train.stop_after_evaluations} has no effect with "
                "freeze=none_trained"
            )
    if parse_class_weights(train.class_weights) == train.sampling == "balanced":
        raise UserError(
            "train.class_weights=balanced and train.sampling=balanced both balance the classes: "
            "give one"
        )
    if train.accumulation_steps and train.batch_size % train.accumulation_steps:
        raise UserError(
            f"train.batch_size={train.batch_size} is not divisible by "
            f"train.accumulation_steps={train.accumulation_steps}"
        )


def _validate_teacher(config):
    train = config.train
    for key in ("distill_weight", "distill_temperature"):
        if train[key] != SCHEMA[f"train.{key}"].default and not train.teacher:
            raise UserError(f"train.{key}={train[key]} has no effect without train.teacher")
    if train.teacher and config.freeze == "none_trained":
        raise UserError(f"train.teacher={train.teacher} has no effect with freeze=none_trained")
    for key in ("label_smoothing", "focal_gamma", "class_weights"):
        if train.distill_weight == 1 and train[key]:
            raise UserError(
                f"train.{key}={train[key]} has no effect with train.distill_weight=1, which leaves "
                "the labels out"
            )


def _validate_optim(optim):
    if optim.name != "adam" and optim.learning_rate * optim.weight_decay >= 1:
        raise UserError(
            f"optim.weight_decay={optim.weight_decay} times optim.learning_rate="
            f"{optim.learning_rate} is not below 1: weights would change sign instead of shrinking"
        )
    if optim.name == "sgd" and optim.nesterov and not optim.momentum:
        raise UserError("optim.nesterov=True has no effect with optim.momentum=0")


def _validate_schedule(optim, train):
    percents = tuple(optim.decay_at_percent)
    if list(percents) != sorted(set(percents)) or any(p >= 100 for p in percents):
        raise UserError(f"optim.decay_at_percent={percents} must rise, and stay below 100")
    if optim.schedule == "reduce_on_plateau":
        if not 0 < optim.decay_factor < 1:
            raise UserError(
                f"optim.decay_factor={optim.decay_factor} must lie between 0 and 1 for "
                "optim.schedule=reduce_on_plateau"
            )
        if optim.end_learning_rate >= optim.learning_rate:
            raise UserError(
                f"optim.schedule=reduce_on_plateau needs an optim.learning_rate above "
                f"optim.end_learning_rate={optim.end_learning_rate}, not {optim.learning_rate}"
            )
        _needs_evaluations(train, "optim.schedule=reduce_on_plateau")
    if optim.schedule in ("cosine", "linear") and optim.end_learning_rate > optim.learning_rate:
        raise UserError(
            f"optim.end_learning_rate={optim.end_learning_rate} is above "
            f"optim.learning_rate={optim.learning_rate}"
        )


def _needs_evaluations(train, what):
    if not any(train[f"eval_every_{unit}"] for unit in ("steps", "epochs", "percent")):
        raise UserError(
            f"{what} needs evaluations: set train.eval_every_steps, _epochs or _percent"
        )


def _validate_schedule_free(config):
    optim, name = config.optim, "optim.name=schedule_free_adamw"
    if optim.schedule != "constant":
        raise UserError(
            f"{name} averages weights instead of decaying the learning rate: set "
            f"optim.schedule=constant, not {optim.schedule}"
        )
    if optim.b1 < 0.1:  # the average is computed by dividing by it
        raise UserError(f"{name} needs an optim.b1 of at least 0.1, not {optim.b1}")
    if optim.ema_decay:
        raise UserError(
            f"optim.ema_decay={optim.ema_decay} cannot be combined with {name}, which averages "
            "weights itself"
        )
    if optim.layer_decay != 1:
        raise UserError(f"optim.layer_decay={optim.layer_decay} cannot be combined with {name}")
    if config.model.name == "resnet18":
        raise UserError(
            f"{name} cannot be combined with model.name=resnet18: the running statistics of "
            "BatchNorm are not those of the averaged weights"
        )


def _only_one(config, *keys):
    flat = flatten(config)
    given = {key: flat[key] for key in keys if flat[key]}
    if len(given) > 1:
        listed = " and ".join(f"{key}={value}" for key, value in given.items())
        raise UserError(f"{listed} contradict each other: set all but one to 0")
