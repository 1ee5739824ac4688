"""Random access to labelled images, decoded one by one or all in one pass."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vit_jax.data import decoded
from vit_jax.runtime.progress import Progress

MOST_SAMPLED = 64  # images that are inspected before the others are decoded


def spread(count: int, wanted: int) -> list[int]:
    """Choose `wanted` evenly spaced indices below `count`, with repetition if there are fewer."""
    return np.linspace(0, count - 1, wanted).astype(int).tolist()


def as_label(label: Any) -> Any:
    """Convert a label to int32, or several labels of an image to uint8 [classes]."""
    return np.int32(label) if np.ndim(label) == 0 else np.asarray(label, np.uint8)


def describe_label(label: Any, class_names: Sequence[str]) -> str:
    """Name the class of an image, or the classes of one with several labels."""
    if np.ndim(label) == 0:
        return class_names[int(label)]
    return ", ".join(class_names[i] for i in np.flatnonzero(label).tolist()) or "no class"


@dataclasses.dataclass(frozen=True)
class Examples:
    """Random access to labelled images.

    Attributes:
      count: number of examples.
      read: decodes examples: indices -> (uint8 [height, width, channels], label) each. The label is
        an integer; of several labels per image, uint8 [classes] of 0 and 1.
      read_labels: -> int32 [count], or uint8 [count, classes]; called only if the labels are needed
        without the images.
      make_identity: -> a string that identifies the images and labels, None for no caching; called
        only before all images are decoded.
      read_encoded: indices -> the encoded images; empty if there are none.
      read_sizes: -> int [count], the sizes of the files in bytes; None if there are none.
      read_names: indices -> names of the examples, distinct in their split: of files, the path.
    """

    count: int
    read: Callable[[Sequence[int]], list[tuple[np.ndarray, Any]]]
    read_labels: Callable[[], np.ndarray]
    make_identity: Callable[[], str | None] = lambda: None
    read_encoded: Callable[[Sequence[int]], list[bytes]] = lambda indices: []
    read_sizes: Callable[[], np.ndarray | None] = lambda: None
    read_names: Callable[[Sequence[int]], list[str]] = lambda indices: list(map(str, indices))

    def __len__(self):
        return self.count

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The labels, int32 [n], or uint8 [n, classes] of several per image."""
        return self.read_labels()

    @functools.cached_property
    def sizes(self) -> np.ndarray | None:
        """The sizes of the files in bytes, int [n]; None if the examples are no files."""
        return self.read_sizes()

    @functools.cached_property
    def _identity(self):
        return self.make_identity()

    def take(self, indices: np.ndarray) -> "Examples":
        """Select the examples at `indices`, in that order."""

        def sizes():
            return None if self.sizes is None else self.sizes[indices]

        return Examples(
            len(indices),
            lambda wanted: self.read(indices[wanted].tolist()),
            lambda: self.labels[indices],
            lambda: self._identity and decoded.identity(self._identity, indices.tolist()),
            lambda wanted: self.read_encoded(indices[wanted].tolist()),
            sizes,
            lambda wanted: self.read_names(indices[wanted].tolist()),
        )

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of all examples."""
        return self.read_names(range(self.count))

    def relabel(self, changed: Mapping[str, int]) -> "Examples":
        """Replace the labels of the named examples."""
        if not changed:
            return self
        rows = {i: changed[name] for i, name in enumerate(self.names) if name in changed}

        def read(indices):
            return [
                (image, rows.get(i, label))
                for i, (image, label) in zip(indices, self.read(indices), strict=True)
            ]

        def labels():
            found = self.labels.copy()
            found[list(rows)] = list(rows.values())
            return found

        def identity():
            return self._identity and decoded.identity(self._identity, sorted(rows.items()))

        changes = {"read": read, "read_labels": labels, "make_identity": identity}
        return dataclasses.replace(self, **changes) if rows else self

    def decode_all(self, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode all images, uint8 [n, height, width, channels], and `labels`."""
        chunks = [range(i, min(i + 256, len(self))) for i in range(0, len(self), 256)]
        # Preallocated: stacking at the end would need twice the memory.
        first, label = self.read([0])[0]
        images = np.empty((len(self), *first.shape), np.uint8)
        labels = np.empty((len(self), *np.shape(label)), as_label(label).dtype)
        progress = Progress("decoding", 0, len(self), True, "image")
        with ThreadPoolExecutor(num_threads) as pool, contextlib.closing(progress):
            for chunk, examples in zip(chunks, pool.map(self.read, chunks), strict=True):
                for i, (image, label) in zip(chunk, examples, strict=True):
                    images[i], labels[i] = image, label
                progress.advance(len(chunk))
        return images, labels

    def load_all(self, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode all images as `decode_all` does, or read them from the cache (`decoded`)."""
        images, labels = decoded.cached(self._identity, lambda: self.decode_all(num_threads))
        return images, labels
