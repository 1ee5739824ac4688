"""Turns the official archives of CIFAR-10, MNIST and EuroSAT into TFDS `array_record` sets.

The stock TFDS builders need TensorFlow to encode images. Here every image reaches the TFDS
writer as PNG or JPEG bytes, so TensorFlow is never imported. Names, versions, features, example
keys (and with them the order on disk) are those of TFDS: `tfds.data_source(name)` reads the
result.

A downloaded archive must have the official sha256. An archive that the user names is checked by
its structure only (expected members, whole records, label ranges, images that decode), because
mirrors repack the official ones; a note says so when its sha256 is not the official one.

An archive is never unpacked to disk: its members are read as streams, within size limits, and
their names never become paths.
"""

import contextlib
import fcntl
import gzip
import hashlib
import http.client
import io
import json
import lzma
import math
import os
import re
import shlex
import shutil
import ssl
import struct
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.registered import skip_registration
from tqdm import tqdm

from vit_jax.errors import UserError

# The largest official archive holds 184 MB in 27,000 files; beyond these limits it is no such set.
_MAX_BYTES = 1 << 30
_MAX_MEMBERS = 200_000

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_ATTEMPTS = 5
_PAUSE_SECONDS = 0.5  # before the second attempt; doubled before each further one
_TRANSIENT_HTTP = (408, 416, 425, 429)  # and every 5xx

# What a damaged archive raises in the standard library, whatever its format.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,  # gzip, bz2
    RuntimeError,  # a zip member that is encrypted or of an unknown compression method
    ValueError,  # a name or number that is none
)

# {key: {feature: value}}; an image is an array, to be stored as PNG, or encoded bytes.
Examples = Mapping[int | str, dict[str, Any]]


@dataclass(frozen=True)
class Archive:
    """One official file: where it is (tried in order), its sha256 and its size in bytes."""

    urls: tuple[str, ...]
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The file's name, as the first address has it."""
        return self.urls[0].rsplit("/", 1)[-1]


@dataclass(frozen=True)
class ImageSet:
    """What TFDS calls one dataset, and how its official archives are read.

    `parse` gets the one archive, or the folder (or any archive) that holds the several ones, and
    returns {split: examples} after checking all of it; it raises `UserError`.
    """

    name: str
    version: str
    description: str
    homepage: str
    shape: tuple[int, int, int]
    encoding: str
    archives: tuple[Archive, ...]
    parse: Callable[[Path], dict[str, Examples]]
    config: str | None = None
    config_description: str = ""
    class_names: tuple[str, ...] | None = None
    text_feature: str | None = None


