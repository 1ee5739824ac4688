"""Resizing of decoded images to squares, by the rules of `data.resize_mode`."""

import dataclasses

from PIL import Image, ImageOps

from vit_jax.config import resized_side


@dataclasses.dataclass(frozen=True)
class Resize:
    """A rule that resizes an image to side x side pixels; see `data.resize_mode`.

    Of "shorter_side", evaluation crops images of `resized` pixels to `crop` pixels.
    """

    mode: str = "fit"
    interpolation: str = "bicubic"
    resized: int = 0
    crop: int = 0

    def __call__(self, image: Image.Image, side: int) -> Image.Image:
        """Resize an image."""
        method = Image.Resampling[self.interpolation.upper()]
        if self.mode == "fit":
            return ImageOps.fit(image, (side, side), method)
        if self.mode == "squash":
            return image.resize((side, side), method)
        # As Resize and CenterCrop of torchvision: the longer side is truncated to pixels, and both
        # crops together have the offset of a single one.
        scaled = [int(side * length / min(image.size)) for length in image.size]
        inner = self.crop if side == self.resized else side
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
        return image.resize((side, side), method, (starts[0], starts[1], ends[0], ends[1]))


def make_resize(config) -> Resize:
    """Make the resizing of `config.data`."""
    if config.resize_mode != "shorter_side":
        return Resize(config.resize_mode, config.interpolation)
    return Resize(config.resize_mode, config.interpolation, resized_side(config), config.image_size)
