"""Colour jitter and the operations of AutoAugment policies, with Pillow's arithmetic, in batches.

An operation is a row of numbers (`Ops`), not a branch: an affine map of the pixels, a table of 256
values, or a blend with the grey or the smoothed image. A batch in which every image has its own
operation costs one gather, one table look-up and two blends, whichever was drawn. Integer
arithmetic makes the pixels independent of the order of summation and so of the number of devices.
`planes` are uint8 [channels, b, height * width].
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
FIXED = 1 << 16  # Pillow's affine maps count in units of 1 / FIXED pixels
UNIT = 1 << 21  # a blend's factor of 1; int32 has room for 3 * 255 * UNIT


@dataclasses.dataclass(frozen=True)
class Ops:
    """Operations as arrays, one per row; a row is the identity in all columns except one.

    Attributes:
      affine: int32 [n, 6], (a, b, c, d, e, f): the output pixel (column x, row y) is taken from
        column (a x + b y + c) >> 16 and row (d x + e y + f) >> 16 of the input.
      table: uint8 [n, 256], the output of every input value.
      factors: int32 [n, 3], factors times UNIT of the distance from the image's mean grey, from the
        pixel's grey, and from the smoothed image.
      flags: bool [n, 2], whether every channel is stretched to 0 ... 255, and equalised.
    """

    affine: np.ndarray
    table: np.ndarray
    factors: np.ndarray
    flags: np.ndarray


def make_ops(operations: list[tuple[str, float]], height: int, width: int) -> Ops:
    """Encode operations (name, magnitude) for images of `height` x `width` pixels.

    As in torchvision: shear as a tangent, translation in whole pixels, rotation in degrees
    counter-clockwise, the factor minus 1 for Brightness, Contrast, Color and Sharpness, the number
    of bits that Posterize keeps, the value from which Solarize inverts.
    """
    blends, flags = ("Contrast", "Color", "Sharpness"), ("AutoContrast", "Equalize")
    factors = np.array([[1 + m * (name == blend) for blend in blends] for name, m in operations])
    return Ops(
        affine=np.stack([affine_row(*operation, height, width) for operation in operations]),
        table=np.stack([_table(*operation) for operation in operations]),
        factors=np.rint(factors * UNIT).astype(np.int32),
        flags=np.array([[name == flag for flag in flags] for name, _ in operations]),
    )


def affine_row(name: str, magnitude: float, height: int, width: int) -> np.ndarray:
    """Make a row of `Ops.affine`: Pillow's map between the centres of pixels."""
    maps = {
        "ShearX": (1, magnitude, 0, 0, 1, 0),  # about the upper left corner, like ShearY
        "ShearY": (1, 0, 0, magnitude, 1, 0),
        "TranslateX": (1, 0, -int(magnitude), 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, -int(magnitude)),
    }
    a, b, c, d, e, f = maps.get(name, (1, 0, 0, 0, 1, 0))
    if name == "Rotate":  # about the centre
        sine, cosine = (round(g(-math.radians(magnitude)), 15) for g in (math.sin, math.cos))
        a, b, d, e = cosine, sine, -sine, cosine
        c = width / 2 - a * width / 2 - b * height / 2
        f = height / 2 - d * width / 2 - e * height / 2
    row = np.array([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2])
    return np.floor(row * FIXED + 0.5).astype(np.int32)


def _table(name, magnitude):
    values = np.arange(256)
    if name == "Invert":
        values = 255 - values
    elif name == "Solarize":
        values = np.where(values < magnitude, values, 255 - values)
    elif name == "Posterize":
        values = values & -(2 ** (8 - int(magnitude)))
    elif name == "Brightness":  # a blend with black
        values = np.clip(np.float32(1 + magnitude) * values.astype(np.float32), 0, 255)
    return values.astype(np.uint8)


