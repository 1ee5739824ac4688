"""What `vit_jax.data.prepare` makes of official, damaged and hostile archives and servers."""

import dataclasses
import errno
import fcntl
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import hashing
from tiny_sets import (
    cifar10_members,
    eurosat_members,
    idx,
    jpeg,
    make_cifar10,
    make_tar,
    make_zip,
    mnist_files,
)

from scripts import prepare_data
from vit_jax.data import prepare
from vit_jax.data.prepare import download, parsers, writer
from vit_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _quick_and_local(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Server:
    """Serves `files`; `plan` holds what befalls the next requests, `ranges` what they asked for.

    A plan is an HTTP status to answer with, "cut" (half of what was asked for, then nothing),
    "whole" (the range is ignored) or "unsized" (no length is told).
    """

    def __init__(self):
        self.files, self.plan, self.ranges = {}, [], []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}/"
        self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.02,))
        self.thread.start()

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.ranges.append(wanted)
        act = self.plan.pop(0) if self.plan else None
        content = self.files.get(handler.path.strip("/"))
        if content is None or isinstance(act, int):
            handler.send_error(404 if content is None else act)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and act != "whole" else 0
        body = content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if act == "cut" else body)

    def stop(self):
        self.httpd.shutdown()
        self.thread.join()
        self.httpd.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


def served(server, name, files):
    """The set `name`, with its official files replaced by `files` on the server."""
    server.files |= files
    archives = tuple(
        download.Archive((server.url + file,), hashlib.sha256(content).hexdigest(), len(content))
        for file, content in files.items()
    )
    return dataclasses.replace(prepare.SETS[name], archives=archives)


@pytest.fixture
def small_cifar10(server, tmp_path):
    """A served CIFAR-10: the set and its archive's bytes."""
    path = make_cifar10(tmp_path / "cifar-10-binary.tar.gz")
    return served(server, "cifar10", {path.name: path.read_bytes()}), path.read_bytes()


def read(name, data_dir, split):
    return list(tfds.data_source(name, data_dir=data_dir, split=split))


def assert_cifar10_is_there(data_dir):
    for split, (images, labels) in cifar10_members()[1].items():
        examples = read("cifar10", data_dir, split)
        examples.sort(key=lambda example: example["id"])
        ids = [example["id"].decode() for example in examples]
        assert ids == [f"{split}_{index:05d}" for index in range(len(images))]
        np.testing.assert_array_equal([example["label"] for example in examples], labels)
        np.testing.assert_array_equal([example["image"] for example in examples], images)


def assert_nothing_left(data_dir):
    """No set and no half of one; downloads and the lock's empty file may stay."""
    left = [path.name for path in data_dir.iterdir()] if data_dir.exists() else []
    assert [name for name in left if name != "downloads" and not name.endswith(".lock")] == []


# What is prepared is what was in the archive


def test_cifar10_is_read_back_exactly(small_cifar10, tmp_path, capfd):
    folder = prepare.prepare_set(small_cifar10[0], tmp_path / "data")
    assert folder == tmp_path / "data/cifar10/3.0.2"
    assert_cifar10_is_there(tmp_path / "data")
    classes = "airplane automobile bird cat deer dog frog horse ship truck"
    assert (folder / "label.labels.txt").read_text().split() == classes.split()
    info = json.loads((folder / "dataset_info.json").read_text())
    assert (info["name"], info["version"]) == ("cifar10", "3.0.2")
    assert [s["shardLengths"] for s in info["splits"]] == [["100"], ["20"]]
    out, err = capfd.readouterr()
    assert out == f"cifar10 3.0.2 is prepared in {folder}\n"
    assert "cifar-10-binary.tar.gz: 100%" in err and "cifar10 train: 100%" in err


@pytest.mark.parametrize("form", ["download", "folder", "zip", "tar"])
def test_mnist_is_read_back_exactly(server, tmp_path, form):
    files, content = mnist_files()
    image_set, archive = served(server, "mnist", files), None
    members = {f"MNIST/raw/{name}": data for name, data in files.items()}
    if form == "folder":
        archive = tmp_path / "folder"
        (archive / "MNIST/raw").mkdir(parents=True)
        for name, data in members.items():
            (archive / name).write_bytes(data)
    elif form != "download":
        archive = (make_zip if form == "zip" else make_tar)(tmp_path / form, members)
    prepare.prepare_set(image_set, tmp_path / "data", archive)
    for split, (images, labels) in content.items():
        examples = read("mnist", tmp_path / "data", split)
        assert examples[0]["image"].shape == (28, 28, 1)
        got = sorted((int(e["label"]), e["image"].tobytes()) for e in examples)
        assert got == sorted((int(y), x.tobytes()) for x, y in zip(images, labels, strict=True))


