"""Seeds of a variant: trained one at a time, or vectorised in one program."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax import models
from vit_jax.config.rules import one_seed_at_a_time
from vit_jax.runtime import sharding
from vit_jax.storage import run_folder
from vit_jax.training.setup import Setup


def vectorizes(setup: Setup, num_seeds: int) -> bool:
    """Whether so many seeds of a variant are vectorised."""
    choice = setup.config.train.vmap_seeds
    if num_seeds == 1 or choice == "never":
        return False
    if setup.on_features or one_seed_at_a_time(setup.config):
        return False
    # Convolutions of several seeds become grouped ones: four ResNets took 9 times as long as one on
    # a CPU, two on two devices 2.1 times; and of XLA:GPU's, cuDNN does not compute the gradients.
    model = setup.config.model
    if choice == "always" or model.name != "vit" or model.patchify == "conv_stem":
        return choice == "always"
    # Small models leave a GPU or TPU idle. A CPU is busy with one seed, and XLA:CPU is slow at
    # batched products of many small matrices: with split batches, four small ViTs took up to 5.2
    # times as long as one. Devices that train whole seeds do not wait for one another, which makes
    # up for it: 3.4 to 4.1 times.
    whole_seeds = sharding.seeds_sharding(setup.mesh, num_seeds).whole_seeds
    return whole_seeds or not sharding.on_cpu(setup.mesh)


def seed_groups(setup: Setup, folders: Mapping[int, pathlib.Path]) -> list[dict]:
    """Split {seed: folder} into groups of vectorised seeds."""
    # Vectorised seeds start together, differ by one save at most, and thus share the latest step
    # of the slowest. Others would lose steps.
    started = {(folder / "config.json").exists() for folder in folders.values()}
    saved = [run_folder.saved_steps(folder) | {0} for folder in folders.values()]
    latest = [max(steps) for steps in saved]
    together = len(started) == 1 and max(latest) - min(latest) <= setup.lengths.eval_every
    together = together and all(min(latest) in steps for steps in saved)
    if together and vectorizes(setup, len(folders)):
        return [dict(folders)]
    return [{seed: folder} for seed, folder in folders.items()]


class SeedAxis:
    """Trees of arrays of `num_seeds` seeds, stacked along a first axis [s, ...].

    The tree of a single seed has no such axis: removing it for every checkpoint and evaluation
    would hold the state twice on the devices.
    """

    def __init__(self, mesh: Mesh, num_seeds: int):
        self.num_seeds, self._mesh = num_seeds, mesh
        self._state = sharding.seeds_sharding(mesh, num_seeds).state
        if num_seeds == 1:
            return

        def stack(trees):
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

        # With a changing index: for a constant one, XLA sums the devices' shards, and -0 becomes 0.
        def take(tree, i):
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree)

        self._stack = jax.jit(stack, out_shardings=self._state)
        self._take = jax.jit(take, out_shardings=sharding.replicated(mesh))
        self._lambdas = jax.jit(jax.vmap(models.differential_lambdas))

    def stack(self, trees: list) -> Any:
        """Stack the seeds' trees of arrays on the devices."""
        return trees[0] if self.num_seeds == 1 else sharding.block_on_cpu(self._stack(trees))

    def stack_shapes(self, shapes: Any) -> Any:
        """Add the axis of the seeds to a tree of shapes of one seed."""
        if self.num_seeds == 1:
            return shapes
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (self.num_seeds, *x.shape), x.dtype, sharding=self._state
            ),
            shapes,
        )

    def device_put(self, trees: list) -> Any:
        """Stack the seeds' trees of host arrays, on the devices."""
        if self.num_seeds == 1:
            return sharding.replicate(self._mesh, trees[0])
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
        return jax.device_put(stacked, self._state)

    def take(self, tree: Any, i: int) -> Any:
        """Take the i-th seed's tree, on every device."""
        return tree if self.num_seeds == 1 else sharding.block_on_cpu(self._take(tree, i))

    def to_host(self, tree: Any) -> list:
        """Fetch each seed's tree of host arrays."""
        host = jax.device_get(tree)
        if self.num_seeds == 1:
            return [host]
        return [jax.tree.map(lambda x, i=i: x[i], host) for i in range(self.num_seeds)]

    def lambdas(self, params: dict) -> dict:
        """Compute `models.differential_lambdas` of the seeds' parameters."""
        if self.num_seeds == 1:
            return models.differential_lambdas(params)
        return self._lambdas(params)


def list_seeds(seeds: list[int]) -> str:
    """Name seeds, as "seed 3", "seeds 0-3" or "seeds 1, 3"."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
