"""A disk cache of arrays that are slow to make: decoded images and labels."""

import contextlib
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable

import numpy as np

from vit_jax.runtime import processes
from vit_jax.runtime.errors import single_line
from vit_jax.runtime.files import cache_folder

SLOW_SECONDS = 1.0  # arrays that are made faster are not cached
LARGEST_BYTES = 2**30  # of one file
FOLDER_BYTES = 4 * 2**30  # of all files; the least recently used are removed first
SHARE_OF_FREE = 0.1  # of the disk's free space, for one file: checkpoints need it more


def identity(*what) -> str:
    """Hash numbers, strings, tuples and lists to 64 hexadecimal digits."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def state_of(paths: Iterable[str | os.PathLike]) -> str:
    """Hash the names, sizes and dates of files.

    Two files that swapped their names differ in the date of the last change of their inode.
    """
    stats = [(str(path), os.stat(path)) for path in paths]
    return identity([(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats])


def cached(name: str | None, make: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Read the arrays that `make` returns from the cache, or make and cache them.

    `name` is an `identity` of what they are made from, computed before it is read; None disables
    the cache. Damaged files are replaced. A cache that cannot be written is ignored.
    """
    base = cache_folder()
    if name is None or base is None:
        return make()
    path = base / "images" / f"{name}.npz"
    try:
        with path.open("rb") as opened, np.load(opened) as file:  # zip checks a CRC-32
            arrays = tuple(file.values())
        os.utime(path)  # the most recently used
        return arrays
    except Exception:  # mostly a missing file; damage raises many types
        pass
    started = time.monotonic()
    arrays = make()
    if processes.is_first() and time.monotonic() - started > SLOW_SECONDS:
        with contextlib.suppress(OSError):
            _write(path, arrays)
    return arrays


def _write(path, arrays):
    folder, size = path.parent, sum(array.nbytes for array in arrays)
    folder.mkdir(parents=True, exist_ok=True)
    if size > min(LARGEST_BYTES, SHARE_OF_FREE * shutil.disk_usage(folder).free):
        return
    descriptor, part = tempfile.mkstemp(".part", dir=folder)
    try:
        with open(descriptor, "wb") as file:  # not synced: the CRC detects what is lost
            np.savez(file, *arrays)
        os.replace(part, path)
    except BaseException:  # Ctrl-C too
        pathlib.Path(part).unlink(missing_ok=True)
        raise
    _log_folder(folder)
    total = 0
    for old in sorted(folder.iterdir(), key=lambda file: -file.stat().st_mtime_ns):
        total += old.stat().st_size
        if total > FOLDER_BYTES:
            old.unlink()


@functools.cache  # once is enough
def _log_folder(folder):
    text = f"decoded images are cached in {folder} for the next start (data.cache_decoded)"
    print(single_line(text), flush=True)