def apply_ops(images: Array, ops: Ops, rows: Array, fill: int) -> Array:
    """Apply to every image its own operations, one after the other.

    The result is exactly Pillow's (NEAREST), but Contrast, Color and Sharpness may differ by 1
    where its float32 sum falls on the other side of an integer.

    Args:
      images: uint8 [b, height, width, channels], 1 channel (Color then changes nothing) or 3.
      ops: made for this height and width.
      rows: int32 [b, slots], indices of the operations in `ops`, in order.
      fill: value of pixels outside the image in geometric operations.
    """
    b, height, width, channels = images.shape
    planes = images.transpose(3, 0, 1, 2).reshape(channels, b, height * width)

    def slot(planes, row):
        return _apply(planes, ops, row, fill, (height, width)), None

    planes, _ = jax.lax.scan(slot, planes, rows.T)
    return planes.reshape(channels, b, height, width).transpose(1, 2, 3, 0)


def _apply(planes, ops, row, fill, size):
    height, width = size
    x, y = jnp.arange(width), jnp.arange(height)[:, None]
    a, b, c, d, e, f = (column[:, None, None] for column in jnp.asarray(ops.affine)[row].T)
    x, y = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16  # [b, height, width]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    source = jnp.where(inside, y * width + x, 0).reshape(planes.shape[1:])
    inside = inside.reshape(planes.shape[1:])

    # Channel by channel in a loop, and the tables in a loop before: XLA would fuse it all into one
    # kernel on the CPU, which then makes tables and gathers again for every pixel that needs them.
    def read(plane_and_table):
        plane, table = plane_and_table
        moved = jnp.take_along_axis(plane, source, 1, mode="promise_in_bounds")
        moved = jnp.where(inside, moved, jnp.uint8(fill))
        return jnp.take_along_axis(table, moved.astype(jnp.int32), 1, mode="promise_in_bounds")

    result = jax.lax.map(read, (planes, _tables(planes, ops, row)))
    # The blends are of the unchanged planes, because their rows change nothing above.
    _, color, sharpness = jnp.asarray(ops.factors)[row].T[..., None]  # [b, 1]
    result = jnp.where(color != UNIT, blend(grey(planes), planes, color), result)
    return jnp.where(sharpness != UNIT, blend(_smooth(planes, size), planes, sharpness), result)


