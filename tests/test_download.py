"""Downloads from unreliable servers are resumed, verified and reported."""

import dataclasses
import hashlib
import os
import socket

import pytest
from prepared import assert_cifar10_is_prepared, assert_nothing_left, read
from tiny_datasets import mnist_files
from tiny_server import served

from vit_jax.data import prepare
from vit_jax.data.prepare import download
from vit_jax.runtime.errors import UserError


def test_an_interrupted_download_resumes(server, small_cifar10, tmp_path):
    dataset, data = small_cifar10
    server.plan = ["cut", 503]
    prepare.prepare_dataset(dataset, tmp_path / "data")
    half = f"bytes={len(data) // 2}-"
    assert server.ranges == [None, half, half]
    downloads = tmp_path / "data/downloads/cifar10"
    assert [path.name for path in downloads.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert_cifar10_is_prepared(tmp_path / "data")


@pytest.mark.parametrize(
    ("left", "plan", "ranges"),
    [
        pytest.param(999, [], ["bytes=999-"], id="resumes"),
        pytest.param(999, ["whole"], ["bytes=999-"], id="range-ignored"),
        pytest.param(5000, [], [], id="whole-part"),
    ],
)
def test_a_partial_file_of_an_earlier_attempt_is_used(server, tmp_path, left, plan, ranges):
    data = os.urandom(5000)
    server.files, server.plan = {"file": data}, plan
    (tmp_path / "file.part").write_bytes(data[:left])
    archive = download.Archive((server.url + "file",), hashlib.sha256(data).hexdigest(), 5000)
    assert download.download(archive, tmp_path).read_bytes() == data
    assert server.ranges == ranges
    assert not (tmp_path / "file.part").exists()


def test_a_corrupt_continuation_is_discarded(server, tmp_path):
    server.files = {"file": bytes(5000)}
    archive = download.Archive(
        (server.url + "file",) * 2, hashlib.sha256(bytes(5000)).hexdigest(), 5000
    )
    (tmp_path / "file.part").write_bytes(b"x" * 999)
    assert download.download(archive, tmp_path).read_bytes() == bytes(5000)
    assert server.ranges == ["bytes=999-", None]  # the second URL starts from scratch


def test_a_download_that_never_completes_is_an_error_and_remains_resumable(
    server, small_cifar10, tmp_path
):
    dataset, data = small_cifar10
    server.plan = ["cut"] * 100
    with pytest.raises(UserError, match="the connection ended after .* bytes"):
        prepare.prepare_dataset(dataset, tmp_path / "data")
    assert len(server.ranges) == download.ATTEMPTS
    part = tmp_path / "data/downloads/cifar10/cifar-10-binary.tar.gz.part"
    assert data.startswith(part.read_bytes()) and part.stat().st_size > len(data) // 2
    assert_nothing_left(tmp_path / "data")


def test_a_wrong_checksum_names_both_and_leaves_nothing(server, small_cifar10, tmp_path):
    dataset, data = small_cifar10
    server.files["cifar-10-binary.tar.gz"] = bytes(len(data))
    with pytest.raises(UserError) as error:
        prepare.prepare_dataset(dataset, tmp_path / "data")
    assert hashlib.sha256(bytes(len(data))).hexdigest() in str(error.value)
    assert hashlib.sha256(data).hexdigest() in str(error.value)
    assert list((tmp_path / "data/downloads/cifar10").iterdir()) == []
    assert_nothing_left(tmp_path / "data")


def test_other_urls_are_tried_before_a_pause(tmp_path, monkeypatch):
    tried = []

    def fetch(url, archive, part):
        tried.append(url)
        if len(tried) < 4:
            raise ConnectionError("reset")
        part.write_bytes(b"data")

    monkeypatch.setattr(download, "_fetch", fetch)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    archive = download.Archive(("a", "b"), hashlib.sha256(b"data").hexdigest(), 4)
    assert download.download(archive, tmp_path).read_bytes() == b"data"
    assert tried == ["a", "b", "a", "b"]


def test_a_404_is_not_retried_and_another_url_is_used(server, tmp_path):
    server.files = {"file": b"data"}
    urls = (server.url + "gone", server.url + "file")
    archive = download.Archive(urls[:1], hashlib.sha256(b"data").hexdigest(), 4)
    with pytest.raises(download.DownloadError, match="HTTP status 404"):
        download.download(archive, tmp_path)
    assert len(server.ranges) == 1
    archive = dataclasses.replace(archive, urls=urls)
    assert download.download(archive, tmp_path).read_bytes() == b"data"


def test_a_response_of_another_size_is_refused(server, small_cifar10, tmp_path):
    server.files["cifar-10-binary.tar.gz"] = b"<html>log in first</html>"
    with pytest.raises(UserError, match="the server offers 25 bytes, the official file has"):
        prepare.prepare_dataset(small_cifar10[0], tmp_path / "data")
    assert list((tmp_path / "data/downloads/cifar10").iterdir()) == []


def test_an_error_without_network_says_what_to_do(server, tmp_path):
    files, _ = mnist_files()
    dataset = served(server, "mnist", files)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        host = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    dead = tuple(dataclasses.replace(a, urls=(host + a.filename,)) for a in dataset.archives)
    dataset = dataclasses.replace(dataset, archives=dead)
    with pytest.raises(UserError, match="Connection refused") as error:
        prepare.prepare_dataset(dataset, tmp_path)
    message, folder = str(error.value), tmp_path / "downloads/mnist"
    assert all(archive.urls[0] in message for archive in dead) and "\n" not in message
    assert f"copy it to {folder} and run the same command again" in message
    assert message.endswith("or pass it to `vit-jax prepare-data mnist --archive`")
    for name, data in files.items():  # as advised
        (folder / name).write_bytes(data)
    assert len(read("mnist", prepare.prepare_dataset(dataset, tmp_path).parents[1], "test")) == 10