@pytest.mark.parametrize("folder", ["2750", "EuroSAT_RGB"])
def test_eurosat_keeps_the_jpeg_bytes(tmp_path, folder):
    members = eurosat_members(folder)
    junk = {"__MACOSX/2750/Forest/._Forest_1.jpg": b"x", "README.txt": b"x"}
    archive = make_zip(tmp_path / "EuroSAT.zip", members | junk)
    prepare.prepare("eurosat", tmp_path, archive)
    undecoded = {"image": tfds.decode.SkipDecoding()}
    source = tfds.data_source("eurosat", split="train", data_dir=tmp_path, decoders=undecoded)
    expected = {Path(name).name: content for name, content in members.items()}
    assert {e["filename"].decode(): e["image"] for e in source} == expected
    names = tfds.builder("eurosat", data_dir=tmp_path).info.features["label"].names
    for example in read("eurosat", tmp_path, "train"):
        name = example["filename"].decode()
        assert names[example["label"]] == name.split("_")[0]
        pixels = np.asarray(Image.open(io.BytesIO(expected[name])))
        np.testing.assert_array_equal(example["image"], pixels)


def test_the_order_is_that_of_tfds(tmp_path):
    # TFDS orders a split by a hash of each key and of the split's name; with another key the same
    # subsplit would hold other images.
    prepare.prepare("cifar10", tmp_path, make_cifar10(tmp_path / "archive.tar.gz"))
    expected = sorted(range(100), key=hashing.Hasher("train").hash_key)
    ids = [example["id"].decode() for example in read("cifar10", tmp_path, "train")]
    assert ids == [f"train_{index:05d}" for index in expected]


def test_a_prepared_set_is_left_as_it_is(tmp_path, capsys):
    archive = make_cifar10(tmp_path / "archive.tar.gz")
    assert prepare.find_prepared("cifar10", tmp_path) is None
    folder = prepare.prepare("cifar10", tmp_path, archive)
    assert "archive.tar.gz is not the official file" in capsys.readouterr().out
    assert prepare.find_prepared("cifar10", tmp_path) == folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    archive.unlink()
    assert prepare.prepare("cifar10", tmp_path, archive) == folder
    assert capsys.readouterr().out == f"cifar10 3.0.2 is already prepared in {folder}\n"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("change", ["another format", "a shard is missing"])
def test_what_is_no_whole_set_is_told_and_not_touched(tmp_path, change):
    archive = make_cifar10(tmp_path / "archive.tar.gz")
    folder = prepare.prepare("cifar10", tmp_path, archive)
    info = folder / "dataset_info.json"
    if change == "another format":
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    else:
        (folder / "cifar10-test.array_record-00000-of-00001").unlink()
    files = sorted(folder.iterdir())
    assert prepare.find_prepared("cifar10", tmp_path) is None
    with pytest.raises(UserError, match="no complete array_record set; move it away"):
        prepare.prepare("cifar10", tmp_path, archive)
    assert sorted(folder.iterdir()) == files


# Downloads


