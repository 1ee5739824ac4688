"""Image inputs: paths, PIL images and arrays, one or several."""

import io
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from vit_jax.data import bands
from vit_jax.data.images import FORMATS, open_image, options_of, read_image, to_array
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import expand

Path = str | os.PathLike[str]
ImageLike = Path | Image.Image | np.ndarray | jax.Array
Images = ImageLike | Sequence[ImageLike]


def as_list(images: Images) -> Sequence[ImageLike] | np.ndarray:
    """Convert one or several images to a sequence; raises UserError."""
    several: Any = np.asarray(images) if isinstance(images, jax.Array) else images
    is_array = isinstance(several, np.ndarray)
    if isinstance(several, str | os.PathLike | Image.Image) or (is_array and several.ndim != 4):
        return [several]
    if not isinstance(several, np.ndarray | Sequence):
        kind = type(images).__name__
        raise UserError(f"images are a {kind}: give arrays, paths, PIL images, or a list of them")
    if not len(several):
        raise UserError("there are no images: give at least one")
    return several


def read(image: ImageLike, data_config) -> np.ndarray:
    """Preprocess an image as `Classifier.read_images` does: uint8 [side, side, channels]."""
    options = options_of(data_config)
    size, channels = options["size"], data_config.channels
    if isinstance(image, str | os.PathLike):
        path = expand(image)
        return read_image(path, max_pixels=data_config.max_pixels, **options)
    if bands.uses_bands(channels):
        array = np.asarray(image)
        if array.ndim != 3 or array.shape[-1] != channels or not array.size:
            raise UserError(_wrong_shape(array, channels))
        return to_array(array, **options)
    if isinstance(image, Image.Image):
        most = data_config.max_pixels
        return to_array(_copy(image, most), max_pixels=most, **options)
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise UserError(f"images are {array.dtype}: give uint8 pixels from 0 to 255")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] != channels or not array.size:
        raise UserError(_wrong_shape(array, channels))
    if array.shape[:2] == (size, size):
        return array
    return to_array(Image.fromarray(array[..., 0] if channels == 1 else array), **options)


def _wrong_shape(array, channels):
    return f"an image has the shape {list(array.shape)}: give [height, width, {channels}]"


def _copy(image, max_pixels):
    """Copy an image; one that is not decoded yet is opened again, for all bits of its colours."""
    stream: Any = getattr(image, "fp", None)
    if stream is None or not getattr(image, "tile", None) or image.format not in FORMATS:
        return image.copy()
    place = stream.tell()
    stream.seek(0)
    content = stream.read()
    stream.seek(place)
    image.load()  # closes its file, as a copy would
    return open_image(io.BytesIO(content), max_pixels)
