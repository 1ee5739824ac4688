"""`vit_jax.data.prepare` on official archives, also when interrupted."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from prepared import assert_cifar10_is_prepared, assert_nothing_left, read
from tensorflow_datasets.core import hashing
from tiny_datasets import eurosat_members, make_cifar10, make_tar, make_zip, mnist_files
from tiny_server import served

from vit_jax.cli import prepare_data
from vit_jax.data import prepare
from vit_jax.data.prepare import writer
from vit_jax.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


# Prepared datasets equal the archives


def test_cifar10_is_read_back_exactly(small_cifar10, tmp_path, capfd):
    folder = prepare.prepare_dataset(small_cifar10[0], tmp_path / "data")
    assert folder == tmp_path / "data/cifar10/3.0.2"
    assert_cifar10_is_prepared(tmp_path / "data")
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
    dataset, archive = served(server, "mnist", files), None
    members = {f"MNIST/raw/{name}": data for name, data in files.items()}
    if form == "folder":
        archive = tmp_path / "folder"
        (archive / "MNIST/raw").mkdir(parents=True)
        for name, data in members.items():
            (archive / name).write_bytes(data)
    elif form != "download":
        archive = (make_zip if form == "zip" else make_tar)(tmp_path / form, members)
    prepare.prepare_dataset(dataset, tmp_path / "data", archive)
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
    # TFDS orders a split by a hash of each key and the split's name: other keys would change the
    # images of a subsplit.
    prepare.prepare("cifar10", tmp_path, make_cifar10(tmp_path / "archive.tar.gz"))
    expected = sorted(range(100), key=hashing.Hasher("train").hash_key)
    ids = [example["id"].decode() for example in read("cifar10", tmp_path, "train")]
    assert ids == [f"train_{index:05d}" for index in expected]


def test_a_prepared_dataset_is_not_prepared_again(tmp_path, capsys):
    archive = make_cifar10(tmp_path / "archive.tar.gz")
    folder = prepare.prepare("cifar10", tmp_path, archive)
    assert "archive.tar.gz is not the official file" in capsys.readouterr().out
    assert_cifar10_is_prepared(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    archive.unlink()
    assert prepare.prepare("cifar10", tmp_path, archive) == folder
    assert capsys.readouterr().out == f"cifar10 3.0.2 is already prepared in {folder}\n"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("change", ["another format", "a shard is missing"])
def test_an_incomplete_dataset_is_refused_and_unchanged(tmp_path, change):
    archive = make_cifar10(tmp_path / "archive.tar.gz")
    folder = prepare.prepare("cifar10", tmp_path, archive)
    info = folder / "dataset_info.json"
    if change == "another format":
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    else:
        (folder / "cifar10-test.array_record-00000-of-00001").unlink()
    files = sorted(folder.iterdir())
    with pytest.raises(UserError, match="not a complete array_record dataset: move it away"):
        prepare.prepare("cifar10", tmp_path, archive)
    assert sorted(folder.iterdir()) == files


# Interrupted and concurrent preparations


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
    assert_cifar10_is_prepared(tmp_path / "data")


def test_a_killed_preparation_leaves_no_dataset(tmp_path):
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
    assert process.wait(timeout=240) == -signal.SIGKILL
    assert list(data.glob(".prepare-*/**/*train.array_record*")), "killed before anything was there"
    assert not (data / "cifar10").exists()
    prepare.prepare("cifar10", data, archive)
    assert_cifar10_is_prepared(data)
    assert {path.name for path in data.iterdir()} == {"cifar10", ".prepare-cifar10.lock"}


def test_output_of_a_killed_process_is_not_used(tmp_path):
    other = make_cifar10(tmp_path / "other.tar.gz", per_batch=1)
    left = prepare.prepare("cifar10", tmp_path / "other", other).parents[1]
    left.rename(tmp_path / ".prepare-cifar10")
    prepare.prepare("cifar10", tmp_path, make_cifar10(tmp_path / "archive.tar.gz"))
    assert_cifar10_is_prepared(tmp_path)


def test_tensorflow_is_not_imported(tmp_path):
    archive = make_cifar10(tmp_path / "archive.tar.gz", per_batch=1)
    process = run(f"""
        import sys
        from vit_jax.data import prepare
        prepare.prepare("cifar10", {str(tmp_path)!r}, {str(archive)!r})
        assert "tensorflow" not in sys.modules
    """)
    assert process.wait(timeout=240) == 0


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
            assert "is prepared" in process.communicate(timeout=240)[0]
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
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert len(read("eurosat", tmp_path / "data", "train")) == 20
    assert "Warning" not in done.stderr
    assert len(done.stdout.splitlines()) == 2  # the note and the path


def test_mistakes_are_single_line_errors(tmp_path, capsys, monkeypatch):
    status = prepare_data.main(["mnist", "--archive", "absent", "--data_dir", str(tmp_path)])
    assert status == 1
    assert capsys.readouterr().err == "error: the archive absent does not exist\n"
    with pytest.raises(UserError, match="'cifar11': use one of cifar10, mnist, eurosat"):
        prepare.prepare("cifar11", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be prepared in"):
        prepare.prepare("cifar10", tmp_path / "file")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert prepare.default_data_dir() == Path.home() / "tensorflow_datasets"
