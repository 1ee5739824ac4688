"""Settings schema, config files and rules across settings."""

from vit_jax.config.settings import (
    DIMENSIONS,
    MODEL_SIZES,
    Config,
    check_key,
    current_names,
    flatten,
    get_config,
    resolve,
    steps_of,
    total_steps,
    with_overrides,
)
