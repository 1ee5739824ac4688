"""The seeds of a variant: one after another, or several at once in one program."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vit_jax import models
from vit_jax.config.rules import one_seed_at_a_time
from vit_jax.evaluation.evaluate import Result, evaluate, evaluate_together
from vit_jax.runtime import sharding
from vit_jax.storage import run_folder
from vit_jax.training.setup import Program
from vit_jax.training.step import make_steps_at_once


def at_once(program: Program, num_seeds: int) -> bool:
    """Returns whether so many seeds of a program are trained at once."""
    choice = program.config.train.seeds_at_once
    if num_seeds == 1 or choice == "never":
        return False
    if program.feature_step is not None or one_seed_at_a_time(program.config):
        return False
    if choice == "always":
        return True
    # Convolutions of several seeds become grouped ones: four ResNets took 9 times as long as one on
    # a CPU, two on two devices 2.1 times; and of XLA:GPU's, cuDNN does not compute the gradients.
    if program.config.model.name != "vit":
        return False
    # Small models leave a GPU or TPU idle. A CPU is busy with one seed, and XLA:CPU is slow at
    # batched products of many small matrices: with split batches, four small ViTs took up to 5.2
    # times as long as one. Devices that train whole seeds do not wait for one another, which makes
    # up for it: 3.4 to 4.1 times.
    whole_seeds = sharding.of_seeds(program.mesh, num_seeds).whole_seeds
    return jax.default_backend() != "cpu" or whole_seeds


def groups(program: Program, folders: Mapping[int, pathlib.Path]) -> list[dict]:
    """Returns the folders in parts {seed: folder}, of which each is to be trained at once."""
    alone = [{seed: folder} for seed, folder in folders.items()]
    if not at_once(program, len(folders)):
        return alone
    # Seeds that were trained at once differ by one save at most. Others would have to go back to
    # where the last one is.
    steps = [run_folder.last_saved_step(folder) for folder in folders.values()]
    return [dict(folders)] if max(steps) - min(steps) <= program.eval_every else alone


class Alone:
    """The steps of one seed, with the interface of `Together`."""

    def __init__(self, program: Program):
        """Takes the steps as they are."""
        self._program = program
        self.train_step = program.steps_at_once or program.train_step

    def batches(
        self, part, seeds: Sequence[int], start: int, stop: int, most: Callable[[int], int]
    ) -> Iterator[tuple[int, dict]]:
        """Yields n, and what `train_step` takes for the next n steps of start ... stop - 1.

        `most` tells of a step how many, from that one on, may be taken in one call.
        """
        return self._batches(part, seeds[0], start, stop, most)

    def _batches(self, part, seed, start, stop, most):
        size = self._program.config.train.batch_size
        if self._program.steps_at_once:
            return part.train_at_once(seed, start, stop, size, most)
        return ((1, batch) for batch in part.train(seed, start, stop, size))

    def stack(self, trees: list) -> Any:
        """Returns one tree of the seeds' trees of arrays on the devices."""
        return trees[0]

    def put(self, trees: list) -> Any:
        """Returns one tree on the devices of the seeds' trees of host arrays."""
        return sharding.put_replicated(self._program.mesh, trees[0])

    def take(self, tree, i: int) -> Any:
        """Returns the arrays of the i-th seed, on the devices."""
        return tree

    def rows(self, tree) -> list:
        """Returns the seeds' trees of host arrays."""
        return [jax.device_get(tree)]

    def lambdas(self, params) -> dict:
        """Returns what `models.differential_lambdas` finds."""
        return models.differential_lambdas(params)

    def evaluate(self, variables, batches, stop: Callable[[], bool]) -> list[Result] | None:
        """Returns the seeds' results, or None if stopped."""
        result = evaluate(self._program.eval_step, variables, batches, stop)
        return None if result is None else [result]


class Together(Alone):
    """The steps of several seeds at once, on stacked arrays [s, ...].

    Where each device can have whole seeds, it trains those, without the others; else all of them
    share each seed's batch.
    """

    def __init__(self, program: Program, num_seeds: int):
        """Compiles nothing yet."""
        self._program, self._num_seeds = program, num_seeds
        mesh, of_seeds = program.mesh, sharding.of_seeds(program.mesh, num_seeds)
        state, batch = of_seeds.state, of_seeds.batch
        train_step, eval_step = program.pure_steps

        def sums_of(variables, sums, batch):
            return eval_step(variables, sums, batch)[0]

        train_all, eval_all = jax.vmap(train_step), jax.vmap(sums_of, in_axes=(0, 0, None))
        if of_seeds.whole_seeds:
            own, shared = PartitionSpec("data"), PartitionSpec()
            # The check knows of no loop that begins with constants, as that of accumulation does.
            options: dict[str, Any] = dict(mesh=mesh, out_specs=own, check_vma=False)
            train_all = jax.shard_map(train_all, in_specs=own, **options)
            eval_all = jax.shard_map(eval_all, in_specs=(own, own, shared), **options)
        if program.steps_at_once:
            train_all, batch = make_steps_at_once(train_all, batch), sharding.replicated(mesh)
        self.train_step = jax.jit(
            train_all, in_shardings=(state, state, batch), out_shardings=state, donate_argnums=0
        )
        self._eval_step = jax.jit(
            eval_all, in_shardings=(state, state, sharding.split(mesh)), out_shardings=state
        )

        def stack(trees):
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

        # With a changing index, because XLA adds up the devices' parts to get at a constant one,
        # which makes 0 of -0.
        def take(tree, i):
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree)

        self._state = state
        self._stack = jax.jit(stack, out_shardings=state)
        self._take = jax.jit(take, out_shardings=sharding.replicated(mesh))
        self._lambdas = jax.jit(jax.vmap(models.differential_lambdas))

    def batches(self, part, seeds, start, stop, most):
        """Yields n, and what `train_step` takes for the next n steps of all seeds."""
        return self._batches(part, tuple(seeds), start, stop, most)

    def stack(self, trees):
        """Returns one tree of the seeds' trees of arrays on the devices."""
        return sharding.settle(self._stack(trees))

    def put(self, trees):
        """Returns one tree on the devices of the seeds' trees of host arrays."""
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
        return jax.device_put(stacked, self._state)

    def take(self, tree, i):
        """Returns the arrays of the i-th seed, on every device."""
        return sharding.settle(self._take(tree, i))

    def rows(self, tree):
        """Returns the seeds' trees of host arrays."""
        host = jax.device_get(tree)
        return [jax.tree.map(lambda x, i=i: x[i], host) for i in range(self._num_seeds)]

    def lambdas(self, params):
        """Returns what `models.differential_lambdas` finds, [s] each."""
        return self._lambdas(params)

    def evaluate(self, variables, batches, stop):
        """Returns the seeds' results, or None if stopped."""
        return evaluate_together(self._eval_step, variables, self._num_seeds, batches, stop)
