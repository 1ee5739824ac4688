"""Batches on the devices; the batch of step s is a function of (seed, s) alone."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.data.examples import Examples
from vit_jax.runtime import sharding

MOST_STEPS = 64  # in a call


@functools.lru_cache(maxsize=4)
def order(seed: int | tuple[int, ...], epoch: int, count: int) -> np.ndarray:
    """Returns the permutation of `count` examples that epoch `epoch` goes through.

    Of several seeds, it returns all of theirs, [s, count].
    """
    if isinstance(seed, tuple):
        return np.stack([order.__wrapped__(one, epoch, count) for one in seed])
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)


def batch_indices(
    seed: int | tuple[int, ...], step: int, count: int, batch_size: int
) -> np.ndarray:
    """Returns the examples [batch_size] of training step `step`, of several seeds [s, batch_size].

    Each epoch is a fresh permutation; its last, incomplete batch is left out.
    """
    epoch, position = divmod(step, count // batch_size)
    return order(seed, epoch, count)[..., position * batch_size : (position + 1) * batch_size]


def padded_indices(start: int, count: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns evaluation indices [batch_size] from `start` on, and the mask of the real ones."""
    indices = np.arange(start, start + batch_size, dtype=np.int32)
    return np.minimum(indices, count - 1), indices < count


class _Batches:
    """What resident and streaming batches share: the number of examples and the batch shapes."""

    def __init__(self, count: int, mesh: Mesh):
        self._mesh, self._count = mesh, count

    def __len__(self):
        return self._count

    def _eval_starts(self, batch_size):
        # A multiple of the devices, and no larger than the set needs.
        devices = self._mesh.size
        batch_size = -(-min(batch_size, self._count) // devices) * devices
        return batch_size, range(0, self._count, batch_size)


class ResidentBatches(_Batches):
    """Batches of a set that is decoded once and lives on every device as uint8."""

    resident = True

    def __init__(self, examples: Examples, mesh: Mesh, num_threads: int):
        """Decodes all examples, or reads them decoded, and copies them to the devices of `mesh`."""
        super().__init__(len(examples), mesh)
        self._hold(*examples.load_all(num_threads))

    @classmethod
    def of_features(cls, features: np.ndarray, labels: np.ndarray, mesh: Mesh) -> "ResidentBatches":
        """Returns batches whose "image" is features [n, d] instead."""
        batches = cls.__new__(cls)
        _Batches.__init__(batches, len(labels), mesh)
        batches._hold(features, labels)
        return batches

    def _hold(self, images, labels):
        self._arrays = sharding.put_replicated(self._mesh, (images, labels))
        self._gather = jax.jit(_gather, out_shardings=sharding.split(self._mesh))

    def train(
        self, seed: int | tuple[int, ...], start: int, stop: int, batch_size: int
    ) -> Iterator[dict]:
        """Yields the batches of steps start ... stop - 1, split over the devices.

        Of several seeds, it yields theirs together, [s, batch_size, ...], as
        `sharding.of_seeds` splits them.
        """
        shape, gather = (batch_size,), self._gather
        if isinstance(seed, tuple):
            shape = (len(seed), batch_size)
            split = sharding.of_seeds(self._mesh, len(seed)).batch
            gather = jax.jit(_gather, out_shardings=split)
        mask = jnp.ones(shape, bool)
        for step in range(start, stop):
            indices = batch_indices(seed, step, self._count, batch_size)
            yield gather(self._arrays, indices, mask)

    def train_at_once(
        self,
        seed: int | tuple[int, ...],
        start: int,
        stop: int,
        batch_size: int,
        most: Callable[[int], int],
    ) -> Iterator[tuple[int, dict]]:
        """Yields n, and what `steps.make_steps_at_once` takes for the next n steps.

        Of several seeds, the batches are theirs together, as in `train`.

        Args:
          seed: as in `train`, like `start`, `stop` and `batch_size`.
          most: number of a step -> how many, from that one on, may be taken in one call; 1 may
            always.
        """
        shape = (len(seed), batch_size) if isinstance(seed, tuple) else (batch_size,)
        images, labels = self._arrays
        step = start
        while step < stop:
            count = max(1, min(most(step), MOST_STEPS, stop - step))
            # Of one shape, so that one program serves any number of steps.
            rows = np.zeros((MOST_STEPS, *shape), np.int32)
            for i in range(count):
                rows[i] = batch_indices(seed, step + i, self._count, batch_size)
            batches = {"image": images, "label": labels, "rows": rows, "count": np.int32(count)}
            yield count, batches
            step += count

    def evaluate(self, batch_size: int) -> Iterator[dict]:
        """Yields every example once; the last batch is padded, its mask False there."""
        batch_size, starts = self._eval_starts(batch_size)
        for start in starts:
            yield self._gather(self._arrays, *padded_indices(start, self._count, batch_size))


def _gather(arrays, indices, mask):
    return {"image": arrays[0][indices], "label": arrays[1][indices], "mask": mask}


class StreamingBatches(_Batches):
    """Batches of a set that is read and decoded on the fly, by Grain, in threads."""

    resident = False

    def __init__(self, examples: Examples, mesh: Mesh, num_threads: int):
        """Reads nothing yet."""
        super().__init__(len(examples), mesh)
        self._examples, self._num_threads = examples, num_threads

    def train(
        self, seed: int | tuple[int, ...], start: int, stop: int, batch_size: int
    ) -> Iterator[dict]:
        """Yields the batches of steps start ... stop - 1, split over the devices.

        Of several seeds, it yields theirs together, [s, batch_size, ...], as
        `sharding.of_seeds` splits them.
        """

        def example(step, row):
            return int(batch_indices(seed, step, self._count, batch_size).flat[row]), True

        if not isinstance(seed, tuple):
            return self._put(self._stream(example, start, stop, batch_size))
        shape, split = (len(seed), batch_size), sharding.of_seeds(self._mesh, len(seed)).batch
        stream = self._stream(example, start, stop, len(seed) * batch_size)
        return (
            jax.device_put({k: v.reshape(*shape, *v.shape[1:]) for k, v in batch.items()}, split)
            for batch in stream
        )

    def evaluate(self, batch_size: int) -> Iterator[dict]:
        """Yields every example once; the last batch is padded, its mask False there."""
        batch_size, starts = self._eval_starts(batch_size)

        def example(step, row):
            indices, mask = padded_indices(step * batch_size, self._count, batch_size)
            return int(indices[row]), mask[row]

        return self._put(self._stream(example, 0, len(starts), batch_size))

    def _put(self, stream):
        return (sharding.put_split(self._mesh, batch) for batch in stream)

    def _stream(self, example, start, stop, batch_size):
        import grain  # costs a second, so only where it is used

        rows = batch_size // jax.process_count()  # that this process reads
        first = jax.process_index() * rows

        def load(position):
            step, row = divmod(position, rows)
            index, mask = example(step, first + row)
            image, label = self._examples.read([index])[0]
            return {"image": image, "label": np.int32(label), "mask": np.bool_(mask)}

        options = grain.ReadOptions(
            num_threads=self._num_threads, prefetch_buffer_size=max(64, 2 * rows)
        )
        stream = grain.MapDataset.range(start * rows, stop * rows).map(load)
        yield from stream.to_iter_dataset(options).batch(rows)
