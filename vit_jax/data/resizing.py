"""Resizing of decoded images to squares, by the rules of `data.resize_mode`."""

import functools
from collections.abc import Callable

from PIL import Image, ImageOps

from vit_jax.config import resized_side

Resize = Callable[[Image.Image, int], Image.Image]


def fit(image: Image.Image, side: int, method: int = Image.Resampling.BICUBIC) -> Image.Image:
    """Resize the central square of an image to `side` x `side`."""
    return ImageOps.fit(image, (side, side), Image.Resampling(method))


def make_resize(config) -> Resize:
    """Make the resizing (image, side) -> image of side x side pixels of `config.data`."""
    method = Image.Resampling[config.interpolation.upper()]
    if config.resize_mode == "fit":
        return functools.partial(fit, method=method)
    if config.resize_mode == "squash":
        return lambda image, side: image.resize((side, side), method)

    def resize_shorter_side(image, side):
        # As Resize and CenterCrop of torchvision: the longer side is truncated to pixels, and the
        # crop is that of image_size, to which evaluation crops further.
        scaled = [int(side * length / min(image.size)) for length in image.size]
        inner = config.image_size if side == resized_side(config) else side
        left, top = (round((n - inner) / 2) - round((side - inner) / 2) for n in scaled)
        if max(scaled) <= 16 * side:
            image = image.resize((scaled[0], scaled[1]), method)
            return image.crop((left, top, left + side, top + side))
        # The same up to rounding, without the memory for pixels that are cropped.
        steps = [length / n for length, n in zip(image.size, scaled, strict=True)]
        starts = [n * step for n, step in zip((left, top), steps, strict=True)]
        ends = [
            min(length, start + side * step)
            for length, start, step in zip(image.size, starts, steps, strict=True)
        ]
        return image.resize((side, side), method, (*starts, *ends))

    return resize_shorter_side