def test_a_cut_download_resumes(server, small_cifar10, tmp_path):
    image_set, data = small_cifar10
    server.plan = ["cut", 503]
    prepare.prepare_set(image_set, tmp_path / "data")
    half = f"bytes={len(data) // 2}-"
    assert server.ranges == [None, half, half]
    downloads = tmp_path / "data/downloads/cifar10"
    assert [path.name for path in downloads.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert_cifar10_is_there(tmp_path / "data")


@pytest.mark.parametrize(
    ("left", "plan", "ranges"),
    [
        pytest.param(999, [], ["bytes=999-"], id="resumes"),
        pytest.param(999, ["whole"], ["bytes=999-"], id="range-ignored"),
        pytest.param(5000, [], [], id="whole-part"),
    ],
)
def test_what_an_earlier_attempt_left_is_used(server, tmp_path, left, plan, ranges):
    data = os.urandom(5000)
    server.files, server.plan = {"file": data}, plan
    (tmp_path / "file.part").write_bytes(data[:left])
    archive = download.Archive((server.url + "file",), hashlib.sha256(data).hexdigest(), 5000)
    assert download.download(archive, tmp_path).read_bytes() == data
    assert server.ranges == ranges
    assert not (tmp_path / "file.part").exists()


def test_a_wrong_rest_of_a_download_is_thrown_away(server, tmp_path):
    server.files = {"file": bytes(5000)}
    archive = download.Archive(
        (server.url + "file",) * 2, hashlib.sha256(bytes(5000)).hexdigest(), 5000
    )
    (tmp_path / "file.part").write_bytes(b"x" * 999)
    assert download.download(archive, tmp_path).read_bytes() == bytes(5000)
    assert server.ranges == ["bytes=999-", None]  # a second address starts afresh


def test_a_download_that_is_always_cut_is_told_and_kept(server, small_cifar10, tmp_path):
    image_set, data = small_cifar10
    server.plan = ["cut"] * 100
    with pytest.raises(UserError, match="the connection ended after .* bytes"):
        prepare.prepare_set(image_set, tmp_path / "data")
    assert len(server.ranges) == download.ATTEMPTS
    part = tmp_path / "data/downloads/cifar10/cifar-10-binary.tar.gz.part"
    assert data.startswith(part.read_bytes()) and part.stat().st_size > len(data) // 2
    assert_nothing_left(tmp_path / "data")


def test_a_wrong_checksum_names_both_and_leaves_nothing(server, small_cifar10, tmp_path):
    image_set, data = small_cifar10
    server.files["cifar-10-binary.tar.gz"] = bytes(len(data))
    with pytest.raises(UserError) as told:
        prepare.prepare_set(image_set, tmp_path / "data")
    assert hashlib.sha256(bytes(len(data))).hexdigest() in str(told.value)
    assert hashlib.sha256(data).hexdigest() in str(told.value)
    assert list((tmp_path / "data/downloads/cifar10").iterdir()) == []
    assert_nothing_left(tmp_path / "data")


def test_other_addresses_are_tried_before_a_pause(tmp_path, monkeypatch):
    tried = []

    def fetch(url, archive, part):
        tried.append(url)
        if len(tried) < 4:
            raise ConnectionError("reset")
        part.write_bytes(b"data")

    monkeypatch.setattr(download, "_fetch", fetch)
    archive = download.Archive(("a", "b"), hashlib.sha256(b"data").hexdigest(), 4)
    assert download.download(archive, tmp_path).read_bytes() == b"data"
    assert tried == ["a", "b", "a", "b"]


def test_a_missing_page_is_told_at_once_and_another_address_helps(server, tmp_path):
    server.files = {"file": b"data"}
    urls = (server.url + "gone", server.url + "file")
    archive = download.Archive(urls[:1], hashlib.sha256(b"data").hexdigest(), 4)
    with pytest.raises(download.DownloadError, match="HTTP status 404"):
        download.download(archive, tmp_path)
    assert len(server.ranges) == 1
    archive = dataclasses.replace(archive, urls=urls)
    assert download.download(archive, tmp_path).read_bytes() == b"data"


def test_a_page_of_another_size_is_no_download(server, small_cifar10, tmp_path):
    server.files["cifar-10-binary.tar.gz"] = b"<html>log in first</html>"
    with pytest.raises(UserError, match="the server offers 25 bytes, the official file has"):
        prepare.prepare_set(small_cifar10[0], tmp_path / "data")
    assert list((tmp_path / "data/downloads/cifar10").iterdir()) == []


def test_no_network_is_told_with_what_to_do(server, tmp_path):
    files, _ = mnist_files()
    image_set = served(server, "mnist", files)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        host = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    dead = tuple(dataclasses.replace(a, urls=(host + a.filename,)) for a in image_set.archives)
    image_set = dataclasses.replace(image_set, archives=dead)
    with pytest.raises(UserError, match="Connection refused") as told:
        prepare.prepare_set(image_set, tmp_path)
    message, folder = str(told.value), tmp_path / "downloads/mnist"
    assert all(archive.urls[0] in message for archive in dead) and "\n" not in message
    assert f"put it into {folder} and run the same command again" in message
    assert message.endswith("or give it to scripts/prepare_data.py mnist --archive")
    for name, data in files.items():  # the advice works
        (folder / name).write_bytes(data)
    assert len(read("mnist", prepare.prepare_set(image_set, tmp_path).parents[1], "test")) == 10


# Archives that are not what they should be


LABELS = "t10k-labels-idx1-ubyte.gz"
MNIST, _ = mnist_files()


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("cifar10", {"data_batch_3.bin": None}, "it lacks data_batch_3.bin"),
        ("cifar10", {"data_batch_2.bin": bytes(5000)}, "data_batch_2.bin has 5,000 bytes"),
        ("cifar10", {"test_batch.bin": b"\x0a" + bytes(3072)}, "has the label 10"),
        ("cifar10", {"copy/data_batch_1.bin": b""}, "holds data_batch_1.bin twice"),
        ("mnist", {"t10k-images-idx3-ubyte.gz": idx(np.zeros((10, 32, 32), np.uint8))}, "shape"),
        ("mnist", {LABELS: None}, f"lacks {LABELS}"),
        ("mnist", {LABELS: idx(np.zeros(9, np.uint8))}, r"the shape \(9,\)"),
        ("mnist", {LABELS: idx(np.full(10, 11, np.uint8))}, "has the label 11"),
        ("mnist", {LABELS: gzip.compress(gzip.decompress(MNIST[LABELS])[:-1])}, "promises 18"),
        ("mnist", {LABELS: gzip.compress(b"text")}, "no idx file"),
        ("mnist", {LABELS: MNIST[LABELS][:20]}, "may be cut short"),
        ("eurosat", {"Forest_1.jpg": None, "Forest_2.jpg": None}, "no <class>.* for Forest$"),
        ("eurosat", {"River_1.jpg": jpeg((65, 64))}, r"River_1.jpg is \(64, 65\) RGB"),
        ("eurosat", {"River_1.jpg": jpeg()[:2000]}, "River_1.jpg is no readable JPEG"),
    ],
)
def test_an_archive_with_wrong_content_is_told(tmp_path, name, changes, sentence):
    members = {"cifar10": cifar10_members(2)[0], "mnist": MNIST, "eurosat": eurosat_members()}[name]
    for suffix, content in changes.items():
        member = next((key for key in members if key.endswith(suffix)), suffix)
        members = members | {member: content}
    members = {member: content for member, content in members.items() if content is not None}
    make_zip(tmp_path / "archive", members)
    assert_refused(name, tmp_path / "archive", sentence)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[500] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "make", "sentence"),
    [
        (cut, make_tar, "may be cut short"),
        (cut, make_zip, "no readable archive"),
        (flip, make_zip, "cannot be read.*CRC"),
        (lambda path: path.write_text("text" * 100), make_tar, "no readable archive"),
        (lambda path: path.write_bytes(b""), make_tar, "no readable archive"),
        (lambda path: path.unlink(), make_tar, "does not exist"),
    ],
)
def test_a_damaged_archive_is_told(tmp_path, damage, make, sentence):
    damage(make(tmp_path / "archive", cifar10_members(2)[0]))
    assert_refused("cifar10", tmp_path / "archive", sentence)


