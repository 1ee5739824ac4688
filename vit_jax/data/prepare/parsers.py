"""Parse the official archives and check their structure.

An archive is never unpacked to disk: its members are read as streams, within a size limit, and
their names never become paths.
"""

import functools
import gzip
import io
import lzma
import math
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.runtime.errors import UserError

MAX_BYTES = 1 << 30  # per unpacked archive; the largest official one has 184 MB

# Exceptions of the standard library for damaged archives of any format.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error)
DAMAGE += (EOFError, OSError, RuntimeError, ValueError, OverflowError, struct.error)

# {key: {feature: value}}; an image is an array, to be stored as PNG, or encoded bytes.
Examples = dict[int | str, dict[str, Any]]

EUROSAT_CLASSES = (
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential"
    " River SeaLake"
).split()


def parse_cifar10(source: Path) -> dict[str, Examples]:
    """Read the "binary version": records of a label byte and a 3x32x32 image.

    https://www.cs.toronto.edu/~kriz/cifar.html
    """
    train, test = [f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]
    files = _read_named(source, [*train, *test], "the binary version of CIFAR-10")
    size = 1 + 3 * 32 * 32
    for name, content in files.items():
        if not content or len(content) % size:
            raise UserError(
                f"{source}: {name} has {len(content):,} bytes, not a multiple of"
                f" the record size {size:,}"
            )
        _check_labels(content[::size], f"{source}: {name}")
    splits = {}
    for split, names in (("train", train), ("test", test)):
        content = b"".join(files[name] for name in names)
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # [n, 32, 32, 3]
        splits[split] = {
            index: {"id": f"{split}_{index:05d}", "image": image, "label": int(label)}
            for index, (image, label) in enumerate(zip(images, records[:, 0], strict=True))
        }
    return splits


def parse_mnist(source: Path) -> dict[str, Examples]:
    """Read the four gzipped idx files (http://yann.lecun.com/exdb/mnist/)."""
    names = {
        "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
    }
    what = "a folder or archive with the four MNIST files"
    files = _read_named(source, sum(names.values(), ()), what)
    splits = {}
    for split, (images_name, labels_name) in names.items():
        images = _read_idx(files[images_name], 3, f"{source}: {images_name}")
        labels = _read_idx(files[labels_name], 1, f"{source}: {labels_name}")
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(labels):
            raise UserError(
                f"{source}: {images_name} has the shape {images.shape} and {labels_name} the"
                f" shape {labels.shape}; MNIST has (n, 28, 28) and (n,)"
            )
        _check_labels(labels, f"{source}: {labels_name}")
        splits[split] = {
            index: {"image": image, "label": int(label)}
            for index, (image, label) in enumerate(zip(images[..., None], labels, strict=True))
        }
    return splits


def parse_eurosat(source: Path) -> dict[str, Examples]:
    """Read <class>/<class>_<number>.jpg, 64x64 RGB (https://github.com/phelber/eurosat)."""
    pattern = re.compile(rf"(?:.*/)?({'|'.join(EUROSAT_CLASSES)})/(\1_[0-9]+\.jpg)")
    examples: Examples = {}
    for match, content in _read_members(source, pattern):
        label, filename = match.groups()
        _check_eurosat_image(content, f"{source}: {match[0]}")
        examples[f"{label}_{filename}"] = {"image": content, "label": label, "filename": filename}
    if missing := set(EUROSAT_CLASSES) - {example["label"] for example in examples.values()}:
        raise UserError(
            f"{source} is not EuroSAT (RGB): it has no <class>/<class>_<number>.jpg for"
            f" {', '.join(sorted(missing))}"
        )
    return {"train": examples}


def _check_labels(labels, where):
    if max(labels) > 9:
        raise UserError(f"{where} has the label {max(labels)}; the dataset has labels 0 to 9")


def _read_idx(packed, num_dims, where):
    """Unpack a gzipped idx file: magic number, big-endian dimensions, bytes."""
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(MAX_BYTES)
    except DAMAGE as error:
        raise UserError(f"{where} cannot be read and may be truncated: {error}") from error
    start = 4 + 4 * num_dims
    if len(content) < start or content[:4] != bytes([0, 0, 8, num_dims]):
        raise UserError(f"{where} is not an idx file of bytes with {num_dims} dimensions")
    shape = struct.unpack(f">{num_dims}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise UserError(f"{where} has {len(content):,} bytes, but its header declares {expected:,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _check_eurosat_image(content, where):
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            if image.size != (64, 64) or image.mode != "RGB":
                raise UserError(f"{where} is {image.size} {image.mode}, not (64, 64) RGB")
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} is not a readable JPEG: {error}") from error


def _read_named(source, names, what):
    """Read the files called `names`, in any folder of the source."""
    pattern = re.compile(rf"(?:.*/)?({'|'.join(map(re.escape, names))})")
    found = {match[1]: content for match, content in _read_members(source, pattern)}
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{source} is not {what}: it lacks {', '.join(missing)}")
    return found


def _read_members(source: Path, pattern: re.Pattern) -> Iterator[tuple[re.Match, bytes]]:
    """Yield the match of the name and the content of the regular files in a folder, tar or zip.

    Raises `UserError` if `source` is none of these, is damaged or larger than `MAX_BYTES`, or if
    two matches have the same groups.
    """
    total, seen = 0, set()
    try:
        for name, size, read in _members(source):
            total += size
            if total > MAX_BYTES:
                raise UserError(f"{source} is too large: it contains more than {MAX_BYTES:,} bytes")
            if match := pattern.fullmatch(name):
                if match.groups() in seen:
                    raise UserError(f"{source} contains {match.groups()[-1]} twice")
                seen.add(match.groups())
                content = read()
                if len(content) != size:
                    raise EOFError(f"{name} has {len(content):,} of {size:,} bytes")
                yield match, content
    except DAMAGE as error:
        raise UserError(f"{source} cannot be read and may be truncated: {error}") from error
    except MemoryError as error:
        what = "does not fit into memory, or is damaged and declares a larger size"
        raise UserError(f"{source} {what}") from error


def _members(source):
    """Yield name, size and reader of each regular file; links are not followed."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(source).as_posix(), path.stat().st_size, path.read_bytes
    elif tarfile.is_tarfile(source):
        with tarfile.open(source) as tar:  # of any compression
            for info in tar:
                if info.isreg():
                    file: Any = tar.extractfile(info)
                    yield info.name, info.size, file.read
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                if info.compress_size > source.stat().st_size:  # zipfile would allocate that much
                    raise zipfile.BadZipFile(f"{info.filename} is larger than the archive")
                yield info.filename, info.file_size, functools.partial(archive.read, info)
    else:
        raise UserError(
            f"{source} is not a readable archive: it is not a tar or zip file, or is truncated"
        )
