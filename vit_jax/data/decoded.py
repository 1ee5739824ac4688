"""Disk cache of decoded images and labels."""

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
from vit_jax.runtime.files import apply_umask, cache_folder

SLOW_SECONDS = 1.0  # arrays that take less time are not cached
LARGEST_BYTES = 2**31  # per file, as data.device_resident_max_gib
FOLDER_BYTES = 4 * 2**30  # in total; the least recently used are removed first
FREE_FRACTION = 0.1  # of the free disk space, per file: leaves room for checkpoints


def identity(*what) -> str:
    """Hash numbers, strings, tuples and lists to 64 hexadecimal digits."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def state_of(paths: Iterable[str | os.PathLike]) -> str:
    """Hash the names, sizes and dates of files.

    The change time of the inode reveals files that swapped their names.
    """
    stats = [(str(path), os.stat(path)) for path in paths]
    return identity([(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats])


def cached(name: str | None, make: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Read arrays from the cache, or compute them with `make` and cache them.

    `name` is an `identity` of their sources, computed before those are read; None disables the
    cache. Damaged files are replaced. A cache that cannot be written is ignored.
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
    if size > min(LARGEST_BYTES, FREE_FRACTION * shutil.disk_usage(folder).free):
        return
    descriptor, part = tempfile.mkstemp(".part", dir=folder)
    try:
        with open(descriptor, "wb") as file:  # not synced: the CRC detects what is lost
            np.savez(file, *arrays)
        apply_umask(pathlib.Path(part))
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


@functools.cache  # once per process
def _log_folder(folder):
    text = f"decoded images are cached in {folder} for the next start (data.cache_decoded)"
    print(single_line(text), flush=True)
