"""Settings schema, config files and rules across settings."""

from vit_jax.config.settings import (
    DIMENSIONS,
    EXPLAINED_POOLS,
    MODEL_SIZES,
    PREPROCESSING,
    Config,
    check_key,
    current_names,
    flatten,
    get_config,
    has_cls,
    num_kept,
    reset_other_models,
    resized_side,
    resolve,
    steps_of,
    total_steps,
    with_overrides,
)
