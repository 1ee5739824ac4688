"""One pass over all images of a dataset, which measures what its checks need."""

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vit_jax.data.bands import is_array, show
from vit_jax.data.duplicates import SIDE
from vit_jax.data.examples import Examples
from vit_jax.data.images import (
    has_alpha,
    open_image,
    options_of,
    orient,
    read_bands,
    read_levels,
    to_array,
    to_rgba,
)
from vit_jax.data.jpeg import inspect_jpeg
from vit_jax.data.resizing import Resize
from vit_jax.runtime.errors import UserError, first_line
from vit_jax.runtime.progress import Progress

_SQUASH = Resize("squash")
_CHUNK = 32  # images per task of a thread


@dataclasses.dataclass(frozen=True)
class Record:
    """What one image is like.

    Attributes:
      problem: why it cannot be read; "" if it can, else the other attributes are unset.
      format: such as "JPEG"; "array" if the dataset stores pixels.
      mode: Pillow's, such as "RGB".
      size: width and height in pixels.
      digest: of the decoded pixels, or of the file if it was decoded at a reduced scale.
      thumbnail: grey, uint8 [SIDE, SIDE].
      mean: of the pixels in [0, 1] as a model gets them, per channel.
      mean_square: mean of their squares, per channel.
      is_transparent: whether a pixel is transparent.
      levels: lowest and highest level, of more than 8 bits per channel.
      clipped: fraction of the levels outside the level range of the dataset.
      jpeg: estimated quality and chroma subsampling of a small JPEG.
    """

    problem: str = ""
    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    digest: int = 0
    thumbnail: np.ndarray | None = None
    mean: np.ndarray | None = None
    mean_square: np.ndarray | None = None
    is_transparent: bool = False
    levels: tuple[float, float] | None = None
    clipped: float = 0.0
    jpeg: tuple[int, str] | None = None


@dataclasses.dataclass(frozen=True)
class Survey:
    """The records of all images, split after split.

    Attributes:
      splits: {"train", "val", "test": examples}.
      records: of all images.
      split: the split of each, str [n].
      labels: the class of each, int [n], or the several of each, [n, classes].
      names: the name of each.
    """

    splits: Mapping[str, Examples]
    records: list[Record]
    split: np.ndarray
    labels: np.ndarray
    names: list[str]

    @property
    def readable(self) -> np.ndarray:
        """The indices of the images that can be read."""
        return np.flatnonzero([not record.problem for record in self.records])

    def read(self, row: int) -> np.ndarray:
        """Read an image as the model gets it, uint8 [side, side, channels]."""
        start = int(np.flatnonzero(self.split == self.split[row])[0])
        return self.splits[self.split[row]].read([row - start])[0][0]


def survey(splits: Mapping[str, Examples], config, level_range: tuple[float, ...]) -> Survey:
    """Measure all images of splits, with the settings `config.data`, in threads."""
    options = options_of(config) | {"level_range": level_range}
    records, total = [], sum(map(len, splits.values()))
    progress = Progress("checking", 0, total, True, "image")
    with ThreadPoolExecutor(config.num_threads) as pool, contextlib.closing(progress):
        for examples in splits.values():
            chunks = [range(len(examples))[i : i + _CHUNK] for i in range(0, len(examples), _CHUNK)]

            def measure(chunk, examples=examples):
                return [_measure(examples, i, config, options) for i in chunk]

            for found in pool.map(measure, chunks):
                records += found
                progress.advance(len(found))
    return Survey(
        splits,
        records,
        np.repeat(list(splits), [len(one) for one in splits.values()]),
        np.concatenate([one.labels for one in splits.values()]),
        [name for one in splits.values() for name in one.names],
    )


def _measure(examples, index, config, options):
    try:
        encoded = examples.read_encoded([index])
        if encoded and not is_array(encoded[0], config.channels):
            return _measure_file(encoded[0], config, options)
        record = _measure_array(examples.read([index])[0][0], config)
        if not encoded:
            return record
        levels = read_bands(encoded[0], config.channels, config.max_pixels)
        found: dict[str, Any] = {"size": levels.shape[1::-1]}
        if levels.dtype != np.uint8:
            found |= _levels(levels, options["level_range"])
        return dataclasses.replace(record, **found)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types for a broken file
        if isinstance(error, UnidentifiedImageError):  # whose text has an address in memory
            return Record(problem="it is empty, or not an image")
        return Record(problem=str(error) if isinstance(error, UserError) else first_line(error))


def _measure_array(array, config):
    shown = show(array, config)
    image = Image.fromarray(shown if shown.shape[-1] == 3 else shown[..., 0])
    record = Record(format="array", mode=image.mode, size=image.size)
    return dataclasses.replace(record, digest=_digest(array.tobytes()), **_pixels(array, image))


def _measure_file(data, config, options):
    with open_image(io.BytesIO(data), config.max_pixels) as image:
        record = Record(format=image.format or "", mode=image.mode, size=image.size)
        found: dict[str, Any] = {"jpeg": inspect_jpeg(data)}
        levels = read_levels(image, config.max_pixels)
        if levels is not None:
            colours = levels[..., :3] if levels.ndim == 3 else levels
            found |= _levels(colours, options["level_range"])
        else:
            # Decoding at a reduced scale is several times faster for large JPEG files.
            side = max(4 * SIDE, 2 * options["size"])
            image.draft(None, (side, side))
            if has_alpha(image):
                alpha = np.asarray(to_rgba(image))[..., 3]
                found["is_transparent"] = bool(alpha.min() < 255)
        scaled = image.size != record.size
        array = to_array(image, max_pixels=config.max_pixels, **options)
        plain = orient(image.convert("RGBA") if image.mode in ("P", "PA") else image)
        found["digest"] = _digest(data if scaled else repr(plain.size).encode() + plain.tobytes())
        found |= _pixels(array, image, options)
    return dataclasses.replace(record, **found)


def _levels(levels, level_range):
    """Find the smallest and largest level, and the fraction outside of the range or ranges."""
    finite = np.isfinite(levels)
    if not finite.any():
        return {}
    low, high = np.reshape(level_range or (-np.inf, np.inf), (-1, 2)).T
    outside = float(np.mean(((levels < low) | (levels > high))[finite]))
    inside = levels[finite]
    return {"levels": (float(inside.min()), float(inside.max())), "clipped": outside}


def _pixels(array, image, options=None):
    """Compute thumbnail, mean and mean square of an image that a model gets as `array`."""
    options = (options or {}) | {"size": SIDE, "channels": 1, "resize": _SQUASH}
    thumbnail = to_array(image, **options)[..., 0]
    values = array.reshape(-1, array.shape[-1]).astype(np.float32) / 255
    square = np.einsum("nc,nc->c", values, values) / len(values)
    return {"thumbnail": thumbnail, "mean": values.mean(0), "mean_square": square}


def _digest(content):
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
