"""Compiled steps of a config, for tests."""

import dataclasses

import jax
import numpy as np

from vit_jax.runtime import sharding
from vit_jax.training.compiled import compile_steps
from vit_jax.training.optim import path_of
from vit_jax.training.setup import make_setup, one_image


def make_steps(config, data, mesh, num_seeds=1, multi_step=False):
    """Compile the steps of a resolved config; with `multi_step` None, as set in the config."""
    setup = make_setup(config, data, mesh)
    if multi_step is not None:
        setup = dataclasses.replace(setup, multi_step=multi_step)
    return compile_steps(setup, num_seeds)


def trained_state(steps, data, num_steps=5):
    """Train some steps of batch size 16; return the parameters before and the state after."""
    state = steps.init(jax.random.key(0), one_image(steps.setup.config))
    before = jax.device_get((state.params, state.batch_stats))
    for batch in data.train.train(0, 0, num_steps, 16):
        state = sharding.block_on_cpu(steps.train(state, jax.random.key(1), batch))
    return before, state


def flat(tree):
    """Flatten a tree of arrays to {path: NumPy array}."""
    leaves = jax.tree.leaves_with_path(jax.device_get(tree))
    return {path_of(path): np.asarray(leaf) for path, leaf in leaves}
