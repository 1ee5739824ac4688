"""Detect JPEG compression of small images, which limits the accuracy of any model."""

import io
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image, JpegImagePlugin

SMALL = 64  # pixels per side; at this size, the 8x8 blocks of JPEG destroy relevant detail
_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}

# Luminance quantisation of quality 50 (ITU-T T.81, annex K, table K.1), row by row.
_BASE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)


def describe_compression(files: Iterable[bytes]) -> str | None:
    """Describe the JPEG compression of a dataset of small images by a sample of its files.

    States the estimated quality (1 to 100, as in the IJG library) and the chroma subsampling of
    most images; None if most are larger than 64 pixels or not JPEG.
    """
    return describe_inspected([inspect_jpeg(data) for data in files])


def describe_inspected(inspected: Sequence[tuple[int, str] | None]) -> str | None:
    """Describe the results of `inspect_jpeg`, as `describe_compression` does."""
    found = [one for one in inspected if one]
    if len(found) * 2 <= len(inspected):
        return None
    qualities, samplings = zip(*found, strict=True)
    quality, chroma = int(statistics.median(qualities)), statistics.mode(samplings)
    subsampled = f" with {chroma} chroma subsampling" if chroma else ""
    cost = ", which costs accuracy compared with lossless files" if quality < 95 else ""
    return f"the small images are stored as JPEG of about quality {quality}{subsampled}{cost}"


def inspect_jpeg(data: bytes) -> tuple[int, str] | None:
    """Estimate the quality and find the chroma subsampling of a small JPEG; else return None."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            jpeg: Any = image
            if max(jpeg.size) > SMALL:
                return None
            sampling = _SUBSAMPLING.get(JpegImagePlugin.get_sampling(jpeg), "")
            # The mean scale of the luminance table (libjpeg's jcparam.c).
            scale = 100 * sum(jpeg.quantization[0]) / sum(_BASE)
    except Exception:  # Pillow raises many types for damaged files
        return None
    return round((200 - scale) / 2 if scale <= 100 else 5000 / scale), sampling