def default_data_dir() -> Path:
    """The folder of all sets, as TFDS has it: $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(name: str, data_dir: str | Path) -> Path | None:
    """The folder of a finished `array_record` set below `data_dir`, or None.

    Raises `UserError` for a name that is not in `NAMES`.
    """
    image_set = _lookup(name)
    folder = _set_dir(image_set, Path(data_dir).expanduser())
    return folder if _is_finished(image_set, folder) else None


def prepare(name: str, data_dir: str | Path, archive: str | Path | None = None) -> Path:
    """Prepares the set `name` (one of `NAMES`) below `data_dir` and returns its folder.

    Without `archive` the official archives are downloaded to `data_dir`/downloads/`name`, where
    they stay; a broken download continues where it stopped. With `archive` nothing is
    downloaded: it is the official file, or for `mnist` a folder, zip or tar with the four files.
    A set that is there already is left as it is. The set appears under its name only when it is
    whole; several processes may prepare the same set at once.

    Raises `UserError` for an unknown name, a failed download, a wrong checksum, an archive that
    is damaged or of another set, or a folder that cannot be written.
    """
    return prepare_set(_lookup(name), data_dir, archive)


def prepare_set(
    image_set: ImageSet, data_dir: str | Path, archive: str | Path | None = None
) -> Path:
    """Does what `prepare` does, for a set that need not be one of `NAMES`."""
    data_dir = Path(data_dir).expanduser().absolute()
    target = _set_dir(image_set, data_dir)
    title = f"{image_set.name} {image_set.version}"
    if _is_finished(image_set, target):
        _say(f"{title} is already prepared in {target}")
        return target
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _lock(data_dir / f".prepare-{image_set.name}.lock", title) as locked:
            # Without a lock a leftover may be another process's live attempt.
            for leftover in data_dir.glob(f".prepare-{image_set.name}-*") if locked else ():
                shutil.rmtree(leftover)
            if not _is_finished(image_set, target):
                _prepare_into(image_set, data_dir, target, archive)
    except OSError as error:
        raise UserError(f"{title} cannot be prepared in {data_dir}: {error}") from error
    _say(f"{title} is prepared in {target}")
    return target


def _prepare_into(
    image_set: ImageSet, data_dir: Path, target: Path, archive: str | Path | None
) -> None:
    if target.exists():
        raise UserError(
            f"{target} exists but is no complete array_record set; move it away or choose another"
            " data_dir"
        )
    if archive is None:
        source = _download_all(image_set, data_dir)
    else:
        source = Path(archive).expanduser()
        if not source.exists():
            raise UserError(f"the archive {source} does not exist")
    splits = image_set.parse(source)
    if archive is not None:
        _note_unofficial(image_set, source)

    prefix = f".prepare-{image_set.name}-"
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=prefix) as scratch:
        written = _write(image_set, splits, Path(scratch))
        if image_set.config:
            # TFDS reads the name of the default config from a file beside the configs.
            metadata = Path(image_set.name, ".config", "metadata.json")
            (data_dir / metadata).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(scratch) / metadata, data_dir / metadata)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(written, target)
        except OSError:
            # Without a lock, another process may have finished first: its set is as good.
            if not _is_finished(image_set, target):
                raise


def _lookup(name: str) -> ImageSet:
    if name not in SETS:
        raise UserError(f"unknown set {name!r}: it can be one of {', '.join(NAMES)}")
    return SETS[name]


def _set_dir(image_set: ImageSet, data_dir: Path) -> Path:
    return data_dir / image_set.name / (image_set.config or "") / image_set.version


def _is_finished(image_set: ImageSet, folder: Path) -> bool:
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        splits = {split["name"]: len(split["shardLengths"]) for split in info["splits"]}
        file_format = info["fileFormat"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    shards = [
        f"{image_set.name}-{split}.array_record-{shard:05d}-of-{count:05d}"
        for split, count in splits.items()
        for shard in range(count)
    ]
    return (
        file_format == "array_record"
        and bool(shards)
        and all((folder / file).is_file() for file in ("features.json", *shards))
    )


@contextlib.contextmanager
def _lock(path: Path, title: str) -> Iterator[bool]:
    """Holds the lock file `path`; yields False where the file system knows no locks.

    The kernel lets go of the lock when the process ends, however it ends. The file stays: were
    it removed, two processes could each lock a file of that name.
    """
    with path.open("w") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say(f"waiting for another process that prepares {title}")
                fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False
        yield locked


# Telling what happens


def _say(message: str) -> None:
    print(message, flush=True)


class _Progress:
    """Progress on stderr: a bar on a terminal, elsewhere a line at most every ten seconds."""

    def __init__(self, label: str, total: int, unit: str, scale: int = 1, done: int = 0):
        self.label, self.total, self.unit, self.scale = label, total, unit, scale
        self.start, self.done = done, done
        self.began = self.told = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            unit = "B" if unit == "MB" else f" {unit}"
            self.bar = tqdm(
                desc=label, total=total, initial=done, unit=unit, unit_scale=unit == "B"
            )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None:
            self._tell()

    def update(self, count: int) -> None:
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() - self.told > 10:
            self._tell()

    def _tell(self) -> None:
        self.told = time.monotonic()
        rate = (self.done - self.start) / max(self.told - self.began, 1e-3)
        digits = 1 if self.scale > 1 else 0
        done, total, rate = (
            f"{value / self.scale:,.{digits}f}" for value in (self.done, self.total, rate)
        )
        line = f"{self.label}: {done} of {total} {self.unit}, {rate} {self.unit}/s"
        print(line, file=sys.stderr, flush=True)


# Downloading. urllib rather than requests: one GET with a Range header needs no dependency.


class _DownloadError(Exception):
    """A download that trying again will not save; the message says why."""


def _download_all(image_set: ImageSet, data_dir: Path) -> Path:
    """Downloads what is missing; returns the file, or the folder of several files."""
    folder = data_dir / "downloads" / image_set.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files = [_download(archive, folder) for archive in image_set.archives]
    except _DownloadError as error:
        several = len(image_set.archives) > 1
        urls = " ".join(archive.urls[0] for archive in image_set.archives)
        raise UserError(
            f"{image_set.name} could not be downloaded ({error}); get {urls} by hand on another"
            f" machine{', all into one folder,' if several else ''} and run: python"
            f" scripts/prepare_data.py {image_set.name} --archive"
            f" {'FOLDER' if several else 'FILE'} --data_dir {shlex.quote(str(data_dir))}"
        ) from error
    return folder if len(files) > 1 else files[0]


def _download(archive: Archive, folder: Path) -> Path:
    """Returns the verified file in `folder`; raises `_DownloadError` if no address gives it."""
    target = folder / archive.filename
    if target.exists() and _sha256(target) == archive.sha256:
        return target
    part = target.with_name(target.name + ".part")
    problems = []
    for url in archive.urls:
        try:
            _download_from(url, archive, part)
        except _DownloadError as error:
            problems.append(f"{url}: {error}")
        else:
            os.replace(part, target)
            return target
    raise _DownloadError("; ".join(problems))


def _download_from(url: str, archive: Archive, part: Path) -> None:
    """Completes `part` from `url`, in several attempts, and verifies it."""
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
        resumed = part.exists()
        try:
            _fetch(url, archive, part)
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"HTTP status {error.code}"
            if error.code == 416:  # the server has nothing after what `part` holds
                part.unlink(missing_ok=True)
            if error.code < 500 and error.code not in _TRANSIENT_HTTP:
                break
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ssl.SSLError,
            ConnectionError,
            TimeoutError,
        ) as error:
            problem = str(getattr(error, "reason", error))
        else:
            found = _sha256(part)
            if found == archive.sha256:
                return
            part.unlink()
            problem = f"its sha256 is {found}, the official one {archive.sha256}"
            # A part from an earlier attempt may be to blame; a fresh file will not get better.
            if not resumed:
                break
    raise _DownloadError(problem)


def _fetch(url: str, archive: Archive, part: Path) -> None:
    """Appends to `part` what it lacks, or starts it over if the server ignores the range."""
    have = part.stat().st_size if part.exists() else 0
    if have == archive.size:
        return
    headers = {"User-Agent": "vit_jax"}
    if 0 < have < archive.size:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        range_sent = response.headers.get("Content-Range", "")
        if response.status != 206 or not range_sent.startswith(f"bytes {have}-"):
            have = 0
        if response.length is not None and have + response.length != archive.size:
            part.unlink(missing_ok=True)
            raise _DownloadError(
                f"the server offers {have + response.length:,} bytes, the official file has"
                f" {archive.size:,}"
            )
        progress = _Progress(part.stem, archive.size, "MB", scale=10**6, done=have)
        with part.open("ab" if have else "wb") as file, progress:
            while have <= archive.size and (chunk := response.read(_CHUNK_BYTES)):
                file.write(chunk)
                have += len(chunk)
                progress.update(len(chunk))
    if have > archive.size:
        part.unlink()
        raise _DownloadError(f"the server sends more than the official {archive.size:,} bytes")
    if have < archive.size:
        raise ConnectionError(f"the connection ended after {have:,} of {archive.size:,} bytes")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Reading archives


def _read_members(source: Path, wanted: Callable[[str], object]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the wanted regular files in a folder, tar or zip.

    Raises `UserError` if `source` is none of these, is damaged or is absurdly large.
    """
    try:
        if source.is_dir():
            members = _folder_members(source)
        elif tarfile.is_tarfile(source):
            members = _tar_members(source)
        elif zipfile.is_zipfile(source):
            members = _zip_members(source)
        else:
            raise UserError(
                f"{source} is no readable archive: it is no tar or zip file, or is cut short"
            )
        total = 0
        for count, (name, size, open_member) in enumerate(members):
            is_wanted = wanted(name)
            # What else lies in a folder costs nothing; in a tar it has to be read past.
            total += size if is_wanted or not source.is_dir() else 0
            if total > _MAX_BYTES or count >= _MAX_MEMBERS:
                raise UserError(
                    f"{source} is refused: it holds more than {_MAX_BYTES:,} bytes or"
                    f" {_MAX_MEMBERS:,} files, far more than the official archive"
                )
            if is_wanted:
                with open_member() as file:
                    content = file.read(size)
                if len(content) != size:
                    raise UserError(f"{source} is damaged: {name} is cut short")
                yield name, content
    except _DAMAGE as error:
        raise UserError(f"{source} cannot be read, it may be cut short: {error}") from error


