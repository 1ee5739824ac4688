"""One image: from a file or an opened picture to an array of the wanted size and channels."""

import pathlib

import numpy as np
import PIL
from PIL import Image, ImageOps

from vit_jax.data import decoded
from vit_jax.runtime.errors import UserError

# What Pillow may take a file for, whatever it is called: not those that it hands to other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
PIXELS = 1  # counts up when `to_array` begins to give other pixels: those kept are then made anew


def stored_size(config) -> int:
    """Returns the side, in pixels, that images have until they are on the device."""
    return config.stored_size or config.image_size


def identity_of(config, *what) -> str:
    """Returns a text that stands for images as `config.data` has them read, from `what`."""
    return decoded.identity(PIXELS, PIL.__version__, stored_size(config), config.channels, *what)


def to_array(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Returns uint8 [size, size, channels]: upright, converted, resized, centre-cropped.

    `image` itself may be turned upright.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits: Pillow would clip, not scale
        levels = np.nan_to_num(np.asarray(image, np.float64) / 257, nan=0.0)
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:  # of a palette: Pillow wants this step in between
        image = image.convert("RGBA")
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:  # else it would be copied
        image = image.convert(mode)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)


def read_image(path: pathlib.Path, size: int, channels: int) -> np.ndarray:
    """Returns a file's image as `to_array` makes it; raises UserError if it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_array(image, size, channels)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types for a broken file
        raise UserError(f"{path} cannot be read as an image ({error})") from None
