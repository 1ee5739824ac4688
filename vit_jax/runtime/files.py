"""Files: atomic writes, SHA-256 sums, locks, and OSErrors that name the file."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

from vit_jax.runtime.errors import UserError, single_line

SUMS = "SHA256SUMS"  # in the format of `sha256sum`, which can check it too

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {single_line(text)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def naming_file(file) -> Iterator[None]:
    """Add this path to an OSError that names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def cache_folder() -> pathlib.Path | None:
    """Get the project's folder in the user's cache; None for users without a home."""
    try:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return base / "vit_jax"


def expand(path: str | os.PathLike) -> pathlib.Path:
    """Replace a leading ~ or ~USER by that home; raises UserError for an unknown user."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{os.fspath(path)} begins with an unknown user: give the full path"
        ) from None


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Write a file so that a kill leaves either the old or the new text."""
    part = path.with_name(path.name + ".part")
    try:
        with naming_file(path), part.open("wb", buffering=0) as file:
            append(file, text.encode())
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)  # the disk may be full
        raise
    part.replace(path)


def apply_umask(path: pathlib.Path) -> None:
    """Give a file of mode 0600, as temporary files have, the permissions that the umask allows."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def empty_folder(folder: pathlib.Path) -> None:
    """Remove the files in a folder, which need not exist."""
    for path in folder.glob("*"):
        path.unlink()


def append(file, content: bytes) -> None:
    """Write all of the content to an unbuffered file; one write to a full disk may be partial."""
    while content:
        content = content[file.write(content) :]


def read_json(path: pathlib.Path) -> dict:
    """Read a JSON object from a file; {} if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


@contextlib.contextmanager
def lock(path: pathlib.Path, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, which the kernel releases however the process ends.

    If the file system supports no locks, print a warning and continue without one.

    Args:
      path: of the lock file, which stays.
      busy: message if another process holds the lock.
      wait: print that message and wait, instead of raising it as a UserError.
    """
    import filelock  # costs 60 ms

    file_lock = filelock.FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        try:
            file_lock.acquire()
        except filelock.Timeout:
            if not wait:
                raise UserError(busy) from None
            print(busy, flush=True)
            file_lock.acquire(timeout=-1)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warn(f"{path} cannot be locked ({error.strerror}): do not start the same command twice")
    try:
        yield
    finally:
        file_lock.release()


def sha256(path: pathlib.Path) -> str:
    """Compute the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Write SHA256SUMS of files in a folder, given by their names relative to it."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(names)]
    write_atomically(folder / SUMS, "".join(lines))


def find_damage(folder: pathlib.Path) -> dict[pathlib.Path, str]:
    """Find the files that differ from SHA256SUMS, as {path: problem}; {} without SHA256SUMS."""
    try:
        text = (folder / SUMS).read_text(errors="replace")
    except FileNotFoundError:
        return {}
    found = {}
    for line in text.removesuffix("\n").split("\n"):
        match = re.fullmatch(r"([0-9a-f]{64})  ([!-~]+)", line)
        if not match:
            return {folder / SUMS: "is damaged"}
        path = folder / match[2]
        if not path.is_file():
            found[path] = f"is missing, though {SUMS} lists it"
        elif sha256(path) != match[1]:
            found[path] = f"does not match {SUMS}"
    return found


def first_damage(folder: pathlib.Path) -> str | None:
    """Describe the first file of `find_damage`, or that the folder is missing; None if intact."""
    if not folder.is_dir():
        return f"{folder} is missing"
    return next((f"{path} {problem}" for path, problem in find_damage(folder).items()), None)


def allow_many_files() -> None:
    """Raise the number of files that this process may have open as far as the system allows."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
