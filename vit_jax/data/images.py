"""Decoding, conversion to 8-bit RGB or grey, and resizing of single images."""

import contextlib
import importlib.util
import io
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL
from PIL import ExifTags, Image, features

from vit_jax.config import resized_side
from vit_jax.data import bands, decoded, tiff
from vit_jax.data.resizing import Resize, make_resize
from vit_jax.runtime.errors import UserError

# {format that Pillow may detect, whatever the suffix: its suffixes}; none that it opens with other
# programs.
_KINDS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
_ARRAYS = (".npy",)
if not features.check("avif"):
    del _KINDS["AVIF"]
if not features.check("jpg_2000"):
    del _KINDS["JPEG2000"]
if importlib.util.find_spec("pillow_heif") is None:
    del _KINDS["HEIF"]
else:
    import pillow_heif  # pyright: ignore[reportMissingImports]

    pillow_heif.register_heif_opener()
FORMATS = tuple(_KINDS)
IMAGE_SUFFIXES = tuple(suffix for suffixes in _KINDS.values() for suffix in suffixes) + _ARRAYS
PIXELS = 3  # increase when `to_array` changes its result: invalidates cached images

FULL_RANGE = (0.0, 65535.0)
WHITE = (255.0,)
FIT = Resize()
_MOST_PIXELS = 100_000  # of an image, for percentiles
_DARKEST = 32  # highest level, from which on floats may be those of 8 bits
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_PIXELS = 178_956_970  # Pillow's own limit


def stored_size(config) -> int:
    """Compute the side in pixels at which images of `config.data` are stored in host memory."""
    own = config.image_size if config.resize_mode == "fit" else resized_side(config)
    return config.stored_size or own


def options_of(config) -> dict[str, Any]:
    """Collect the arguments of `to_array` and `read_image` from the settings `config.data`."""
    keys = ("channels", "background", "level_range", "scaled_decoding")
    options = {"size": stored_size(config), "resize": make_resize(config)}
    return options | {key: config[key] for key in keys}


def identity_of(config, *what) -> str:
    """Hash what determines decoded images: the code, the settings `config.data`, and `what`."""
    options = sorted(options_of(config).items())
    return decoded.identity(PIXELS, PIL.__version__, options, *what)


