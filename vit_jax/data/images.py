"""Decoding and resizing of single images."""

import pathlib

import numpy as np
import PIL
from PIL import Image, ImageOps

from vit_jax.config import resized_side
from vit_jax.data import decoded
from vit_jax.data.resizing import Resize, fit
from vit_jax.runtime.errors import UserError

# The formats that Pillow may detect, whatever the suffix: none that it opens with other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
PIXELS = 1  # increase when `to_array` changes its result: invalidates cached images


def stored_size(config) -> int:
    """Compute the side in pixels at which images of `config.data` are stored in host memory."""
    own = config.image_size if config.resize_mode == "fit" else resized_side(config)
    return config.stored_size or own


def identity_of(config, *what) -> str:
    """Hash what determines decoded images: the code, the settings `config.data`, and `what`."""
    if (config.resize_mode, config.interpolation) != ("fit", "bicubic"):
        what += config.resize_mode, config.interpolation, config.image_size
    return decoded.identity(PIXELS, PIL.__version__, stored_size(config), config.channels, *what)


def to_array(image: Image.Image, size: int, channels: int, resize: Resize = fit) -> np.ndarray:
    """Orient (in place), convert and `resize` an image to uint8 [size, size, channels]."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits: Pillow clips, not scales
        levels = np.nan_to_num(np.asarray(image, np.float64) / 257, nan=0.0)
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:  # palette images: Pillow needs this intermediate step
        image = image.convert("RGBA")
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:  # avoids a copy
        image = image.convert(mode)
    if image.size != (size, size):
        image = resize(image, size)
    return np.asarray(image).reshape(size, size, channels)


def read_image(path: pathlib.Path, size: int, channels: int, resize: Resize = fit) -> np.ndarray:
    """Read a file with `to_array`; raises UserError if it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_array(image, size, channels, resize)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types for a broken file
        raise UserError(f"{path} cannot be read as an image ({error})") from None
