"""Arrays that take long to make, decoded images above all, kept on disk for the next start.

A file holds the arrays as they lie in memory, then a CRC-32 of them and of the file's own name: so
it is read without a copy, and every damaged byte is noticed.
"""

import contextlib
import functools
import hashlib
import math
import os
import pathlib
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vit_jax.runtime import processes
from vit_jax.runtime.errors import one_line
from vit_jax.runtime.files import cache_folder

SLOW_SECONDS = 1.0  # what is made faster is not worth a file
LARGEST_BYTES = 2**30  # of one file
FOLDER_BYTES = 4 * 2**30  # of all; the least recently used go first
SHARE_OF_FREE = 0.1  # of the disk's free room, that a file may take: checkpoints need it more

_SUFFIXES = (".arrays", ".part")  # the second is what a kill left


def identity(*what) -> str:
    """Returns 64 hexadecimal digits that stand for these values (numbers, texts, tuples, lists)."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def state_of(paths: Iterable[str | os.PathLike]) -> str | None:
    """Returns an `identity` of names, sizes and dates of files; None if they cannot be seen.

    The date of the last change of a file's name or contents tells where two swapped their names.
    """
    try:
        stats = [(str(path), os.stat(path)) for path in paths]
    except OSError:
        return None
    return identity([(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats])


def kept(
    name: str | None,
    shapes: Sequence[tuple[tuple[int, ...], type]],
    make: Callable[[], tuple[np.ndarray, ...]],
    fits: Callable[..., bool] = lambda *arrays: True,
) -> tuple[np.ndarray, ...]:
    """Returns the arrays that `make` returns, read from disk if an earlier start kept them.

    What is damaged, or does not fit, is made anew and replaced. A disk that is full, or closed to
    us, changes nothing else.

    Args:
      name: an `identity` of what they are made from, taken before it is read; None: keep nothing.
      shapes: (shape, dtype) of the arrays.
      make: makes them.
      fits: whether arrays that were read can be right.
    """
    base = cache_folder()
    if name is None or base is None:
        return make()
    path = base / "images" / f"{name}{_SUFFIXES[0]}"
    found = _read(path, shapes)
    if found is not None and fits(*found):
        with contextlib.suppress(OSError):
            os.utime(path)  # the most recently used
        return found
    began = time.monotonic()
    arrays = make()
    worth = time.monotonic() - began > SLOW_SECONDS or os.path.exists(path)
    if worth and processes.is_first():
        with contextlib.suppress(OSError):
            _write(path, arrays)
            _bound(path.parent)
    return arrays


def _checksum(path, arrays):
    start = zlib.crc32(path.name.encode())
    return functools.reduce(lambda sum_, array: zlib.crc32(array, sum_), arrays, start)


def _read(path, shapes):
    num_bytes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes]
    try:
        if path.stat().st_size != sum(num_bytes) + 4:
            return None
        arrays = tuple(np.empty(shape, dtype) for shape, dtype in shapes)
        with path.open("rb") as file:
            for array in arrays:
                file.readinto(array.data.cast("B"))
            expected = file.read()
    except OSError:  # most often there is none
        return None
    return arrays if expected == _checksum(path, arrays).to_bytes(4, "little") else None


def _write(path, arrays):
    size = sum(array.nbytes for array in arrays)
    if size > LARGEST_BYTES:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if size > SHARE_OF_FREE * shutil.disk_usage(path.parent).free:
        return
    descriptor, part = tempfile.mkstemp(_SUFFIXES[1], dir=path.parent)
    try:
        # Not synced to the disk, which takes long: the checksum tells what a power cut lost.
        with open(descriptor, "wb") as file:
            for array in arrays:
                file.write(array)
            file.write(_checksum(path, arrays).to_bytes(4, "little"))
        os.replace(part, path)
    except BaseException:  # Ctrl-C too
        pathlib.Path(part).unlink(missing_ok=True)
        raise
    _tell(path.parent)


@functools.cache  # once is enough
def _tell(folder):
    text = f"what was decoded is kept in {folder} for the next start (data.keep_decoded)"
    print(one_line(text), flush=True)


def _bound(folder):
    """Removes the least recently used files of what is more than FOLDER_BYTES."""
    files = [path for path in folder.iterdir() if path.suffix in _SUFFIXES]
    stats = sorted(((path.stat(), path) for path in files), key=lambda pair: -pair[0].st_mtime_ns)
    total = 0
    for stat, path in stats:
        total += stat.st_size
        if total > FOLDER_BYTES:
            path.unlink()