def to_array(
    image: Image.Image | np.ndarray,
    size: int,
    channels: int,
    background: tuple[float, ...] = WHITE,
    level_range: tuple[float, ...] = (),
    resize: Resize = FIT,
    scaled_decoding: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Orient, convert and resize to uint8 [size, size, channels].

    Args:
      image: of any mode; or an array [height, width, channels], of which each channel is scaled and
        resized on its own.
      size: side of the result in pixels.
      channels: 1 or 3, of an array any number.
      background: grey level or RGB behind transparent pixels.
      level_range: levels that become 0 and 255, of images with more than 8 bits; (): `FULL_RANGE`.
      resize: rule of resizing.
      scaled_decoding: decode a JPEG file, not loaded yet, at the smallest of the scales 1, 1/2, 1/4
        and 1/8 at which both sides have at least `size` pixels.
      max_pixels: most pixels of an image; more are an error.

    Raises:
      UserError: without `level_range`, the levels end below a sixteenth of `FULL_RANGE`.
    """
    if isinstance(image, np.ndarray):
        return bands.to_array(bands.arrange(image, channels), size, level_range, resize)
    if scaled_decoding:
        image.draft(None, (size, size))
    deep = _read_deep_colours(image, max_pixels)
    if deep is not None:
        image.paste(Image.fromarray(scale_levels(deep, level_range)))
    image = orient(image)
    if _is_deep_grey(image):
        levels = np.asarray(image)
        clear = image.info.get("transparency")
        image = Image.fromarray(scale_levels(levels, level_range))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    if has_alpha(image):
        image = _flatten(image, background)
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:  # avoids a copy
        image = image.convert(mode)
    if image.size != (size, size):
        image = resize(image, size)
    return np.asarray(image).reshape(size, size, channels)


def orient(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation, which the result keeps: not to be called twice.

    `ImageOps.exif_transpose` removes it, and fails if other tags cannot be written.
    """
    image.load()  # which turns a TIFF file, and removes its tag
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data, of many types
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def read_image(
    file: Any,
    size: int,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    where: Any = "",
    **options: Any,
) -> np.ndarray:
    """Read a path or binary file with `to_array` and its arguments.

    Raises:
      UserError: it cannot be read; the message names `where`, by default the path.
    """
    try:
        if bands.uses_bands(channels, file):
            array = read_bands(file, channels, max_pixels)
            return to_array(array, size, channels, **options)
        with open_image(file, max_pixels) as image:
            return to_array(image, size, channels, max_pixels=max_pixels, **options)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types for a broken file
        hint = ""
        if isinstance(error, Image.DecompressionBombError):
            hint = "; if the file is trusted, raise data.max_pixels"
        raise UserError(f"{where or file} cannot be read as an image ({error}{hint})") from None


def read_bands(file: Any, channels: int, max_pixels: int) -> np.ndarray:
    """Read a TIFF file with all its pages, a .npy file or another image: [h, w, channels].

    `file` is a path, a binary file or its contents. An array has the channels last, or else first.
    Raises UserError, or many other errors for broken files.
    """
    if isinstance(file, bytes):
        content = file
    else:
        content = file.read() if hasattr(file, "read") else pathlib.Path(file).read_bytes()
    if tiff.is_tiff(content):
        return bands.arrange(tiff.read_tiff(content, max_pixels), channels)
    if content[:6] == bands.NPY:
        return bands.arrange(np.load(io.BytesIO(content), allow_pickle=False), channels)
    with open_image(io.BytesIO(content), max_pixels) as image:
        levels = read_levels(image, max_pixels)
        return bands.arrange(np.asarray(image) if levels is None else levels, channels)


def open_image(file: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a path or binary file of a known format and of at most `max_pixels` pixels."""
    # Pillow's limit is one of the process, for all that reads images there: it is never lowered.
    if Image.MAX_IMAGE_PIXELS is not None:  # twice as many are an error
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, -(-max_pixels // 2))
    image = Image.open(file, formats=FORMATS)
    if (pixels := image.width * image.height) > max_pixels:
        image.close()
        raise Image.DecompressionBombError(f"{pixels} pixels exceed the limit of {max_pixels}")
    return image


def is_image(path: pathlib.Path) -> bool:
    """Whether a file has the suffix of an image; without a suffix, whether it is one."""
    if path.suffix:
        return path.suffix.lower() in IMAGE_SUFFIXES
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # of many types
        return False


def has_alpha(image: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def to_rgba(image: Image.Image) -> Image.Image:
    """Convert an image with transparency to RGBA."""
    if image.mode == "La":  # the only mode that Pillow does not convert directly
        image = image.convert("LA")
    return image.convert("RGBA")


def _flatten(image, background):
    """Composite an image with transparency on a background."""
    colour = tuple(round(level) for level in background) * (4 - len(background))
    below = Image.new("RGBA", image.size, (*colour[:3], 255))
    return Image.alpha_composite(below, to_rgba(image)).convert("RGB")


def describe_transparency(files: Iterable[bytes], background: tuple[float, ...]) -> str | None:
    """Describe how many images of a sample of encoded files are transparent; None if none is."""
    count = total = 0
    for data in files:
        total += 1
        with contextlib.suppress(Exception), open_image(io.BytesIO(data)) as image:
            if has_alpha(image):
                count += np.asarray(to_rgba(image))[..., 3].min() < 255
    if not count:
        return None
    levels = ",".join(f"{level:g}" for level in background)
    return (
        f"{count} of {total} sampled training images are transparent: they are composited on "
        f"data.background={levels}; if their subjects are as bright, choose another"
    )


# Images of more than 8 bits per channel


def _is_deep_grey(image):
    return image.mode.startswith("I") or image.mode == "F"


def _read_deep_colours(image, max_pixels):
    """Read a colour image of 16 bits per channel, which Pillow cuts to the upper 8: [h, w, c].

    It is turned by its orientation if Pillow turns it when it loads it, as a TIFF file. Returns
    None for other images. Raises UserError if the lower 8 bits matter but are not readable.
    """
    stream: Any = getattr(image, "fp", None)
    if image.mode not in ("RGB", "RGBA") or not getattr(image, "tile", None) or not stream:
        return None
    if image.format == "TIFF" and tiff.is_planar(image, 16):
        stream.seek(0)
        return _turn(tiff.read_tiff(stream.read(), max_pixels, most_pages=1), image)
    arguments = image.tile[0].args
    raw, *more = arguments if isinstance(arguments, tuple) else (arguments,)
    is_deep_ppm = image.tile[0].codec_name == "ppm" and more[0] > 255  # its largest level
    if not is_deep_ppm and not (isinstance(raw, str) and ";16" in raw):
        return None
    stream.seek(0)
    content = stream.read()
    upper: Any = open_image(io.BytesIO(content), max_pixels)
    upper = np.asarray(upper, np.uint16)
    # In the other byte order, Pillow reads the lower 8 bits.
    kind, _, order = raw.partition(";16")
    if kind in ("RGB", "RGBA") and image.format in ("PNG", "TIFF"):
        lower: Any = open_image(io.BytesIO(content), max_pixels)
        swapped = f"{kind};16{'L' if order == 'B' else 'B'}"
        given = (swapped, *more) if isinstance(arguments, tuple) else swapped
        lower.tile = [tile._replace(args=given) for tile in lower.tile]
        return upper * 256 + np.asarray(lower, np.uint16)
    if upper[..., :3].max() < 16:
        raise UserError("it has 16 bits per channel, of which the upper 8 are dark: convert it")
    return upper * 257


def _turn(array, image):
    """Turn an array [h, w, c] by the EXIF orientation of an image."""
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation not in _TURNS:
        return array
    places = np.arange(array[..., 0].size, dtype=np.int32).reshape(array.shape[:2])
    turned = np.asarray(Image.fromarray(places).transpose(_TURNS[orientation]))
    return array.reshape(-1, array.shape[-1])[turned]


def read_levels(image: Image.Image, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """Read the levels of an image of more than 8 bits per channel; None for other images."""
    return np.asarray(image) if _is_deep_grey(image) else _read_deep_colours(image, max_pixels)


def sample_levels(file: Any, config) -> np.ndarray | None:
    """Read the levels of an image of `config.data` beyond 8 bits; None for 8 bits."""
    if bands.uses_bands(config.channels, file):
        levels = read_bands(file, config.channels, config.max_pixels)
        return None if levels.dtype == np.uint8 else levels
    with open_image(file, config.max_pixels) as image:
        return read_levels(image, config.max_pixels)


def scale_levels(levels: np.ndarray, level_range: tuple[float, ...]) -> np.ndarray:
    """Scale levels to uint8, as `to_array` does; raises UserError."""
    low, high = level_range or FULL_RANGE
    top = levels[..., :3].max() if levels.ndim == 3 else levels.max()
    if not level_range and 0 < top < 4096:
        raise UserError(
            f"it has more than 8 bits per channel, of which the levels end at {top:g} instead of "
            "65535: convert it to 8 bits, or set data.level_range of its dataset"
        )
    finite = np.nan_to_num(levels.astype(np.float64), nan=low).clip(low, high)
    scaled = ((finite - low) * 255 / (high - low)).astype(np.uint8)
    if levels.ndim == 3 and levels.shape[-1] == 4 and levels.dtype == np.uint16:
        scaled[..., 3] = levels[..., 3] // 256  # alpha
    return scaled


def decide_levels(samples: Iterable[np.ndarray], channels: int) -> tuple[float, ...]:
    """Choose the level range of a dataset by `decide_range`, of bands by `bands.decide_ranges`."""
    return (bands.decide_ranges if bands.uses_bands(channels) else decide_range)(samples)


def decide_range(samples: Iterable[np.ndarray]) -> tuple[float, ...]:
    """Choose the level range of a dataset by the levels of some of its images; () without any.

    Integers: up to the next power of two, from a quarter of 16 bits on up to 65535; with negative
    levels, from the lowest to the highest. Floats: 0 to 1, -1 to 1 or 0 to 255; otherwise as
    `bands.decide_ranges`, which a few invalid or outlying pixels do not change.
    """
    picked, lows, highs, is_float = [], [], [], False
    for levels in samples:
        is_float |= levels.dtype.kind == "f"
        levels = levels[..., :3] if levels.ndim == 3 else levels  # without alpha
        finite = levels[np.isfinite(levels)]
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
            picked.append(finite[:: -(-finite.size // _MOST_PIXELS), None])
    if not lows:
        return ()
    low, high = min(lows), max(highs)
    if is_float:
        for usual in ((0.0, 1.0), (-1.0, 1.0)):
            if usual[0] <= low and high <= usual[1]:
                return usual
        if low >= 0 and _DARKEST <= high <= 255:  # below: metres or reflectances
            return 0.0, 255.0
        return bands.decide_ranges(picked)
    if low < 0:
        return low, max(high, low + 1)
    if not high:
        return FULL_RANGE
    bits = int(high).bit_length()
    return 0.0, float(2 ** (16 if 14 < bits < 16 else bits) - 1)
