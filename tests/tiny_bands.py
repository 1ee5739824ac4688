"""Small images of many bands, in files that tests write."""

import struct
import zlib

import numpy as np


def scene(seed, bands=13, side=8, dtype=np.uint16):
    """Make an image [side, side, bands], whose bands differ in range."""
    rng = np.random.default_rng(seed)
    return (rng.random((side, side, bands)) * np.linspace(900, 4000, bands)).astype(dtype)


def tiff(array, order="<", planar=False, deflate=False, predictor=1, rows=3, tile=0, tags=()):
    """Encode [h, w, bands] as a TIFF file of strips of `rows` rows, or of square tiles.

    `tags` are further ones, (number, value).
    """
    height, width, bands = array.shape
    array = array.astype(array.dtype.newbyteorder(order))
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    pieces = []
    for one in np.split(array, bands, -1) if planar else [array]:
        if tile:
            pad = [(0, -height % tile), (0, -width % tile), (0, 0)]
            full = np.pad(one, pad)
            blocks = [
                full[i : i + tile, j : j + tile]
                for i in range(0, height, tile)
                for j in range(0, width, tile)
            ]
        else:
            blocks = [one[i : i + rows] for i in range(0, height, rows)]
        for block in blocks:
            if predictor == 2:
                block = np.diff(block, axis=1, prepend=block[:, :1] * 0).astype(array.dtype)
            content = np.ascontiguousarray(block).tobytes()
            pieces.append(zlib.compress(content) if deflate else content)
    sizes = [len(piece) for piece in pieces]
    starts = [8 + sum(sizes[:i]) for i in range(len(sizes))]
    entries = {256: [width], 257: [height], 258: [8 * array.itemsize] * bands}
    entries |= {259: [8 if deflate else 1], 262: [1], 277: [bands], 284: [2 if planar else 1]}
    entries |= {317: [predictor], 339: [kind] * bands} | {tag: [value] for tag, value in tags}
    if tile:
        entries |= {322: [tile], 323: [tile], 324: starts, 325: sizes}
    else:
        entries |= {273: starts, 278: [rows], 279: sizes}
    end = 8 + sum(sizes)
    values, directory = b"", struct.pack(f"{order}H", len(entries))
    outside = end + 2 + 12 * len(entries) + 4
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            position = struct.pack(f"{order}I", outside + len(values))
            packed, values = position, values + packed
        directory += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + packed
    magic = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, end)
    return magic + b"".join(pieces) + directory + struct.pack(f"{order}I", 0) + values


def save_scenes(root, classes=("field", "lake"), count=12):
    """Write a class folder of TIFF files each; band 5 of a class is brighter."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            array = scene(1000 * label + i)
            array[..., 4] += 3000 * label
            (root / name / f"{i}.tif").write_bytes(tiff(array))
    return root
