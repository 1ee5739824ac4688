"""Config of a run: built from the schema, overridden, checked and resolved."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from vit_jax.config.schema import RENAMED, SCHEMA, SECTIONS
from vit_jax.config.setting import SMALLEST, STRONG
from vit_jax.runtime.errors import UserError, suggest, truncate_repr

Config: TypeAlias = Any  # a ConfigDict; type checkers cannot know its attributes

# hidden_size, depth, num_heads, mlp_dim: Dosovitskiy et al. 2021, table 1; Ti and S from
# Touvron et al. 2021 (DeiT), table 1; M, g and So400m from big_vision, which agree with Touvron et
# al. 2022 (DeiT III), Zhai et al. 2022 and Alabdulmohsin et al. 2023.
MODEL_SIZES = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "M": (512, 12, 8, 2048),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "So400m": (1152, 27, 16, 4304),
}
EXPLAINED_POOLS = ("cls", "mean", "cls_mean")  # whose tokens attention explains
DIMENSIONS = ("hidden_size", "depth", "num_heads", "mlp_dim")
# Preprocessing of evaluation images, which comes with initial weights but may differ from theirs.
PREPROCESSING = ("data.eval_crop", "data.resize_mode", "data.interpolation")


def get_config() -> Config:
    """Build the default config, the starting point of every config file."""
    sections = {
        section: {name: one.default for name, one in table.items()}
        for section, table in SECTIONS.items()
    }
    return ConfigDict(sections.pop("") | sections).lock()


def flatten(config, prefix: str = "") -> dict:
    """Flatten a (nested) config to {"section.key": value}."""
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def check_key(key: str, what: str) -> None:
    """Raise UserError, with a suggestion, if `key` is not a setting; `what` names its source."""
    if key in RENAMED:
        raise UserError(f"config key {key} in {what} was renamed to {RENAMED[key]}")
    if key not in SCHEMA:
        raise UserError(f"unknown config key {key} in {what}; {suggest_key(key, SCHEMA)}")


def suggest_key(key: str, known: Iterable[str]) -> str:
    """Suggest a key for a misspelt one: that of another section, or the closest of `known`."""
    same = [name for name in SCHEMA if name.split(".")[-1] == key.split(".")[-1]]
    if same:
        return f"did you mean {same[0]}?"
    return suggest(key, known, "docs/settings.md lists them")


def current_names(flat: Mapping[str, Any]) -> dict:
    """Replace old names of settings, as in config.json of earlier runs, by current ones."""
    return {RENAMED.get(key, key): value for key, value in flat.items()}


def with_overrides(config: Config, overrides: Mapping[str, Any], what: str) -> Config:
    """Copy `config` with the settings {"section.key": value} overridden; `what` names their source.

    Raises:
      UserError: a key is unknown or a value has the wrong type.
    """
    config = config.copy_and_resolve_references()
    for key, value in overrides.items():
        check_key(key, what)
        try:
            if value is None:  # which ml_collections accepts for any type
                raise TypeError
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError, OverflowError):
            raise UserError(wrong_type(key, value, what)) from None
    return config


def reset_other_models(config: Config, given: Collection[str]) -> None:
    """Reset what was chosen for another model than `config.model.name`, except for keys `given`.

    It resets the width, settings that only other models have, and settings that depend on those.
    """
    reset = {"model.hidden_size"}
    for key, setting in SCHEMA.items():
        other, values = setting.applies or ("", ())
        if other in reset or (other == "model.name" and config.model.name not in values):
            reset.add(key)
    if "model.patch_drop_rate" in reset:
        reset.add("train.patch_drop_percent")
    for key in reset.difference(given):
        config.update_from_flattened_dict({key: SCHEMA[key].default})


def wrong_type(key: str, value, what: str) -> str:
    """Format the error for a value of the wrong type; `what` names its source."""
    kinds = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
    kind = kinds.get(type(SCHEMA[key].default), "a tuple such as (0.5,)")
    return f"config key {key} in {what} takes {kind}, not {truncate_repr(value)}"


def check_values(config: Config) -> None:
    """Raise UserError if a setting violates its schema entry, or is set without effect."""
    flat = flatten(config)
    for key, value in flat.items():
        _check_value(key, value)
    for key, value in flat.items():
        other, values = SCHEMA[key].applies or ("", ())
        if other and value != SCHEMA[key].default and flat[other] not in values:
            raise UserError(f"{key}={value} has no effect with {other}={flat[other]}")


def _check_value(key, value):
    setting = SCHEMA[key]
    if isinstance(value, bool) != isinstance(setting.default, bool):
        raise UserError(wrong_type(key, value, "the config"))
    if setting.choices and value not in setting.choices:
        listed = ", ".join(map(str, setting.choices))
        raise UserError(f"{key}={truncate_repr(value)} is not one of {listed}")
    if isinstance(value, str) and re.search("[\0\ud800-\udc7f\udd00-\udfff]", value):
        raise UserError(
            f"{key}={truncate_repr(value)} contains characters that file names cannot contain"
        )
    if isinstance(value, bool | str):
        return
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise UserError(f"{key}={truncate_repr(value)} contains a value that is not a number")
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{key}={value} is not a finite number")
        if 0 < number < SMALLEST:
            least = "" if setting.low else "0 or "
            raise UserError(f"{key}={value} is too small: give {least}at least {SMALLEST:g}")
        if number < setting.low:
            least = "above 0" if setting.low == SMALLEST else f"at least {setting.low}"
            raise UserError(f"{key}={truncate_repr(value)} must be {least}")
        if number > setting.high:
            raise UserError(f"{key}={truncate_repr(value)} must be at most {setting.high}")


def resolve(config: Config, weights: dict | None = None, given: Collection[str] = ()) -> Config:
    """Resolve a variant's config: copy it and fill in unset values; raises UserError.

    Named sizes and kinds fill the keys that are 0; the settings {"model.depth": 12, ...} of the
    initial weights replace defaults, except for the keys `given`, which were set explicitly.
    """
    config = config.copy_and_resolve_references()
    _resolve_size(config.model)
    if weights is not None:
        _adopt(config, weights, given)
    if config.model.name == "resnet18":
        config.model.hidden_size = config.model.hidden_size or 64  # He et al. 2016, table 1
    _resolve_augment(config)
    return config


def _resolve_size(model):
    if not model.size or model.name == "resnet18":
        return
    match = re.fullmatch(r"(\w+)/(\d{1,9})", model.size)
    if not match or match[1] not in MODEL_SIZES:
        names = ", ".join(MODEL_SIZES)
        raise UserError(
            f"model.size={truncate_repr(model.size)} is unknown: use one of {names}, a slash and "
            "the patch size, such as S/16"
        )
    filled = dict(zip(DIMENSIONS, MODEL_SIZES[match[1]], strict=True), patch_size=int(match[2]))
    if all(model[key] for key in filled) and any(model[k] != v for k, v in filled.items()):
        raise UserError(
            f"model.size={model.size!r} has no effect, because {', '.join(filled)} are all set: "
            "remove one or the other"
        )
    for key, value in filled.items():
        model[key] = model[key] or value
    model.size = ""


def _adopt(config, weights, given):
    now, default = flatten(config), weights.get("data.resize_mode", "fit") == "fit"
    for key, value in weights.items():
        old = now[key]
        if key in PREPROCESSING and (default or key in given or old != SCHEMA[key].default):
            continue
        resized = key in ("data.image_size", "model.patch_size") and old
        # RGB patch kernels are adapted to bands, and so are the constants of the normalisation.
        bands = now["data.channels"] not in (1, 3) and weights.get("data.channels") == 3
        if bands and key == "data.channels":
            continue
        if bands and key in ("data.mean", "data.std"):
            value = tuple(value[i % len(value)] for i in range(now["data.channels"]))
        # The tanh layer before the head is adopted on request only, as in the official code.
        if old == value or resized or key == "model.representation_size":
            continue
        unset = old == SCHEMA[key].default or (type(old) is int and old == 0)
        if key in given or not unset:
            raise UserError(
                f"{key}={old} contradicts the weights of init_from={config.init_from}, which "
                f"have {key}={value}: remove the setting"
            )
        config.update_from_flattened_dict({key: value})


def _resolve_augment(config):
    augment, strong = config.augment, config.augment.kind == "strong"
    if augment.kind == "cutout":
        augment.cutout_length = augment.cutout_length or config.data.image_size // 2
    for key, value in STRONG.items():
        if augment[key] == -1:
            augment[key] = value * strong


def has_cls(model_config: Mapping[str, Any]) -> bool:
    """Whether the first token of a ViT is the class token."""
    return model_config["class_token"] or model_config["pool"].startswith("cls")


def num_kept(patches: int, drop_rate: float) -> int:
    """Compute how many patches of an image remain with this `model.patch_drop_rate`."""
    return max(1, math.floor(patches * (1 - drop_rate) + 1e-9))


def resized_side(data) -> int:
    """Compute the side in pixels of which `data.eval_crop` leaves `data.image_size`."""
    return math.floor(data.image_size / data.eval_crop + 1e-9)


def steps_of(section, stem: str, steps_per_epoch: int, total_steps: int) -> int:
    """Convert a duration, such as "warmup", to optimizer updates; 0 if none of its keys is set.

    Its keys in the section are `{stem}_steps`, `{stem}_epochs` and `{stem}_percent`.
    """
    if section[f"{stem}_steps"]:
        return section[f"{stem}_steps"]
    if section[f"{stem}_epochs"]:
        return max(1, round(section[f"{stem}_epochs"] * steps_per_epoch))
    if section[f"{stem}_percent"]:
        return max(1, round(section[f"{stem}_percent"] / 100 * total_steps))
    return 0


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """Compute the length of a run in optimizer updates."""
    return config.train.steps or max(1, round(config.train.epochs * steps_per_epoch))
