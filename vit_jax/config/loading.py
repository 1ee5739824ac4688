"""Config files: executed, and checked."""

import difflib
import os
import pathlib
import re
import runpy
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field

from ml_collections import ConfigDict

from vit_jax.config import settings
from vit_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Experiment:
    """A config with its named variants.

    Attributes:
      name: of the experiment.
      config: of all variants, with the overrides.
      variants: {variant: {"section.key": value}}; {} for a single variant "base".
      published: {source: the order that it found}.
      given: the keys that were overridden.
    """

    name: str
    config: settings.Config
    variants: dict[str, dict] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)
    given: frozenset[str] = frozenset()


def load_config(
    path: str | os.PathLike, overrides: Mapping | None = None, variant: str | None = None
) -> Experiment:
    """Loads a config file.

    Args:
      path: of the file.
      overrides: {"section.key": value}.
      variant: keep this one of the variants.

    Raises:
      UserError: the file, a key, a value or the variant is wrong.
    """
    path, overrides = pathlib.Path(path), dict(overrides or {})
    config, variants, published = load_config_file(path)
    config = settings.with_overrides(config, overrides, "the overrides")
    if variant is not None:
        if variant not in variants:
            raise UserError(f"there is no variant {variant!r}: use one of {', '.join(variants)}")
        variants = {variant: variants[variant]}
    return Experiment(path.stem, config, variants, published, frozenset(overrides))


def load_config_file(path: pathlib.Path) -> tuple[settings.Config, dict[str, dict], dict]:
    """Returns what a config file's get_config() and sweep() return, and its PUBLISHED.

    sweep() is {variant: {"section.key": value}}, PUBLISHED is {source: the order that it found};
    both may be missing, and are then {}.

    Raises UserError if it is missing, fails, or returns something else.
    """
    if not path.is_file():
        raise UserError(f"--config={path} is not a file")
    try:
        contents = runpy.run_path(str(path))
        if "get_config" not in contents:
            raise UserError(f"--config={path} has no function get_config()")
        config = contents["get_config"]()
        variants = contents["sweep"]() if "sweep" in contents else {}
    except UserError:
        raise
    except Exception as error:  # whatever the user's code may raise
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or ["?"])[-1]
        raise UserError(f"--config={path}, line {line}: {_reason(error)}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of --config={path} returns no ConfigDict")
    differing = set(settings.flatten(config)) ^ set(settings.flatten(settings.get_config()))
    if differing:
        raise UserError(
            f"get_config() of --config={path} must return vit_jax.config.get_config() with some "
            f"values changed, but {min(differing)} was added or is missing"
        )
    if not isinstance(variants, dict) or not all(isinstance(name, str) for name in variants):
        raise UserError(
            f"sweep() of --config={path} must return a dict of named variants, such as "
            "{'deep': {'model.depth': 12}}"
        )
    published = contents.get("PUBLISHED", {})
    if not isinstance(published, dict) or not all(
        isinstance(text, str) for pair in published.items() for text in pair
    ):
        raise UserError(f"PUBLISHED of --config={path} must be a dict of texts: source to order")
    return config, variants, published


def _reason(error):
    """Returns what to tell of an error in a config file's code."""
    # ml_collections quotes its messages, and lists all keys.
    match = re.match(r"""[\\'"]*(?:Key ")?(\w+)""", str(error))
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, (AttributeError, KeyError)) and match and "ml_collections" in where:
        known = settings.flatten(settings.get_config())
        parts = {part for key in known for part in key.split(".")}
        near = [key for key in known if key.split(".")[-1] == match[1]]  # of another section
        near = near or difflib.get_close_matches(match[1], parts, n=1)
        hint = f"did you mean {near[0]}?" if near else "vit_jax/config/settings.py lists them"
        return f"there is no setting {match[1]} there; {hint}"
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
