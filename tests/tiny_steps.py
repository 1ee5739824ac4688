"""Compiled steps of a config, for tests."""

import dataclasses

from vit_jax.training.compiled import compile_steps
from vit_jax.training.setup import make_setup


def make_steps(config, data, mesh, num_seeds=1, multi_step=False):
    """Compile the steps of a resolved config; with `multi_step` None, as set in the config."""
    setup = make_setup(config, data, mesh)
    if multi_step is not None:
        setup = dataclasses.replace(setup, multi_step=multi_step)
    return compile_steps(setup, num_seeds)
