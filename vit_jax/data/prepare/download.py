"""Resumable downloads of files whose size and sha256 are known."""

import os
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError, URLError

from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import sha256
from vit_jax.runtime.progress import Bar

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 5
PAUSE_SECONDS = 0.5  # before the second attempt; doubled before each further one

# Other OSErrors, such as a full disk, are not network errors.
NETWORK_ERRORS = (URLError, HTTPException, SSLError, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Archive:
    """An official file: its URLs (tried in order), sha256 and size in bytes."""

    urls: tuple[str, ...]
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The file's name, from the first URL."""
        return self.urls[0].rsplit("/", 1)[-1]


class DownloadError(Exception):
    """A download failed in a way that a retry cannot fix."""


def download_all(name: str, archives: Sequence[Archive], data_dir: Path) -> Path:
    """Download missing files; return the file, or the folder of several files."""
    folder = data_dir / "downloads" / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files = [download(archive, folder) for archive in archives]
    except DownloadError as error:
        raise UserError(
            f"{name} could not be downloaded ({error}); get"
            f" {' '.join(archive.urls[0] for archive in archives)} on another machine, copy it to"
            f" {folder} and run the same command again, or pass it to `vit-jax prepare-data"
            f" {name} --archive`"
        ) from error
    return folder if len(files) > 1 else files[0]


def download(archive: Archive, folder: Path) -> Path:
    """Download and verify a file in `folder`; raise `DownloadError` if no URL serves it.

    Every URL is tried once before any is retried.
    """
    target = folder / archive.filename
    if target.exists() and sha256(target) == archive.sha256:
        return target
    part = target.with_name(target.name + ".part")
    problems, hopeful = {}, list(archive.urls)
    for attempt in range(ATTEMPTS):
        if attempt and hopeful:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        for url in list(hopeful):
            try:
                _fetch(url, archive, part)
                return _verified(part, archive, target)
            except DownloadError as error:
                problems[url] = str(error)
                hopeful.remove(url)
            except HTTPError as error:
                error.close()
                problems[url] = f"HTTP status {error.code}"
                if error.code < 500 and error.code not in (408, 425, 429):
                    hopeful.remove(url)
            except NETWORK_ERRORS as error:
                problems[url] = str(getattr(error, "reason", error))
    raise DownloadError("; ".join(f"{url}: {problem}" for url, problem in problems.items()))


def _verified(part, archive, target):
    if (found := sha256(part)) != archive.sha256:
        part.unlink()
        raise DownloadError(f"its sha256 is {found}, the official one {archive.sha256}")
    os.replace(part, target)
    return target


def progress(*args, **options) -> Bar:
    """Make a progress bar on stderr that prints only every ten seconds to a log file."""
    return Bar(*args, mininterval=0.1 if sys.stderr.isatty() else 10.0, **options)


def _fetch(url: str, archive: Archive, part: Path) -> None:
    """Download the rest of `part`, or all of it if the server ignores the range."""
    have = part.stat().st_size if part.exists() else 0
    if have >= archive.size:
        return
    headers = {"User-Agent": "vit_jax"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        have = have if response.status == 206 else 0
        if response.length is not None and have + response.length != archive.size:
            raise DownloadError(
                f"the server offers {have + response.length:,} bytes, the official file has"
                f" {archive.size:,}"
            )
        bar = progress(desc=part.stem, total=archive.size, initial=have, unit="B", unit_scale=True)
        with part.open("ab" if have else "wb") as file, bar:
            while chunk := response.read(min(CHUNK_BYTES, archive.size - have)):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    if have < archive.size:
        raise ConnectionError(f"the connection ended after {have:,} of {archive.size:,} bytes")
