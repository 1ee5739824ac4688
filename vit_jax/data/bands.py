"""Images of any number of channels, such as satellite bands: TIFF files and stacks, .npy arrays."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.resizing import Resize
from vit_jax.runtime.errors import UserError

PILLOW_CHANNELS = (1, 3)  # converted by Pillow; other numbers are bands
NPY = b"\x93NUMPY"  # the first bytes of a .npy file
_PERCENTILES = (0.5, 99.5)  # of a band's levels, which become black and white


def uses_bands(channels: int, path: Any = "") -> bool:
    """Whether images are read as bands: all but grey and RGB images, and .npy files."""
    return channels not in PILLOW_CHANNELS or str(path).lower().endswith(".npy")


def is_array(content: bytes, channels: int) -> bool:
    """Whether the contents of a file are read as bands; see `uses_bands`."""
    return uses_bands(channels) or content[:6] == NPY


def arrange(array: np.ndarray, channels: int) -> np.ndarray:
    """Move the channels of an array to the end: [height, width, channels]; raises UserError."""
    given = list(array.shape)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[-1] != channels == array.shape[0]:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] != channels or not array.size:
        raise UserError(
            f"it has the shape {given}, but data.channels={channels}: set data.channels if all "
            "images have this shape"
        )
    if array.dtype.kind not in "uifb":
        raise UserError(f"it holds {array.dtype}, not numbers")
    return array


def scale_bands(array: np.ndarray, level_range: Sequence[float]) -> np.ndarray:
    """Scale levels [..., channels] to uint8, by one range or one per channel.

    8-bit levels stay as they are. Raises UserError without `level_range`.
    """
    if array.dtype == np.uint8:
        return array
    if not level_range:
        raise UserError(
            f"its levels are {array.dtype}: set data.level_range, which 8-bit training images lack"
        )
    low, high = np.reshape(level_range, (-1, 2)).T.astype(np.float64)
    levels = np.where(np.isnan(array), low, array.astype(np.float64)).clip(low, high)
    return ((levels - low) * 255 / (high - low)).astype(np.uint8)


def to_array(
    array: np.ndarray, size: int, level_range: Sequence[float] = (), resize: Resize | None = None
) -> np.ndarray:
    """Scale [h, w, channels] to uint8 and resize every band: [size, size, channels]."""
    scaled = scale_bands(array, level_range)
    if scaled.shape[:2] == (size, size):
        return scaled
    resize = resize or Resize()
    bands = (Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(scaled, -1, 0))
    return np.stack([np.asarray(resize(band, size)) for band in bands], -1)


def decide_ranges(samples: Iterable[np.ndarray]) -> tuple[float, ...]:
    """Choose the level range of each band by sampled images; () without any beyond 8 bits.

    Satellite bands differ in range, and a cloud is many times brighter than the ground: black and
    white are the percentiles 0.5 and 99.5 of a band's levels.

    Returns:
      (low, high) of each band, one after the other.
    """
    deep = [a.reshape(-1, a.shape[-1]) for a in samples if a.dtype != np.uint8]
    if not deep:
        return ()
    found = []
    for i in range(deep[0].shape[-1]):  # one at a time: all as float64 would take much memory
        band = np.concatenate([pixels[:, i] for pixels in deep]).astype(np.float64)
        finite = band[np.isfinite(band)]
        low, high = np.percentile(finite, _PERCENTILES) if finite.size else (0.0, 1.0)
        found += [float(low), float(high) if high > low else float(low) + 1]
    return tuple(found)


def shown_bands(channels: int, rgb_bands: Sequence[int] = ()) -> list[int]:
    """List the indices of the channels that figures show, as RGB or grey.

    `rgb_bands` counts from 1; by default the first three, or the first of two.
    """
    if channels in PILLOW_CHANNELS:
        return list(range(channels))
    return [int(band) - 1 for band in rgb_bands] or list(range(3 if channels > 3 else 1))


def show(images: np.ndarray, data_config: Any) -> np.ndarray:
    """Select the channels of images [..., channels] that figures show: [..., 3] or [..., 1]."""
    if images.shape[-1] in PILLOW_CHANNELS:
        return images
    return images[..., shown_bands(images.shape[-1], data_config.rgb_bands)]
