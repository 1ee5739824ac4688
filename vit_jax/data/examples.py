"""Labelled images by their numbers, read one by one or all at once."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vit_jax.data import decoded
from vit_jax.runtime.progress import Bar


class Examples:
    """Random access to labelled images.

    Attributes:
      labels: int32 [n].
      identity: a text that changes with the pixels or labels; None: they are not to be kept.
    """

    def __init__(
        self,
        count: int,
        read: Callable[[Sequence[int]], list[tuple[np.ndarray, int]]],
        labels: Callable[[], np.ndarray],
        identity: Callable[[], str | None] = lambda: None,
    ):
        """Wraps a reader.

        Args:
          count: number of examples.
          read: indices -> (uint8 [height, width, channels], label) each.
          labels: -> int32 [count]; called only when labels are needed without the pixels.
          identity: -> `identity`; called only before all are decoded.
        """
        self._count, self._read, self._labels, self._identity = count, read, labels, identity

    def __len__(self):
        return self._count

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The labels, int32 [n]."""
        return self._labels()

    @functools.cached_property
    def identity(self) -> str | None:
        """A text that changes with the pixels or labels; None: they are not to be kept."""
        return self._identity()

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        """Reads and decodes some examples: (uint8 [height, width, channels], label) each."""
        return self._read(indices)

    def take(self, indices: np.ndarray) -> "Examples":
        """Returns the examples at `indices`, in that order."""
        return Examples(
            len(indices),
            lambda wanted: self._read([int(indices[i]) for i in wanted]),
            lambda: self.labels[indices],
            lambda: self.identity and decoded.identity(self.identity, indices.tolist()),
        )

    def decode_all(self, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns all images, uint8 [n, height, width, channels], and labels, int32 [n]."""
        chunks = [range(i, min(i + 256, len(self))) for i in range(0, len(self), 256)]
        # Filled in place: a stack at the end would need twice the room.
        images = np.empty((len(self), *self.read([0])[0][0].shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        bar = Bar(total=len(self), desc="decoding", unit="image", leave=False, disable=None)
        with ThreadPoolExecutor(num_threads) as pool, bar:
            for chunk, examples in zip(chunks, pool.map(self.read, chunks), strict=True):
                for i, (image, label) in zip(chunk, examples, strict=True):
                    images[i], labels[i] = image, label
                bar.update(len(chunk))
        return images, labels

    def load_all(self, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode all images as `decode_all` does, or read them from the cache (`decoded`)."""
        images, labels = decoded.cached(self.identity, lambda: self.decode_all(num_threads))
        return images, labels