def assert_refused(name, archive, sentence):
    data = archive.parent / "data"
    with pytest.raises(UserError, match=sentence) as told:
        prepare.prepare(name, data, archive)
    assert str(archive) in str(told.value) and "\n" not in str(told.value)
    assert_nothing_left(data)


def test_absurd_sizes_are_refused(tmp_path, monkeypatch):
    info = tarfile.TarInfo("data_batch_1.bin")
    info.size = 1 << 40  # a tar header may promise what the file does not hold
    (tmp_path / "tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(UserError, match="is refused: it holds more than"):
        prepare.prepare("cifar10", tmp_path / "data", tmp_path / "tar")
    monkeypatch.setattr(parsers, "MAX_BYTES", 40_000)
    bomb = make_zip(tmp_path / "bomb", MNIST | {LABELS: idx(np.zeros(100_000, np.uint8))})
    with pytest.raises(UserError, match="has 40,000 bytes, its header promises 100,008"):
        prepare.prepare("mnist", tmp_path / "data", bomb)


def test_members_never_become_paths_and_links_are_not_followed(tmp_path):
    members, _ = cifar10_members()
    hostile = make_tar(tmp_path / "tar", {f"../../{name}": data for name, data in members.items()})
    prepare.prepare("cifar10", tmp_path / "a/b/data", hostile)
    assert_cifar10_is_there(tmp_path / "a/b/data")
    assert {path.name for path in tmp_path.iterdir()} == {"tar", "a"}
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in members.items():
        (folder / Path(name).name).write_bytes(data)
    (folder / "test_batch.bin").rename(tmp_path / "secret")
    (folder / "test_batch.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="it lacks test_batch.bin"):
        prepare.prepare("cifar10", tmp_path / "data", folder)


# Interrupted and simultaneous preparations


def run(code, **options):
    code = textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **options)


def test_an_error_while_writing_leaves_nothing(tmp_path, monkeypatch):
    archive = make_cifar10(tmp_path / "archive.tar.gz")
    encode, calls = writer.encode, []

    def full(image):
        calls.append(1)
        if len(calls) > 110:  # in the second split
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(image)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "encode", full)
        with pytest.raises(UserError, match="cannot be prepared in .*No space left on device"):
            prepare.prepare("cifar10", tmp_path / "data", archive)
    assert_nothing_left(tmp_path / "data")
    prepare.prepare("cifar10", tmp_path / "data", archive)
    assert_cifar10_is_there(tmp_path / "data")