def _tables(planes, ops, row):
    """Compute the tables of the operations, uint8 [channels, b, 256]."""
    factor, count = jnp.asarray(ops.factors)[row, :1], planes.shape[2]
    mean = (_sum(grey(planes)) + count // 2) // count  # rounded, [b, 1]
    mean = mean.astype(jnp.int32)
    contrasted = blend(mean, jnp.arange(256), factor)
    table = jnp.where(factor != UNIT, contrasted, jnp.asarray(ops.table)[row])
    stretch, flatten = jnp.asarray(ops.flags)[row].T[..., None]  # [b, 1]

    def of_channel(plane):
        stretched = jnp.where(stretch, _autocontrast_table(plane), table)
        return jnp.where(flatten, _equalize_table(plane), stretched)

    return jax.lax.map(of_channel, planes)


def _sum(plane):
    """Sum pixels, uint32 [b, 1]: int32 would overflow from 2,900 x 2,900 bright pixels."""
    return plane.sum(1, keepdims=True, dtype=jnp.uint32)


def _autocontrast_table(plane):
    low, high = (g(plane, 1, keepdims=True).astype(jnp.int32) for g in (jnp.min, jnp.max))
    values, span = jnp.arange(256), jnp.maximum(high - low, 1)
    stretched = _divide(jnp.clip(values - low, 0, span) * 255, span)
    stretched -= jnp.unpackbits(jnp.asarray(_rounding_losses())[low[:, 0], high[:, 0]], axis=-1)
    return jnp.where(high > low, stretched, values).astype(jnp.uint8)


def _rounding_losses():
    """Find where Pillow's autocontrast loses 1 by rounding: bits, uint8 [low, high, 256 / 8].

    It computes int(value * scale - low * scale) with the rounded scale 255 / (high - low) in
    float64, which can fall just short of an integer.
    """
    values = np.arange(256)
    losses = np.zeros((256, 256, 32), np.uint8)
    for low in range(255):
        span = np.arange(1, 256 - low)[:, None]  # high - low
        scale = 255.0 / span
        short = (values * scale - low * scale).astype(int) < (values - low) * 255 // span
        short &= (values >= low) & (values <= low + span)
        losses[low, low + 1 :] = np.packbits(short, axis=-1)
    return losses


def _equalize_table(plane):
    def count(pixels):
        return jnp.zeros(256, jnp.int32).at[pixels].add(1, mode="promise_in_bounds")

    counts = jax.vmap(count)(plane)
    before = (
        jax.lax.associative_scan(jnp.add, counts, axis=1) - counts
    )  # pixels with smaller values
    largest = plane.max(1, keepdims=True).astype(jnp.int32)
    # All pixels except those of the largest value are spread over 255 steps.
    step = (plane.shape[1] - jnp.take_along_axis(counts, largest, 1)) // 255
    table = jnp.minimum(_divide(step // 2 + before, jnp.maximum(step, 1)), 255)
    return jnp.where(step > 0, table, jnp.arange(256)).astype(jnp.uint8)


def _divide(number, by):
    """Compute number // by of int32 in float32: CPUs have no vector instruction for integers.

    For numbers from 0 on and quotients up to 256. The half keeps the quotient 1 / (2 by) away from
    integers: more than float32's error as long as `by` is below 10,000.
    """
    return ((number.astype(jnp.float32) + 0.5) / by.astype(jnp.float32)).astype(jnp.int32)


def grey(planes: Array) -> Array:
    """Compute the luma of ITU-R 601, int32 [b, height * width]."""
    if len(planes) == 1:
        return planes[0].astype(jnp.int32)
    red, green, blue = planes.astype(jnp.int32)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _smooth(planes, size):
    """Average 3 x 3 pixels, of which the middle one counts 5 times; the rim is unchanged."""
    height, width = size
    reach = width + 1
    padded = jnp.pad(planes, ((0, 0), (0, 0), (reach, reach))).astype(jnp.int16)
    total = 4 * planes.astype(jnp.int16)
    for offset in (y * width + x for y in (-1, 0, 1) for x in (-1, 0, 1)):
        total += padded[..., reach + offset : reach + offset + height * width]
    mean = (2 * total.astype(jnp.uint16) + 13) // 26  # rounded
    y, x = np.divmod(np.arange(height * width), width)
    rim = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    return jnp.where(rim, planes, mean.astype(jnp.uint8))


def blend(one: Array, other: Array, factor: Array) -> Array:
    """Compute one + factor / UNIT * (other - one), clipped to 0 ... 255, rounded down, uint8.

    `one` and `other` are integers from 0 to 255, `factor` is int32 from 0 to 2 * UNIT.
    """
    one, other = one.astype(jnp.int32), other.astype(jnp.int32)
    # The last term, because a factor such as 1.1 can be a little too small once it is rounded.
    total = UNIT * one + factor * (other - one) + UNIT // 8192
    return jnp.clip(total // UNIT, 0, 255).astype(jnp.uint8)


def color_jitter(
    key: Array, images: Array, brightness: float, contrast: float, saturation: float
) -> Array:
    """Change brightness, contrast and saturation as torchvision's ColorJitter, in this order.

    Factors, uniform in [1 - range, 1 + range] of ranges up to 1, multiply the pixels, the distance
    from the image's mean grey, and the distance from each pixel's grey.
    """
    b, height, width, channels = images.shape
    planes = images.transpose(3, 0, 1, 2).reshape(channels, b, height * width)
    keys = jax.random.split(key, 3)

    def scale(key, other, planes, limit):
        limit = round(limit * UNIT)
        factor = UNIT + jax.random.randint(key, (b, 1), -limit, limit + 1)
        return blend(other, planes, factor)

    if brightness:
        planes = scale(keys[0], jnp.zeros_like(planes), planes, brightness)
    if contrast:
        mean = (_sum(grey(planes)) // (height * width)).astype(jnp.int32)
        planes = scale(keys[1], mean, planes, contrast)
    if saturation:
        planes = scale(keys[2], grey(planes), planes, saturation)
    return planes.reshape(channels, b, height, width).transpose(1, 2, 3, 0)