_Members = Iterator[tuple[str, int, Callable[[], IO[bytes]]]]


def _folder_members(source: Path) -> _Members:
    for folder, _, names in os.walk(source):
        for path in (Path(folder, name) for name in sorted(names)):
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(source).as_posix(), path.stat().st_size, _opener(path)


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _tar_members(source: Path) -> _Members:
    with tarfile.open(source) as archive:
        for info in archive:
            if info.isreg():
                yield info.name, info.size, lambda info=info: _not_none(archive.extractfile(info))


def _zip_members(source: Path) -> _Members:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, info.file_size, lambda info=info: archive.open(info)


def _not_none(file: IO[bytes] | None) -> IO[bytes]:
    assert file is not None  # extractfile gives None only for what is no regular file
    return file


def _basename(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _read_named(source: Path, names: Collection[str], what: str) -> dict[str, bytes]:
    """The files called `names`, in whichever folder; each must be there, once."""
    found: dict[str, bytes] = {}
    for name, content in _read_members(source, lambda name: _basename(name) in names):
        if _basename(name) in found:
            raise UserError(f"{source} holds {_basename(name)} twice")
        found[_basename(name)] = content
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{source} is not {what}: it lacks {', '.join(missing)}")
    return found


def _note_unofficial(image_set: ImageSet, source: Path) -> None:
    """Tells, once the structure is known to be right, if a checksum is not the official one."""
    digests = set() if source.is_dir() else {_sha256(source)}
    official = {archive.filename: archive.sha256 for archive in image_set.archives}
    if not digests.issuperset(official.values()):
        for _, content in _read_members(source, lambda name: _basename(name) in official):
            digests.add(hashlib.sha256(content).hexdigest())
    if not digests.issuperset(official.values()):
        _say(
            f"note: {source} has the structure of {image_set.name}, but its checksum is not the"
            f" one of {', '.join(official)}; whether the images are the official ones is not known"
        )


# CIFAR-10: records of one label byte and a 3x32x32 image
# (https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version")


def _parse_cifar10(source: Path) -> dict[str, Examples]:
    batches = {
        "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
        "test": ["test_batch.bin"],
    }
    names = [name for names in batches.values() for name in names]
    files = _read_named(source, names, "the binary version of CIFAR-10")
    for name in names:
        _check_cifar10_batch(files[name], f"{source}: {name}")
    return {
        split: _cifar10_examples(split, b"".join(files[name] for name in names))
        for split, names in batches.items()
    }


def _check_cifar10_batch(content: bytes, where: str) -> None:
    size = 1 + 3 * 32 * 32
    if not content or len(content) % size:
        raise UserError(f"{where} has {len(content):,} bytes, no multiple of a record's {size:,}")
    label = max(content[::size])
    if label > 9:
        raise UserError(f"{where} has the label {label}, CIFAR-10 has 0 to 9")


def _cifar10_examples(split: str, content: bytes) -> Examples:
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # [n, 32, 32, 3]
    return {
        index: {"id": f"{split}_{index:05d}", "image": image, "label": int(label)}
        for index, (image, label) in enumerate(zip(images, records[:, 0], strict=True))
    }


# MNIST: the idx format, gzipped: magic number, big-endian dimensions, bytes
# (http://yann.lecun.com/exdb/mnist/)


def _parse_mnist(source: Path) -> dict[str, Examples]:
    prefixes = {"train": "train", "test": "t10k"}
    names = {
        split: (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
        for split, prefix in prefixes.items()
    }
    wanted = [name for pair in names.values() for name in pair]
    files = _read_named(source, wanted, "a folder or archive with the four MNIST files")
    splits: dict[str, Examples] = {}
    for split, (images_name, labels_name) in names.items():
        images = _read_idx(files[images_name], 3, f"{source}: {images_name}")
        labels = _read_idx(files[labels_name], 1, f"{source}: {labels_name}")
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(labels):
            raise UserError(
                f"{source}: {images_name} has the shape {images.shape} and {labels_name} the"
                f" shape {labels.shape}; MNIST has (n, 28, 28) and (n,)"
            )
        if labels.max() > 9:
            raise UserError(
                f"{source}: {labels_name} has the label {labels.max()}, MNIST has 0 to 9"
            )
        splits[split] = {
            index: {"image": image, "label": int(label)}
            for index, (image, label) in enumerate(zip(images[..., None], labels, strict=True))
        }
    return splits


def _read_idx(packed: bytes, num_dims: int, where: str) -> np.ndarray:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(_MAX_BYTES + 1)
    except _DAMAGE as error:
        raise UserError(f"{where} cannot be read, it may be cut short: {error}") from error
    if len(content) > _MAX_BYTES:
        raise UserError(f"{where} is refused: it unpacks to more than {_MAX_BYTES:,} bytes")
    start = 4 + 4 * num_dims
    if len(content) < start or content[:4] != bytes([0, 0, 8, num_dims]):
        raise UserError(f"{where} is no idx file of bytes with {num_dims} dimensions")
    shape = struct.unpack(f">{num_dims}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise UserError(f"{where} has {len(content):,} bytes, its header promises {expected:,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# EuroSAT RGB: <class>/<class>_<number>.jpg, 64x64 (https://github.com/phelber/eurosat)

_EUROSAT_CLASSES = tuple(
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential"
    " River SeaLake".split()
)


def _parse_eurosat(source: Path) -> dict[str, Examples]:
    pattern = re.compile(rf"(?:.*/)?({'|'.join(_EUROSAT_CLASSES)})/(\1_[0-9]+\.jpg)")
    examples: dict[int | str, dict[str, Any]] = {}
    missing = set(_EUROSAT_CLASSES)
    for name, content in _read_members(source, pattern.fullmatch):
        match = pattern.fullmatch(name)
        assert match is not None  # only such names are read
        label, filename = match.groups()
        key = f"{label}_{filename}"
        if key in examples:
            raise UserError(f"{source} holds {filename} twice")
        _check_eurosat_image(content, f"{source}: {name}")
        examples[key] = {"image": content, "label": label, "filename": filename}
        missing.discard(label)
    if missing:
        raise UserError(
            f"{source} is not EuroSAT (RGB): it has no <class>/<class>_<number>.jpg for"
            f" {', '.join(sorted(missing))}"
        )
    return {"train": examples}


def _check_eurosat_image(content: bytes, where: str) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            if image.size != (64, 64) or image.mode != "RGB":
                raise UserError(f"{where} is {image.size} {image.mode}, not (64, 64) RGB")
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} is no readable JPEG: {error}") from error


# Writing


def _write(image_set: ImageSet, splits: dict[str, Examples], folder: Path) -> Path:
    """Writes the set below `folder` with the TFDS writer; returns the folder of its version."""
    tfds.disable_progress_bar()  # the progress shown is ours
    builder = _make_builder(image_set, splits, folder)
    # TFDS announces, in many words, a download that does not happen.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_path)


def _make_builder(
    image_set: ImageSet, splits: dict[str, Examples], folder: Path
) -> tfds.core.GeneratorBasedBuilder:
    names = image_set.class_names
    features: dict[str, Any] = {
        "image": tfds.features.Image(shape=image_set.shape, encoding_format=image_set.encoding),
        "label": tfds.features.ClassLabel(names=names)
        if names
        else tfds.features.ClassLabel(num_classes=10),
    }
    if image_set.text_feature:
        features[image_set.text_feature] = tfds.features.Text()

    # Registered, the class would clash with the stock one of the same name.
    with skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            name = image_set.name
            VERSION = tfds.core.Version(image_set.version)
            BUILDER_CONFIGS = (
                [
                    tfds.core.BuilderConfig(
                        name=image_set.config, description=image_set.config_description
                    )
                ]
                if image_set.config
                else []
            )

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    description=image_set.description,
                    homepage=image_set.homepage,
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=("image", "label"),
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split):
                label = f"{image_set.name} {split}"
                with _Progress(label, len(splits[split]), "images") as progress:
                    for key, example in splits[split].items():
                        yield key, example | {"image": _encoded(example["image"])}
                        progress.update(1)

    return Builder(data_dir=folder)


def _encoded(image: np.ndarray | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "png")  # [h, w, 1] is [h, w] to Pillow
    return file.getvalue()


# The sets: sizes and checksums as TFDS has them


def _mnist_archive(filename: str, size: int, sha256: str) -> Archive:
    hosts = (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    )
    return Archive(tuple(host + filename for host in hosts), sha256, size)


SETS: dict[str, ImageSet] = {
    "cifar10": ImageSet(
        name="cifar10",
        version="3.0.2",
        description="CIFAR-10: 32x32 colour images in 10 classes, stored losslessly.",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        shape=(32, 32, 3),
        encoding="png",
        archives=(
            Archive(
                urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                size=170_052_171,
            ),
        ),
        parse=_parse_cifar10,
        class_names=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
        text_feature="id",
    ),
    "mnist": ImageSet(
        name="mnist",
        version="3.0.1",
        description="MNIST: 28x28 greyscale images of handwritten digits, stored losslessly.",
        homepage="http://yann.lecun.com/exdb/mnist/",
        shape=(28, 28, 1),
        encoding="png",
        archives=(
            _mnist_archive(
                "train-images-idx3-ubyte.gz",
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            _mnist_archive(
                "train-labels-idx1-ubyte.gz",
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            _mnist_archive(
                "t10k-images-idx3-ubyte.gz",
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            _mnist_archive(
                "t10k-labels-idx1-ubyte.gz",
                4_542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
        parse=_parse_mnist,
    ),
    "eurosat": ImageSet(
        name="eurosat",
        version="2.0.0",
        description="EuroSAT: land use and land cover in 10 classes, seen by Sentinel-2.",
        homepage="https://github.com/phelber/eurosat",
        shape=(64, 64, 3),
        encoding="jpeg",
        archives=(
            Archive(
                urls=(
                    "https://madm.dfki.de/files/sentinel/EuroSAT.zip",
                    # the same file, as torchvision has it
                    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                    "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                ),
                sha256="8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
                size=94_280_567,
            ),
        ),
        parse=_parse_eurosat,
        config="rgb",
        config_description="Sentinel-2 RGB channels",
        class_names=_EUROSAT_CLASSES,
        text_feature="filename",
    ),
}

NAMES = tuple(SETS)
