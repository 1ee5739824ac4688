"""Settings: their defaults, config files, and the rules that they obey."""

from vit_jax.config.settings import (
    DIMENSIONS,
    MODEL_SIZES,
    Config,
    check_key,
    flatten,
    get_config,
    resolve,
    steps_of,
    total_steps,
    with_overrides,
    wrong_type,
)

__all__ = [
    "DIMENSIONS",
    "MODEL_SIZES",
    "Config",
    "check_key",
    "flatten",
    "get_config",
    "resolve",
    "steps_of",
    "total_steps",
    "with_overrides",
    "wrong_type",
]
