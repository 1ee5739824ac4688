"""The configs of an experiment's variants."""

import pathlib
import re

from vit_jax import pretrained
from vit_jax.config import Config, reset_other_models, resolve, with_overrides
from vit_jax.config.rules import validate
from vit_jax.data.splits import differing_splits
from vit_jax.runtime.errors import UserError, truncate_repr


def make_variants(
    config: Config, sweep: dict[str, dict], given: set[str], trained: str | None = None
) -> dict:
    """Make {variant: resolved, valid config}.

    Args:
      config: of the experiment, with the command line's overrides.
      sweep: {variant: {"section.key": value}}; empty for a single variant called "base". A variant
        with another model.name ignores the settings of the config's model.
      given: the keys that the command line overrides.
      trained: the only variant that is trained; None: all are.

    Raises UserError if a variant is invalid or badly named, or one that is trained overrides a key
    of the command line.
    """
    configs = {}
    for name, overrides in (sweep or {"base": {}}).items():
        if not re.fullmatch(r"[\w.+-]+", name):
            raise UserError(f"variant {name!r} must be named with letters, digits, '_.+-' only")
        if not isinstance(overrides, dict):
            raise UserError(f"variant {name!r} must be a dict of settings, not {overrides!r}")
        variant = with_overrides(config, overrides, f"variant {name}")
        if variant.model.name != config.model.name:
            reset_other_models(variant, set(overrides) | given & {"model.hidden_size"})
        if variant.sharding != config.sharding:
            raise UserError(
                f"variant {name} changes the sharding settings, but all variants share one set of "
                "devices: give them on the command line"
            )
        try:
            configs[name] = _resolve(variant, given | set(overrides))
            validate(configs[name])
            _refuse(_without_effect(configs[name].augment), overrides)
        except UserError as error:
            own = sweep and str(error) != _fault(config, given)
            raise UserError(f"variant {name}: {error}" if own else str(error)) from None
        if trained in (None, name) and (clash := given & set(overrides)):
            validate(_resolve(config, given))  # the message on a wrong value is more helpful
            key = min(clash)
            what = f"variant {name} sets {key} itself"
            others = [other for other, one in sweep.items() if not given & set(one)]
            hint = f": train the others with --variants={','.join(others)}" if others else ""
            raise UserError(f"--config.{key} has no effect, because {what}{hint}")
        _check_teacher(name, configs, list(sweep or {"base": {}}))
    found = [_without_effect(one.augment) for one in configs.values()]
    if all(given & one.keys() for one in found):
        _refuse(found[0], given)
    return configs


def _without_effect(augment):
    """Describe the settings of the padded crop that are on, but have no effect: {key: message}.

    Defaults and configs may have such values: another variant or another flag turns the crop on.
    """
    if augment.kind == "none":
        names, other = ("crop_padding", "flip", "fill"), "augment.kind=none"
    elif augment.crop_min_area:
        names, other = ("crop_padding",), f"augment.crop_min_area={augment.crop_min_area}"
    else:
        return {}
    return {
        f"augment.{name}": f"augment.{name}={augment[name]} has no effect with {other}"
        for name in names
        if augment[name]
    }


def _refuse(found, keys):
    """Raise UserError for the first of `found`, {key: message}, that is among the keys."""
    for key in found:
        if key in keys:
            raise UserError(found[key])


def _fault(config, given):
    """Find out what is wrong with the config without a variant's overrides, "" for nothing."""
    try:
        validate(_resolve(config, given))
    except UserError as error:
        return str(error)
    return ""


def _resolve(config, given):
    if not config.init_from:
        return resolve(config, None, given)
    return resolve(config, _read_info("init_from", config.init_from)["settings"], given)


def _read_info(key, folder):
    try:
        return pretrained.read_info(pathlib.Path(folder).expanduser())
    except UserError as error:
        raise UserError(f"{key}={folder}: {error}") from None
    except (OSError, ValueError, RuntimeError):  # too long, with a null byte, of an unknown user
        path = truncate_repr(folder)
        raise UserError(f"{key}={path} cannot be the path of weights") from None


def _check_teacher(name, configs, names):
    """Raise UserError if a variant's teacher is neither an earlier variant nor finished weights.

    An earlier variant must also see the same images, and have the same splits.
    """
    teacher = configs[name].train.teacher
    for key in ("image_size", "channels") if teacher in configs else ():
        pair = [configs[one].data[key] for one in (teacher, name)]
        if pair[0] != pair[1]:
            raise UserError(
                f"variant {name} has data.{key}={pair[1]}, but its teacher {teacher} has "
                f"data.{key}={pair[0]}: both need the same image size and channels"
            )
    if teacher in configs:
        before, now = configs[teacher].data, configs[name].data
        for key in differing_splits(before, now):
            raise UserError(
                f"variant {name} has data.{key}={now[key]}, but its teacher {teacher} has "
                f"data.{key}={before[key]}: its training images may include test or validation "
                "images"
            )
    if teacher in names[names.index(name) :]:
        raise UserError(f"train.teacher={teacher} of variant {name} must be an earlier variant")
    if teacher and teacher not in names:
        _read_info("train.teacher", teacher)
