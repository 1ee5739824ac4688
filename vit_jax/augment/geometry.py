"""Crops, flips, resizing and small rotations of uint8 batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vit_jax.augment.ops import FIXED, affine_row

FINE = 64  # boxes are measured in 1 / FINE pixels


def crop_and_flip(key: Array, images: Array, padding: int, flip: bool, fill: int = 0) -> Array:
    """Pad with `fill`, crop randomly to the original size, flip half (He et al. 2016, 4.2).

    `padding` pixels are added on each side; every offset in [0, 2 * padding] is equally likely.
    """
    b, height, width, _ = images.shape
    offset_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (b, 2), 0, 2 * padding + 1)
    rows = jnp.arange(height) + offsets[:, :1]  # [b, height]
    columns = jnp.arange(width) + offsets[:, 1:]  # [b, width]
    if flip:
        flipped = jax.random.bernoulli(flip_key, shape=(b, 1))
        columns = jnp.where(flipped, columns[:, ::-1], columns)
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, sides, constant_values=fill)
    # XLA's loop over a gather's pixels takes a TPU longer than the rest of a step.
    return jax.lax.platform_dependent(
        padded, rows, columns, tpu=select_pixels, default=gather_pixels
    )


def gather_pixels(images: Array, rows: Array, columns: Array) -> Array:
    """Take rows [b, n] and columns [b, m] of each image.

    One gather is measured faster on a CPU than a dynamic slice per image.
    """
    return jax.vmap(lambda image, y, x: image[y[:, None], x])(images, rows, columns)


def select_pixels(images: Array, rows: Array, columns: Array) -> Array:
    """Take the pixels of `gather_pixels` by products with one-hot matrices.

    They are exact: bfloat16 holds the integers up to 256.
    """
    pixels = images.astype(jnp.bfloat16)
    one_hot = functools.partial(jax.nn.one_hot, dtype=jnp.bfloat16)
    pixels = jnp.einsum("bts,bswc->btwc", one_hot(rows, images.shape[1]), pixels)
    pixels = jnp.einsum("bts,bhsc->bhtc", one_hot(columns, images.shape[2]), pixels)
    return pixels.astype(jnp.uint8)


def random_resized_crop(key: Array, images: Array, size: int, min_area: float, flip: bool) -> Array:
    """Resize a random crop to `size` x `size`, flip half (Szegedy et al. 2015, section 6).

    The crop's fraction of the area is uniform in [min_area, 1] and the logarithm of its aspect
    ratio uniform between those of 3/4 and 4/3, both from a fine grid; a side longer than the image
    is cut to it.
    """
    b, height, width, _ = images.shape
    side_key, corner_key, flip_key = jax.random.split(key, 3)
    area, ratio = np.meshgrid(np.linspace(min_area, 1, 257), np.geomspace(3 / 4, 4 / 3, 65))
    whole = FINE * np.array([height, width])
    sides = np.sqrt(area * height * width * np.stack([1 / ratio, ratio]))  # [2, 65, 257]
    sides = np.clip(np.rint(FINE * sides.reshape(2, -1).T), FINE, whole).astype(np.int32)
    chosen = jnp.asarray(sides)[jax.random.randint(side_key, (b,), 0, len(sides))]
    corners = jax.random.randint(corner_key, (b, 2), 0, whole - chosen + 1)
    resized = _resize(images, corners, chosen, size)
    if flip:
        flipped = jax.random.bernoulli(flip_key, shape=(b, 1, 1, 1))
        resized = jnp.where(flipped, resized[:, :, ::-1], resized)
    return resized


def center_crop(images: Array, size: int, keep: float = 1.0) -> Array:
    """Resize the central square of images [b, side, side, channels] to `size` x `size`.

    The square's side is the fraction `keep` of the image's, rounded to pixels.
    """
    b, side, _, _ = images.shape
    inner = max(1, round(keep * side))
    start = (side - inner) // 2
    images = images[:, start : start + inner, start : start + inner]
    if inner == size:
        return images
    return _resize(images, jnp.zeros((b, 2), jnp.int32), jnp.full((b, 2), FINE * inner), size)


def _resize(images, corners, sides, size):
    """Resize a box of every image with Pillow's BILINEAR, which averages when it shrinks.

    Pixels may differ from Pillow's by 1, because the axes are resized in another order.

    `corners` (upper left) and `sides` are int32 [b, 2], y first, in 1 / FINE pixels. All sums are
    of integers below 2^24, exact in float32: the compiler's order of summation, which may depend on
    the number of devices, cannot change a pixel.
    """
    x = images.astype(jnp.float32)
    for axis, equation in enumerate(("bts,bswc->btwc", "bts,bhsc->bhtc")):
        corner, side = corners[:, axis, None, None], sides[:, axis, None, None]
        source = jnp.arange(images.shape[1 + axis])
        target = jnp.arange(size)[:, None]
        # In units of 1 / (2 * size * FINE) pixels: distances of the centres, reach of the kernel.
        centres = 2 * size * corner + (2 * target + 1) * side  # [b, size, 1]
        distance = jnp.abs(centres - size * FINE * (2 * source + 1))  # [b, size, pixels]
        reach = jnp.maximum(2 * size * FINE, 2 * side)
        weights = jnp.maximum(reach - distance, 0).astype(jnp.float32)
        weights = jnp.round(16384 * weights / weights.sum(-1, keepdims=True))
        x = jnp.einsum(equation, weights, x, precision="highest")
        x = jnp.clip(jnp.floor(x / 16384 + 0.5), 0, 255)
    return x.astype(jnp.uint8)


def rotate(key: Array, images: Array, degrees: float, fill: int) -> Array:
    """Rotate about the centre with linear interpolation; pixels from outside are `fill`.

    2049 angles between -degrees and degrees are equally likely.
    """
    b, height, width, _ = images.shape
    angles = np.linspace(-degrees, degrees, 2049)
    maps = np.stack([affine_row("Rotate", angle, height, width) for angle in angles])
    chosen = jnp.asarray(maps)[jax.random.randint(key, (b,), 0, len(maps))]
    x, y = jnp.arange(width), jnp.arange(height)[:, None]
    a, b_, c, d, e, f = (column[:, None, None] for column in chosen.T)
    # Upper left of the four neighbouring pixels, in 1 / 256 pixels.
    x, y = (a * x + b_ * y + c - FIXED // 2) >> 8, (d * x + e * y + f - FIXED // 2) >> 8
    total = 0
    for right, below in ((0, 0), (0, 1), (1, 0), (1, 1)):
        column, row = (x >> 8) + right, (y >> 8) + below  # [b, height, width]
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        at = jnp.where(inside, row, 0), jnp.where(inside, column, 0)
        value = jax.vmap(lambda image, row, column: image[row, column])(images, *at)
        value = jnp.where(inside[..., None], value, fill).astype(jnp.int32)
        weight = (x & 255 if right else 256 - (x & 255)) * (y & 255 if below else 256 - (y & 255))
        total += weight[..., None] * value
    return ((total + FIXED // 2) // FIXED).astype(jnp.uint8)
