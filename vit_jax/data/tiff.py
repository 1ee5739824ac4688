"""TIFF files of any number of bands, which Pillow reads for a few modes only.

Pillow parses the tags and decompresses bytes; the samples are assembled here.
"""

import io
import struct
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from vit_jax.runtime.errors import UserError

# Tags (TIFF 6.0).
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_SIZES, _PLANAR = 273, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_SIZES, _FORMAT = 317, 322, 323, 324, 325, 339
_KINDS = {1: "u", 2: "i", 3: "f"}
_MOST_PAGES = 1000
_JPEG = (6, 7)


def is_tiff(content: bytes) -> bool:
    """Whether encoded bytes are those of a TIFF file."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_planar(image: Any, bits: int) -> bool:
    """Whether an image that Pillow has opened stores each band apart, with so many bits."""
    return image.tag_v2.get(_PLANAR) == 2 and set(image.tag_v2.get(_BITS, ())) == {bits}


def read_tiff(content: bytes, max_pixels: int, most_pages: int = _MOST_PAGES) -> np.ndarray:
    """Read all bands of all pages, or of the first ones, [height, width, bands] of any dtype.

    The pages must have the same size; reduced copies ("overviews") are left out. Raises UserError
    if a page is larger than `max_pixels` or of an unsupported kind.
    """
    header = content[: 16 if 43 in content[2:4] else 8]  # BigTIFF's is longer
    tags: Any = TiffImagePlugin.ImageFileDirectory_v2(header)
    file, pages, seen = io.BytesIO(content), [], set()
    while tags.next and tags.next not in seen and len(pages) < most_pages:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        if not tags.get(254, 0) & 1:  # a reduced copy
            pages.append(_read_page(content, tags, max_pixels))
    if len({page.shape[:2] for page in pages}) != 1:
        raise UserError(f"it has {len(pages)} pages of different sizes")
    return np.concatenate(pages, -1)


def _read_page(content, tags, max_pixels):
    """Read the samples of a page, [height, width, samples]."""
    width, height, samples = tags[_WIDTH], tags[_LENGTH], tags.get(_SAMPLES, 1)
    if width * height > max_pixels:
        raise UserError(
            f"it has {width * height:,} pixels: if it is trusted, raise data.max_pixels"
        )
    bits, kinds = set(tags.get(_BITS, (1,))), set(tags.get(_FORMAT, (1,)))
    if len(bits) > 1 or len(kinds) > 1 or not bits <= {8, 16, 32, 64} or not kinds <= {*_KINDS}:
        raise UserError(f"its samples have {sorted(bits)} bits: convert them to 8, 16 or 32 bits")
    order = ">" if content[:2] == b"MM" else "<"
    dtype = np.dtype(f"{order}{_KINDS[kinds.pop()]}{bits.pop() // 8}")
    if tags.get(_COMPRESSION, 1) in _JPEG:
        raise UserError("its compression is JPEG, which is not supported: save it losslessly")
    predictor = tags.get(_PREDICTOR, 1)
    if predictor not in (1, 2) or (predictor == 2 and dtype.kind == "f"):
        raise UserError(f"its predictor {predictor} is not supported: save it without one")
    tiled = _TILES in tags
    size, tall = (tags[_TILE_WIDTH], tags[_TILE_LENGTH]) if tiled else (width, height)
    across, down = -(-width // size), -(-height // tall)
    offsets, sizes = (
        tags[k] for k in ((_TILES, _TILE_SIZES) if tiled else (_STRIPS, _STRIP_SIZES))
    )
    planes = samples if tags.get(_PLANAR, 1) == 2 else 1
    each, count = samples // planes, len(offsets) // planes
    layers = []
    for i in range(planes):
        some = slice(i * count, (i + 1) * count)
        pieces = [content[a : a + n] for a, n in zip(offsets[some], sizes[some], strict=True)]
        row = size * each * dtype.itemsize
        raw = _decompress(tags, pieces, (row, tall, across, down), tiled)
        array = raw.view(dtype).reshape(down * tall, across, size, each)
        if predictor == 2:  # differences along a row of a strip or tile
            array = np.cumsum(array, 2, dtype)
        layers.append(array.reshape(down * tall, across * size, each)[:height, :width])
    return np.concatenate(layers, -1)


def _decompress(tags, pieces, layout, tiled):
    """Decompress strips or tiles to bytes, uint8 [rows, bytes of a row].

    Pillow decodes them as an 8-bit grey image, whose pixels are the bytes.
    """
    row, tall, across, down = layout
    entries = {
        _WIDTH: [row * across],
        _LENGTH: [tall * down],
        _BITS: [8],
        _COMPRESSION: [tags.get(_COMPRESSION, 1)],
        _PHOTOMETRIC: [1],
        _SAMPLES: [1],
    }
    if tiled:
        entries |= {_TILE_WIDTH: [row], _TILE_LENGTH: [tall], _TILES: [], _TILE_SIZES: []}
    else:
        entries |= {
            _STRIPS: [],
            _STRIP_SIZES: [],
            _ROWS_PER_STRIP: [tags.get(_ROWS_PER_STRIP, tall)],
        }
    lengths = list(map(len, pieces))
    starts = [8 + sum(lengths[:i]) for i in range(len(pieces))]
    entries[_TILES if tiled else _STRIPS] = starts
    entries[_TILE_SIZES if tiled else _STRIP_SIZES] = lengths
    data = b"".join(pieces)
    end = 8 + len(data)
    outside = end + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            packed, values = struct.pack("<I", outside + len(values)), values + packed
        directory += struct.pack("<HHI", tag, 4, len(numbers)) + packed
    file = struct.pack("<2sHI", b"II", 42, end) + data + directory + struct.pack("<I", 0) + values
    count = row * tall * across * down  # bytes, which Pillow compares with its limit of pixels
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, count)
    with TiffImagePlugin.TiffImageFile(io.BytesIO(file)) as image:
        return np.asarray(image)
