"""Malicious archives of datasets: the right result or a single-line error."""

import bz2
import gzip
import io
import lzma
import os
import pathlib
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from tiny_datasets import cifar10_members, make_zip
from tiny_memory import little_memory

from vit_jax.cli import prepare_data
from vit_jax.data.prepare import parsers
from vit_jax.runtime.errors import UserError

MEMBERS, _ = cifar10_members(2)
LAST = "cifar-10-batches-bin/test_batch.bin"


def make_tar(path, members, compress=lambda content: content):
    """Write a tar of {name: bytes or TarInfo}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    path.write_bytes(compress(file.getvalue()))
    return path


def special(kind, target=""):
    info = tarfile.TarInfo(LAST)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_tars_of_any_compression_are_read(tmp_path, compress):
    splits = parsers.parse_cifar10(make_tar(tmp_path / "archive", MEMBERS, compress))
    assert [len(part) for part in splits.values()] == [10, 2]


SPECIAL = {
    "symbolic link": special(tarfile.SYMTYPE, "/etc/passwd"),
    "link upwards": special(tarfile.SYMTYPE, "../../secret"),
    "hard link": special(tarfile.LNKTYPE, "cifar-10-batches-bin/data_batch_1.bin"),
    "hard link outside": special(tarfile.LNKTYPE, "/etc/passwd"),
    "device": special(tarfile.CHRTYPE),
    "pipe": special(tarfile.FIFOTYPE),
    "folder": special(tarfile.DIRTYPE),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_links_and_devices_in_a_tar_are_ignored(tmp_path, capsys, kind):
    archive = make_tar(tmp_path / "archive", MEMBERS | {LAST: SPECIAL[kind]})
    assert_error(tmp_path, capsys, archive, "it lacks test_batch.bin")


def assert_error(tmp_path, capsys, archive, message):
    """The command fails with a single-line error and leaves no files."""
    before = sorted(tmp_path.rglob("*"))
    arguments = ["cifar10", f"--archive={archive}", f"--data_dir={tmp_path / 'data'}"]
    with little_memory():
        assert prepare_data.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error, error
    left = [path.name for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert left in ([], ["data", ".prepare-cifar10.lock"])


def test_a_link_in_a_zip_is_a_plain_file(tmp_path, capsys):
    path = make_zip(tmp_path / "archive", {k: v for k, v in MEMBERS.items() if k != LAST})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo(LAST)
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert_error(tmp_path, capsys, path, "test_batch.bin has 11 bytes")


@pytest.mark.parametrize("make", [make_tar, make_zip])
@pytest.mark.parametrize("prefix", ["../../../", "/tmp/", "C:\\", "a/../../"])
def test_names_of_members_do_not_become_paths(tmp_path, make, prefix):
    renamed = {prefix + pathlib.Path(name).name: data for name, data in MEMBERS.items()}
    (tmp_path / "in").mkdir()
    archive = make(tmp_path / "in/archive", renamed)
    if prefix == "C:\\":
        with pytest.raises(UserError, match="it lacks"):
            parsers.parse_cifar10(archive)
    else:
        assert len(parsers.parse_cifar10(archive)["test"]) == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "archive"]


def test_unpacked_size_is_bounded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parsers, "MAX_BYTES", 2**20)
    zeros = bytes(2**21)
    irrelevant = make_tar(tmp_path / "a", {"notes.txt": zeros} | MEMBERS, gzip.compress)
    assert_error(
        tmp_path, capsys, irrelevant, "is too large: it contains more than 1,048,576 bytes"
    )
    for make in (make_tar, make_zip):
        assert_error(
            tmp_path, capsys, make(tmp_path / "b", {LAST: zeros}), "is too large: it contains"
        )
    whole = make_zip(tmp_path / "c", MEMBERS).read_bytes()
    offset = whole.rindex(LAST.encode()) - 46 + 24  # of the size in the central directory
    (tmp_path / "c").write_bytes(whole[:offset] + struct.pack("<I", 9) + whole[offset + 4 :])
    assert_error(tmp_path, capsys, tmp_path / "c", "cannot be read and may be truncated")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize(
    ("size", "message"),
    [
        (2**40, "is damaged and declares a larger size"),
        (2**22, "is not a readable archive"),
        (-512, "cannot be read and may be truncated"),
    ],
)
def test_headers_of_a_tar_are_bounded(tmp_path, capsys, kind, size, message):
    info = special(kind)
    info.size = size
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "archive").write_bytes(gzip.compress(header + bytes(2**22)))
    assert_error(tmp_path, capsys, tmp_path / "archive", message)


def test_pipes_and_devices_are_not_read(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", pathlib.Path("/dev/zero")):
        assert_error(tmp_path, capsys, path, "is neither a file nor a folder")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder/test_batch.bin")
    assert_error(tmp_path, capsys, tmp_path / "folder", "it lacks")
    # Path.exists raises for a name that is too long, up to Python 3.13.
    problem = "cannot be prepared" if sys.version_info < (3, 14) else "does not exist"
    assert_error(tmp_path, capsys, tmp_path / ("x" * 300), problem)
    hostile = make_tar(tmp_path / "a\n\x1b[2J", {})
    assert_error(tmp_path, capsys, hostile, "a\\n\\x1b[2J is no")


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_random_damage_of_an_archive_is_an_error_or_harmless(tmp_path, make):
    whole = make(tmp_path / "archive", MEMBERS).read_bytes()
    rng, num_errors = np.random.default_rng(0), 0
    headers = [i for i in range(0, len(whole), 512) if whole[i : i + 7] == b"cifar-1"]
    headers = headers or [whole.index(b"PK\x01\x02") + 46 * i for i in range(7)]
    for _ in range(150):
        content = bytearray(whole)
        for offset in rng.choice(headers, 3) + rng.integers(0, 160, 3):
            content[min(offset, len(whole) - 1)] = rng.integers(0, 256)
        (tmp_path / "archive").write_bytes(content)
        try:
            with little_memory():
                parsers.parse_cifar10(tmp_path / "archive")
        except UserError:
            num_errors += 1
    assert num_errors > 20
