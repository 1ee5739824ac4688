"""Find, execute and check config files."""

import dataclasses
import inspect
import os
import pathlib
import re
import runpy
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.config import settings
from vit_jax.config.schema import RENAMED, SCHEMA
from vit_jax.runtime.errors import UserError, first_line, suggest, truncate_repr

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
BUNDLED = (PACKAGE / "configs", PACKAGE.parent / "configs")  # installed, and in a clone


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config with its named variants.

    Attributes:
      name: of the config file, with the profile appended.
      config: of all variants, with the overrides.
      variants: {variant: {"section.key": value}}; {} for a single variant "base".
      published: {source: published order of the variants}.
      given: keys that were overridden.
      ladder: the rungs of the config file in order, of which each adds something to the one before
        it: the table keeps their order and compares neighbours. Teachers are no rungs; () where
        variants are alternatives.
    """

    name: str
    config: settings.Config
    variants: dict[str, dict] = dataclasses.field(default_factory=dict)
    published: dict[str, str] = dataclasses.field(default_factory=dict)
    given: frozenset[str] = frozenset()
    ladder: tuple[str, ...] = ()


def load_config(
    path: str | os.PathLike,
    overrides: Mapping[str, Any] | None = None,
    variant: str | None = None,
    profile: str | None = None,
) -> Experiment:
    """Load a config file by executing it once.

    Args:
      path: of the file, or the name of a bundled config; ":PROFILE" may follow.
      overrides: {"section.key": value}, settings to change.
      variant: select only this variant of the sweep, and those that teach it.
      profile: passed to `get_config` as its only argument.

    Raises:
      UserError: the file is missing, raises or has no valid config; or an override, the variant or
        the profile is invalid.
    """
    name, _, given_profile = os.fspath(path).partition(":")
    if given_profile and not pathlib.Path(path).is_file():
        path, profile = name, given_profile
    path = find_config(path)
    overrides = dict(overrides or {})
    config, variants, published, ladder = _execute(path, profile)
    experiment = Experiment(
        name=re.sub(r"[^\w.+-]", "_", f"{path.stem}_{profile}") if profile else path.stem,
        config=settings.with_overrides(config, overrides, "the overrides"),
        variants=variants,
        published=published,
        given=frozenset(overrides),
    )
    if ladder:
        experiment = dataclasses.replace(experiment, ladder=_rungs(experiment))
    return experiment if variant is None else select_variants(experiment, [variant])


def select_variants(experiment: Experiment, names: Sequence[str]) -> Experiment:
    """Select variants of an experiment, and those that teach them; raises UserError."""
    known, chosen = experiment.variants or ["base"], set[str]()
    for name in names:
        if name not in known:
            raise UserError(
                f"variant={truncate_repr(name)} is unknown: use one of {', '.join(known)}"
            )
        chosen.update(_with_teachers(experiment, name))
    variants = {name: one for name, one in experiment.variants.items() if name in chosen}
    return dataclasses.replace(experiment, variants=variants)


def _rungs(experiment):
    """Name the variants that teach no other, in order."""
    teachers = [_teacher_of(experiment, name) for name in experiment.variants]
    return tuple(name for name in experiment.variants if name not in teachers)


def _teacher_of(experiment, name):
    return str(experiment.variants[name].get("train.teacher", experiment.config.train.teacher))


def _with_teachers(experiment, name):
    """Name a variant and those that teach it, directly or as the teacher of a teacher."""
    found, variants = [], experiment.variants
    while name in variants and name not in found:  # a circle is refused later
        found.append(name)
        name = _teacher_of(experiment, name)
    return found


def as_experiment(
    config: Experiment | settings.Config | str | os.PathLike[str], name: str = "experiment"
) -> Experiment:
    """Load a config file, or name a config; an Experiment stays as it is.

    Raises UserError for anything else, or if the file has no valid config.
    """
    if isinstance(config, str | os.PathLike):
        return load_config(config)
    if isinstance(config, ConfigDict):
        return Experiment(name, config)
    if not isinstance(config, Experiment) or not isinstance(config.variants, dict):
        wrong = config.variants if isinstance(config, Experiment) else config
        raise UserError(
            f"{truncate_repr(wrong)} is neither an Experiment, whose variants are a dict, nor a "
            "config, nor the path of one"
        )
    return config


def sweep_learning_rate(
    config: Experiment | settings.Config | str | os.PathLike[str], factor: float = 3.0
) -> Experiment:
    """Make three variants of each variant: its learning rate, divided and multiplied by `factor`.

    A final learning rate changes with the peak. Learning rates of the command line replace those of
    the variants. A variant that teaches another does so with each learning rate. The table names
    the best by validation accuracy. `config` is as in `train`.
    """
    experiment = as_experiment(config)
    keys = ("optim.learning_rate", "optim.end_learning_rate")
    given, variants = experiment.given.intersection(keys), {}
    before = {
        name: {key: value for key, value in overrides.items() if key not in given}
        for name, overrides in (experiment.variants or {"": {}}).items()
    }
    base = settings.flatten(experiment.config)
    if not factor > 1:
        raise UserError(f"factor={factor} of the learning rates must be above 1")
    for name, overrides in before.items():
        settings.with_overrides(experiment.config, overrides, f"variant {name}")
    if not all((base | overrides)[keys[0]] for overrides in before.values()):
        raise UserError("optim.learning_rate=0 cannot be swept: set it above 0")
    for scale in (1 / factor, 1.0, factor):
        names = {name: _point(name, base | changed, scale) for name, changed in before.items()}
        for name, overrides in before.items():
            flat = base | overrides
            scaled = {
                key: flat[key] if scale == 1 else float(f"{flat[key] * scale:.3g}")
                for key in keys
                if flat[key]
            }
            teacher = names.get(flat["train.teacher"])
            taught = {"train.teacher": teacher} if flat["train.teacher"] and teacher else {}
            variants[names[name]] = overrides | scaled | taught
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}_learning_rate",
        variants=variants,
        published={},
        given=experiment.given.difference(keys),
        ladder=(),
    )


def _point(name, flat, scale):
    """Name a variant at a scaled learning rate."""
    return f"{name}_lr_{flat['optim.learning_rate'] * scale:.3g}".removeprefix("_")


def find_config(name: str | os.PathLike) -> pathlib.Path:
    """Find a config file by its path, or a bundled config by its name; raises UserError."""
    path = pathlib.Path(name)
    if path.is_file():
        return path
    if path.suffix or path.name != os.fspath(name):
        bundled = any((folder / path.name).is_file() for folder in BUNDLED)
        hint = f"; --config={path.stem} is the bundled one" if bundled else ""
        raise UserError(f"--config={name} is not a file{hint}")
    files = [file for folder in reversed(BUNDLED) for file in sorted(folder.glob("*.py"))]
    found = {file.stem: file for file in files}
    if path.name not in found:
        hint = suggest(path.name, found, f"use one of {', '.join(found)}", 3)
        raise UserError(f"--config={name} is neither a file nor a bundled config; {hint}")
    return found[path.name]


def _execute(path, profile):
    """Run a config file; return its config, its variants, its PUBLISHED and its LADDER."""
    try:
        contents = runpy.run_path(str(path))
        if "get_config" not in contents:
            raise UserError(f"--config={path} has no function get_config()")
        config = _call(contents["get_config"], path, profile)
        variants = _sweep(contents.get("sweep"), profile)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code may raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or ["?"])[-1]
        raise UserError(f"--config={path}, line {line}: {_reason(error)}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of --config={path} must return a ConfigDict")
    if differing := set(settings.flatten(config)) ^ set(SCHEMA):
        raise UserError(
            f"get_config() of --config={path} must return vit_jax.config.get_config() with some "
            f"values changed, but {min(differing)} is unknown or missing"
        )
    if not isinstance(variants, dict) or not all(isinstance(name, str) for name in variants):
        raise UserError(
            f"sweep() of --config={path} must return a dict of named variants, such as "
            "{'deep': {'model.depth': 12}}"
        )
    for name, overrides in variants.items():
        if not isinstance(overrides, dict):
            raise UserError(f"variant {name!r} must be a dict of settings, not {overrides!r}")
    published = contents.get("PUBLISHED", {})
    if not isinstance(published, dict) or not all(
        isinstance(text, str) for pair in published.items() for text in pair
    ):
        raise UserError(f"PUBLISHED of --config={path} must be a dict of strings: source to order")
    return config, variants, published, bool(contents.get("LADDER", False))


def _sweep(sweep, profile):
    """Call `sweep`, with the profile if it takes an argument; {} without a sweep."""
    if sweep is None:
        return {}
    takes_profile = profile is not None and inspect.signature(sweep).parameters
    return sweep(profile) if takes_profile else sweep()


def _call(get_config, path, profile):
    """Call `get_config` with the profile as its argument, or without any."""
    arguments = () if profile is None else (profile,)
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        if arguments:
            raise UserError(
                f"--config={path}:{profile} has a profile, but its get_config() takes none: use "
                f"--config={path}"
            ) from None
        raise UserError(f"--config={path} needs a profile: --config={path}:PROFILE") from None
    return get_config(*arguments)


def _reason(error):
    """Format an error raised by a config file."""
    # ml_collections quotes its messages, and lists all keys.
    match = re.match(r"""[\\'"]*(?:Key ")?(\w+)""", str(error))
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, (AttributeError, KeyError)) and match and "ml_collections" in where:
        renamed = {old.split(".")[-1]: new for old, new in RENAMED.items()}
        if match[1] in renamed:
            return f"{match[1]} was renamed to {renamed[match[1]]}"
        parts = {part for key in SCHEMA for part in key.split(".")}
        return f"{match[1]} is not a setting there; {settings.suggest_key(match[1], parts)}"
    return f"{type(error).__name__}: {first_line(error)}"
