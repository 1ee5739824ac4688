"""Files that a kill leaves whole, that tell when they are damaged, and errors that name them."""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

SUMS = "SHA256SUMS"  # in the format of `sha256sum`, which can check them too

# What a disk says that is full, over its quota, read-only, closed to us or failing.
_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.EMFILE, errno.ENFILE),
)


def disk_problem(error: BaseException) -> str | None:
    """Returns what the disk complained of, as "No space left on device"; None if it did not."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return os.strerror(error.errno)
    # TensorStore's errors are texts: "... No space left on device [os_error_code='28']"
    match = re.search(r"os_error_code='(\d+)'", str(error))
    if match and int(match[1]) in _DISK:
        return os.strerror(int(match[1]))
    return None


@contextlib.contextmanager
def naming(file) -> Iterator[None]:
    """Lets an OSError from within name this file (a path), where it names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def cache_folder() -> pathlib.Path | None:
    """Returns the folder of what the next start need not make again; None for users without home.

    It is in the user's cache folder, and may be removed at any time.
    """
    try:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return base / "vit_jax"


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a kill leaves either the old or the new text."""
    part = path.with_name(path.name + ".part")
    try:
        with naming(path), part.open("wb", buffering=0) as file:
            append(file, text.encode())
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)  # it takes room that may be short
        raise
    part.replace(path)


def append(file, content: bytes) -> None:
    """Writes all of the content to an unbuffered file; a full disk takes less at first."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def warn(text: str) -> None:
    """Prints a warning to stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def write_sums(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Writes SHA256SUMS of files in a folder.

    Args:
      folder: of SHA256SUMS.
      names: of the files, relative to it; those that do not exist are left out, and what
        SHA256SUMS says of others is kept.
    """
    sums = read_sums(folder) or {}
    for name in names:
        sums.pop(name, None)
        if digest := _digest(folder / name):
            sums[name] = digest
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    write_atomically(folder / SUMS, "".join(lines))


def read_sums(folder: pathlib.Path) -> dict[str, str] | None:
    """Returns {name: digest} of SHA256SUMS, {} without one; None if it is damaged itself."""
    try:
        lines = (folder / SUMS).read_text().split("\n")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        return None
    found = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines[:-1]]
    if not found or lines[-1] or not all(found) or not "".join(lines).isprintable():
        return None
    return {match[2]: match[1] for match in found if match}


def find_damage(folder: pathlib.Path) -> dict[pathlib.Path, str]:
    """Returns the files that are not what SHA256SUMS in their folder says, and what they are.

    As in {path: "does not match SHA256SUMS"}. Without SHA256SUMS, nothing is known and {} returned.
    """
    sums = read_sums(folder)
    if sums is None:
        return {folder / SUMS: "is damaged"}
    found = {folder / name: _digest(folder / name) for name in sums}
    return {
        path: f"does not match {SUMS}" if digest else f"is missing, though {SUMS} lists it"
        for (path, digest), expected in zip(found.items(), sums.values(), strict=True)
        if digest != expected
    }


def first_damage(folder: pathlib.Path) -> str | None:
    """Returns the first of what `find_damage` finds, for people."""
    return next((f"{path} {what}" for path, what in find_damage(folder).items()), None)


def _digest(path: pathlib.Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
