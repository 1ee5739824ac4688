"""Batches on the devices; the batch of step s is a function of (seed, s) alone.

For vectorised seeds, `seed` is a tuple of s seeds and a batch has the shape [s, batch_size, ...].
"""

import contextlib
import functools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.data.examples import Examples, as_label
from vit_jax.runtime import sharding

MOST_STEPS = 64  # per call, in multi-step dispatch
_MAX_CHUNK = 16  # streamed images that a thread decodes in turn
Seed = int | tuple[int, ...]


@functools.lru_cache(maxsize=4)
def _order(seed, epoch, count):
    if isinstance(seed, tuple):
        return np.stack([_order.__wrapped__(one, epoch, count) for one in seed])
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)


def batch_indices(seed: Seed, step: int, count: int, batch_size: int) -> np.ndarray:
    """Compute the indices of a training batch: [batch_size], for vectorised seeds [s, batch_size].

    Each epoch is a new permutation; its last, incomplete batch is dropped.
    """
    epoch, position = divmod(step, count // batch_size)
    return _order(seed, epoch, count)[..., position * batch_size : (position + 1) * batch_size]


def balanced_indices(
    seed: Seed, step: int, by_class: np.ndarray, sizes: np.ndarray, batch_size: int
) -> np.ndarray:
    """Draw the indices of a class-balanced training batch, of the shape of `batch_indices`.

    Each one is drawn independently: a class, all with the same probability, then its example.

    Args:
      seed: of the run, or of each vectorised one.
      step: of the batch.
      by_class: indices of the examples, sorted by class.
      sizes: number of examples of each class, none of which is empty.
      batch_size: number of indices per seed.
    """
    if isinstance(seed, tuple):
        return np.stack([balanced_indices(s, step, by_class, sizes, batch_size) for s in seed])
    rng = np.random.default_rng((seed, step, 1))  # the order of an epoch has a key of two numbers
    chosen = rng.integers(len(sizes), size=batch_size)
    starts = np.cumsum(sizes) - sizes
    return by_class[starts[chosen] + rng.integers(sizes[chosen])].astype(np.int32)


def _padded_indices(start, count, batch_size):
    """Make evaluation indices [batch_size] from `start` on, and the mask of those below `count`."""
    indices = np.arange(start, start + batch_size, dtype=np.int32)
    return np.minimum(indices, count - 1), indices < count


def _gather(arrays, indices, mask):
    return {"image": arrays[0][indices], "label": arrays[1][indices], "mask": mask}


class _Batches:
    def __init__(self, count: int, mesh: Mesh):
        self._mesh, self._count = mesh, count

    def __len__(self):
        return self._count

    @property
    def labels(self) -> np.ndarray:
        """The labels of the examples, int [n]; with several each, uint8 [n, classes]."""
        raise NotImplementedError

    def _train_indices(self, seed, batch_size, balanced):
        """Make the function from a step to the indices of its batch."""
        if not balanced:
            count = self._count  # worker processes get this function, but not the mesh
            return lambda step: batch_indices(seed, step, count, batch_size)
        by_class = np.argsort(self.labels, kind="stable")
        sizes = np.unique(self.labels, return_counts=True)[1]
        return lambda step: balanced_indices(seed, step, by_class, sizes, batch_size)

    def _layout(self, seed, batch_size):
        """Compute the shape and the sharding of training batches."""
        if isinstance(seed, tuple):
            return (len(seed), batch_size), sharding.seeds_sharding(self._mesh, len(seed)).batch
        return (batch_size,), sharding.split(self._mesh)

    def _eval_starts(self, batch_size):
        # A multiple of the devices, and no larger than the dataset needs.
        devices = self._mesh.size
        batch_size = -(-min(batch_size, self._count) // devices) * devices
        return batch_size, range(0, self._count, batch_size)


class ResidentBatches(_Batches):
    """Batches of a device-resident dataset, replicated: uint8 images, or features [n, d]."""

    resident = True

    def __init__(self, images: np.ndarray, labels: np.ndarray, mesh: Mesh):
        super().__init__(len(labels), mesh)
        self._arrays, self._labels = sharding.replicate(mesh, (images, labels)), labels

    @property
    def labels(self) -> np.ndarray:
        """The labels of the examples, int [n]; with several each, uint8 [n, classes]."""
        return self._labels

    def train(
        self, seed: Seed, start: int, stop: int, batch_size: int, balanced: bool = False
    ) -> Iterator[dict]:
        """Yield the batches of steps start ... stop - 1, sharded over the devices.

        With `balanced`, they are those of `balanced_indices`, else those of `batch_indices`.
        """
        indices = self._train_indices(seed, batch_size, balanced)
        shape, split = self._layout(seed, batch_size)
        gather, mask = jax.jit(_gather, out_shardings=split), jnp.ones(shape, bool)
        for step in range(start, stop):
            yield gather(self._arrays, indices(step), mask)

    def train_at_once(
        self,
        seed: Seed,
        start: int,
        stop: int,
        batch_size: int,
        most: Callable[[int], int],
        balanced: bool = False,
    ) -> Iterator[tuple[int, dict]]:
        """Yield n and the batches of the next n steps, for multi-step dispatch.

        `most` maps a step to the largest number of steps from there that one call may take; values
        below 1 count as 1. `balanced` as in `train`.
        """
        indices = self._train_indices(seed, batch_size, balanced)
        (images, labels), (shape, _) = self._arrays, self._layout(seed, batch_size)
        step = start
        while step < stop:
            count = max(1, min(most(step), MOST_STEPS, stop - step))
            # A fixed shape, so that one compiled program serves any number of steps.
            rows = np.zeros((MOST_STEPS, *shape), np.int32)
            for i in range(count):
                rows[i] = indices(step + i)
            batches = {"image": images, "label": labels, "rows": rows, "count": np.int32(count)}
            yield count, batches
            step += count

    def evaluate(self, batch_size: int) -> Iterator[dict]:
        """Yield every example once; the last batch is padded, its mask False there."""
        batch_size, starts = self._eval_starts(batch_size)
        gather = jax.jit(_gather, out_shardings=sharding.split(self._mesh))
        for start in starts:
            yield gather(self._arrays, *_padded_indices(start, self._count, batch_size))


class StreamingBatches(_Batches):
    """Batches of a dataset that Grain reads and decodes on the fly.

    `num_threads` threads decode, or for training `num_workers` processes if that is not 0. One
    batch is transferred to the devices ahead of its use.
    """

    resident = False

    def __init__(self, examples: Examples, mesh: Mesh, num_threads: int, num_workers: int = 0):
        super().__init__(len(examples), mesh)
        self._examples, self._num_threads, self._num_workers = examples, num_threads, num_workers

    @property
    def labels(self) -> np.ndarray:
        """The labels of the examples, as those of `ResidentBatches`, read when first needed."""
        return self._examples.labels

    def train(
        self, seed: Seed, start: int, stop: int, batch_size: int, balanced: bool = False
    ) -> Iterator[dict]:
        """Yield the batches of steps start ... stop - 1, sharded over the devices.

        `balanced` as in `ResidentBatches.train`.
        """
        indices = self._train_indices(seed, batch_size, balanced)
        shape, split = self._layout(seed, batch_size)
        size = math.prod(shape)
        mask = np.ones(size, bool)
        local = sharding.local_indices(self._mesh, size)
        loader = _Loader(self._examples, lambda step: (indices(step).reshape(-1), mask), local)
        stream = loader.stream(start, stop, self._num_threads, self._num_workers)
        if not isinstance(seed, tuple):
            return self._put(stream)
        return _ahead(
            jax.device_put({k: v.reshape(*shape, *v.shape[1:]) for k, v in batch.items()}, split)
            for batch in stream
        )

    def evaluate(self, batch_size: int) -> Iterator[dict]:
        """Yield every example once; the last batch is padded, its mask False there."""
        batch_size, starts = self._eval_starts(batch_size)
        count = self._count

        def indices(step):
            return _padded_indices(step * batch_size, count, batch_size)

        loader = _Loader(self._examples, indices, sharding.local_indices(self._mesh, batch_size))
        # Worker processes would take seconds to start at each evaluation.
        return self._put(loader.stream(0, len(starts), self._num_threads, 0))

    def _put(self, stream):
        return _ahead(sharding.shard_batch(self._mesh, batch) for batch in stream)


def _ahead(batches: Iterator[dict]) -> Iterator[dict]:
    """Yield batches, each after the next one has been requested."""
    waiting = []
    for batch in batches:
        yield from waiting
        waiting = [batch]
    yield from waiting


class _Loader:
    """Reader of the examples of each batch that belong to this process; it can be pickled."""

    def __init__(self, examples, indices, local):
        """`indices` maps a step to the indices of its batch and their mask, [batch_size] each.

        `local` are the indices in a batch that belong to this process.
        """
        self._examples, self._indices = examples, indices
        self._latest: tuple[int, Any] = -1, None  # a step and its result
        self._local = local
        self._chunk = 1  # rows that are read together

    def _batch(self, step):
        latest, found = self._latest
        if latest != step:  # computed once per batch, not per chunk
            found = self._indices(step)
            self._latest = step, found
        return found

    def read(self, position):
        """Read a chunk of a batch: `position` counts those of this process over all steps."""
        step, chunk = divmod(position, len(self._local) // self._chunk)
        indices, mask = self._batch(step)
        local = self._local[chunk * self._chunk :][: self._chunk]
        images, labels = zip(*self._examples.read(indices[local].tolist()), strict=True)
        return {"image": images, "label": [as_label(one) for one in labels], "mask": mask[local]}

    def stream(self, start, stop, num_threads, num_workers):
        """Yield the batches of steps start ... stop - 1, as arrays of this process."""
        import grain  # costs a second

        # Grain's own work is per element: chunks of images cost it less than single ones. All
        # threads have some of each batch.
        count = len(self._local)
        most = min(_MAX_CHUNK, -(-count // num_threads))
        self._chunk = max(n for n in range(1, most + 1) if count % n == 0)
        chunks = count // self._chunk
        dataset = grain.MapDataset.range(start * chunks, stop * chunks).map(self.read)
        if num_workers:  # each element is a batch, so that their number does not change batches
            from absl import flags

            flags.FLAGS.mark_as_parsed()  # Grain reads its own ones
            one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
            several = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
            batches = dataset.batch(chunks, batch_fn=_join).to_iter_dataset(one)
            stream = batches.mp_prefetch(several, _follow_parent)
        else:
            ahead = -(-max(64, 2 * count) // self._chunk)
            options = grain.ReadOptions(num_threads, prefetch_buffer_size=ahead)
            stream = dataset.to_iter_dataset(options).batch(chunks, batch_fn=_join)
        with contextlib.closing(iter(stream)) as batches:
            yield from batches


def _join(chunks):
    """Join the chunks of a batch."""
    found = {key: [one for chunk in chunks for one in chunk[key]] for key in chunks[0]}
    return {key: np.stack(values) for key, values in found.items()}


def _follow_parent(*_):
    """Leave signals, which may reach all processes of a run, to the parent, and end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
