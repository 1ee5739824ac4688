"""Invalid and malicious archives are refused and write nothing elsewhere."""

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest
from prepared import assert_cifar10_is_prepared, assert_nothing_left
from tiny_datasets import (
    cifar10_members,
    eurosat_members,
    idx,
    jpeg,
    make_tar,
    make_zip,
    mnist_files,
)

from vit_jax.data import prepare
from vit_jax.data.prepare import parsers
from vit_jax.runtime.errors import UserError

LABELS = "t10k-labels-idx1-ubyte.gz"
MNIST, _ = mnist_files()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cifar10", {"data_batch_3.bin": None}, "it lacks data_batch_3.bin"),
        ("cifar10", {"data_batch_2.bin": bytes(5000)}, "data_batch_2.bin has 5,000 bytes"),
        ("cifar10", {"test_batch.bin": b"\x0a" + bytes(3072)}, "has the label 10"),
        ("cifar10", {"copy/data_batch_1.bin": b""}, "contains data_batch_1.bin twice"),
        ("mnist", {"t10k-images-idx3-ubyte.gz": idx(np.zeros((10, 32, 32), np.uint8))}, "shape"),
        ("mnist", {LABELS: None}, f"lacks {LABELS}"),
        ("mnist", {LABELS: idx(np.zeros(9, np.uint8))}, r"the shape \(9,\)"),
        ("mnist", {LABELS: idx(np.full(10, 11, np.uint8))}, "has the label 11"),
        ("mnist", {LABELS: gzip.compress(gzip.decompress(MNIST[LABELS])[:-1])}, "declares 18"),
        ("mnist", {LABELS: gzip.compress(b"text")}, "not an idx file"),
        ("mnist", {LABELS: MNIST[LABELS][:20]}, "may be truncated"),
        ("eurosat", {"Forest_1.jpg": None, "Forest_2.jpg": None}, "no <class>.* for Forest$"),
        ("eurosat", {"River_1.jpg": jpeg((65, 64))}, r"River_1.jpg is \(64, 65\) RGB"),
        ("eurosat", {"River_1.jpg": jpeg()[:2000]}, "River_1.jpg is not a readable JPEG"),
    ],
)
def test_an_archive_with_wrong_content_is_refused(tmp_path, name, changes, message):
    members = {"cifar10": cifar10_members(2)[0], "mnist": MNIST, "eurosat": eurosat_members()}[name]
    for suffix, content in changes.items():
        member = next((key for key in members if key.endswith(suffix)), suffix)
        members = members | {member: content}
    members = {member: content for member, content in members.items() if content is not None}
    make_zip(tmp_path / "archive", members)
    assert_refused(name, tmp_path / "archive", message)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[500] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "make", "message"),
    [
        (cut, make_tar, "may be truncated"),
        (cut, make_zip, "not a readable archive"),
        (flip, make_zip, "cannot be read.*CRC"),
        (lambda path: path.write_text("text" * 100), make_tar, "not a readable archive"),
        (lambda path: path.write_bytes(b""), make_tar, "not a readable archive"),
        (lambda path: path.unlink(), make_tar, "does not exist"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path, damage, make, message):
    damage(make(tmp_path / "archive", cifar10_members(2)[0]))
    assert_refused("cifar10", tmp_path / "archive", message)


def assert_refused(name, archive, message):
    data = archive.parent / "data"
    with pytest.raises(UserError, match=message) as error:
        prepare.prepare(name, data, archive)
    assert str(archive) in str(error.value) and "\n" not in str(error.value)
    assert_nothing_left(data)


def test_oversized_archives_are_refused(tmp_path, monkeypatch):
    info = tarfile.TarInfo("data_batch_1.bin")
    info.size = 1 << 40  # a tar header may declare more than the file contains
    (tmp_path / "tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(UserError, match="is too large: it contains more than"):
        prepare.prepare("cifar10", tmp_path / "data", tmp_path / "tar")
    monkeypatch.setattr(parsers, "MAX_BYTES", 40_000)
    bomb = make_zip(tmp_path / "bomb", MNIST | {LABELS: idx(np.zeros(100_000, np.uint8))})
    with pytest.raises(UserError, match="has 40,000 bytes, but its header declares 100,008"):
        prepare.prepare("mnist", tmp_path / "data", bomb)


def test_members_never_become_paths_and_links_are_not_followed(tmp_path):
    members, _ = cifar10_members()
    hostile = make_tar(tmp_path / "tar", {f"../../{name}": data for name, data in members.items()})
    prepare.prepare("cifar10", tmp_path / "a/b/data", hostile)
    assert_cifar10_is_prepared(tmp_path / "a/b/data")
    assert {path.name for path in tmp_path.iterdir()} == {"tar", "a"}
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in members.items():
        (folder / Path(name).name).write_bytes(data)
    (folder / "test_batch.bin").rename(tmp_path / "secret")
    (folder / "test_batch.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="it lacks test_batch.bin"):
        prepare.prepare("cifar10", tmp_path / "data", folder)