def test_a_killed_preparation_leaves_no_set(tmp_path):
    archive, data = make_cifar10(tmp_path / "archive.tar.gz"), tmp_path / "data"
    process = run(f"""
        import os, signal
        from vit_jax.data import prepare
        from vit_jax.data.prepare import writer
        encode, calls = writer.encode, []
        def kill(image):
            calls.append(1)
            if len(calls) > 110:  # the first split is on disk
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(image)
        writer.encode = kill
        prepare.prepare("cifar10", {str(data)!r}, {str(archive)!r})
    """)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert list(data.glob(".prepare-*/**/*train.array_record*")), "killed before anything was there"
    assert not (data / "cifar10").exists()
    prepare.prepare("cifar10", data, archive)
    assert_cifar10_is_there(data)
    assert {path.name for path in data.iterdir()} == {"cifar10", ".prepare-cifar10.lock"}


def test_what_a_killed_process_wrote_is_not_used(tmp_path):
    other = make_cifar10(tmp_path / "other.tar.gz", per_batch=1)
    left = prepare.prepare("cifar10", tmp_path / "other", other).parents[1]
    left.rename(tmp_path / ".prepare-cifar10")
    prepare.prepare("cifar10", tmp_path, make_cifar10(tmp_path / "archive.tar.gz"))
    assert_cifar10_is_there(tmp_path)


def test_tensorflow_is_not_imported(tmp_path):
    archive = make_cifar10(tmp_path / "archive.tar.gz", per_batch=1)
    process = run(f"""
        import sys
        from vit_jax.data import prepare
        prepare.prepare("cifar10", {str(tmp_path)!r}, {str(archive)!r})
        assert "tensorflow" not in sys.modules
    """)
    assert process.wait(timeout=60) == 0


def test_the_second_of_two_processes_waits(tmp_path):
    archive = make_cifar10(tmp_path / "archive.tar.gz")
    with (tmp_path / ".prepare-cifar10.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = run(
            f"""
            from vit_jax.data import prepare
            prepare.prepare("cifar10", {str(tmp_path)!r}, {str(archive)!r})
            """,
            stdout=subprocess.PIPE,
        )
        with process:
            assert process.stdout is not None
            assert "waiting for another process" in process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=1.5)
            first = prepare.prepare("cifar10", tmp_path / "first", archive).parent
            first.rename(tmp_path / "cifar10")
            before = (tmp_path / "cifar10/3.0.2/features.json").stat().st_ino
            fcntl.flock(file, fcntl.LOCK_UN)
            assert "is prepared" in process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert (tmp_path / "cifar10/3.0.2/features.json").stat().st_ino == before


# The command line


def test_the_command_prepares_from_anywhere(tmp_path):
    archive = make_zip(tmp_path / "EuroSAT_RGB.zip", eurosat_members())
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/prepare_data.py", "eurosat", "--archive", archive],
        cwd=tmp_path,
        env=os.environ | {"TFDS_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert prepare.find_prepared("eurosat", tmp_path / "data")
    assert "Warning" not in done.stderr
    assert len(done.stdout.splitlines()) == 2  # the note and where it is


def test_mistakes_are_told_in_a_line(tmp_path, capsys, monkeypatch):
    status = prepare_data.main(["mnist", "--archive", "absent", "--data_dir", str(tmp_path)])
    assert status == 1
    assert capsys.readouterr().err == "error: the archive absent does not exist\n"
    with pytest.raises(UserError, match="'cifar11': it can be one of cifar10, mnist, eurosat"):
        prepare.prepare("cifar11", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be prepared in"):
        prepare.prepare("cifar10", tmp_path / "file")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert prepare.default_data_dir() == Path.home() / "tensorflow_datasets"
