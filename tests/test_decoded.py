"""Decoded images are cached, and the cache is invalidated when the data change."""

import os
import pathlib
import resource

import numpy as np
import pytest
from PIL import Image
from tiny_configs import make_config
from tiny_datasets import make_cifar10

from vit_jax.config import get_config
from vit_jax.data import decoded, folders, load_data, prepare
from vit_jax.data.examples import Examples
from vit_jax.data.sources import open_source
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.storage import run_folder

SIZE = 16
NUM_IMAGES = 40  # more than the fingerprint samples


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of a test, without the lower limit on decoding time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "SLOW_SECONDS", 0.0)
    return tmp_path / "cache" / "vit_jax" / "images"


@pytest.fixture
def decodings(monkeypatch):
    """The sizes of the datasets that were fully decoded."""
    sizes, decode_all = [], Examples.decode_all

    def count(self, num_threads):
        sizes.append(len(self))
        return decode_all(self, num_threads)

    monkeypatch.setattr(Examples, "decode_all", count)
    return sizes


@pytest.fixture
def folder(tmp_path):
    """An image folder whose images differ in a single pixel."""
    for number in range(NUM_IMAGES):
        inside = tmp_path / "images" / "ab"[number % 2]
        inside.mkdir(parents=True, exist_ok=True)
        write(inside / f"{number:02}.bmp", number)
    return tmp_path / "images"


def test_images_are_checked_once_for_unreadable_ones(folder, monkeypatch):
    checked, read = [], folders.read_image
    monkeypatch.setattr(folders, "read_image", lambda *a, **k: checked.append(a) or read(*a, **k))
    config = settings(folder, skip_corrupt=True)
    (folder / "a" / "00.bmp").write_bytes(b"no image")
    for _ in range(2):
        assert len(open_source(config).examples("")) == NUM_IMAGES - 1
    assert len(checked) == NUM_IMAGES + 2  # the unreadable one again
    write(folder / "a" / "00.bmp", 0)
    assert len(open_source(config).examples("")) == NUM_IMAGES


def write(path, level):
    image = Image.new("RGB", (SIZE, SIZE))
    image.putpixel((5, 5), (level, 0, 0))
    image.save(path)


def settings(folder, **keys):
    config = get_config().data
    config.update({"name": "folder", "dir": str(folder), "image_size": SIZE} | keys)
    return config


def load(folder, take=None, **keys):
    """Load images and labels as a new process would."""
    examples = open_source(settings(folder, **keys)).examples("")
    return (examples if take is None else examples.take(np.array(take))).load_all(2)


def levels(arrays):
    return arrays[0][:, 5, 5, 0].tolist()


ALL = [*range(0, NUM_IMAGES, 2), *range(1, NUM_IMAGES, 2)]


def test_the_second_load_decodes_nothing_and_is_bit_identical(folder, cache, decodings, capsys):
    decoded._log_folder.cache_clear()
    first = load(folder)
    assert levels(first) == ALL and first[1].tolist() == [0] * 20 + [1] * 20
    assert f"cached in {cache} for the next start (data.cache_decoded)" in capsys.readouterr().out
    second = load(folder)
    assert decodings == [NUM_IMAGES] and capsys.readouterr().out == ""
    for before, after in zip(first, second, strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


def test_a_tfds_dataset_is_cached_with_its_labels(tmp_path, decodings, monkeypatch):
    written, write_file = [], decoded._write
    monkeypatch.setattr(decoded, "_write", lambda *args: (written.append(1), write_file(*args)))
    archive = make_cifar10(tmp_path / "archive.tar.gz")
    prepare.prepare_dataset(prepare.DATASETS["cifar10"], tmp_path / "tfds", archive)
    config = get_config().data
    config.dir, mesh = str(tmp_path / "tfds"), sharding.make_mesh()

    def load_splits():
        data = load_data(config, mesh)
        batches = [getattr(data, name).evaluate(256) for name in ("train", "val", "test")]
        return data.fingerprint, [np.asarray(x) for split in batches for x in next(split).values()]

    first = load_splits()
    assert sorted(decodings) == [10, 20, 90] and len(written) == 4
    second = load_splits()
    assert len(decodings) == 3 and len(written) == 4 and first[0] == second[0]
    for before, after in zip(first[1], second[1], strict=True):
        np.testing.assert_array_equal(before, after)
    for config.train_split in ("train[:50%]", "train[50%:]") * 2:
        load_splits()
    assert decodings[3:] == [45, 5] * 2 and len(written) == 10
    for config.val_split in ("train[:10]", "train[10:20]") * 2:
        load_splits()
    assert decodings[7:] == [50, 10, 10] and len(written) == 13
    os.utime(next((tmp_path / "tfds").rglob("*-train.array_record*")), ns=(1, 1))
    load_splits()
    assert decodings[10:] == [50, 10, 20] and len(written) == 16


def change_contents(a, b):
    write(a, 99)


def change_only_contents(a, b):
    """Change the contents in place and restore size and date."""
    before = a.stat()
    write(a, 99)
    os.utime(a, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_names(a, b):
    os.utime(a, ns=(1, 1))
    os.utime(b, ns=(1, 1))
    load(a.parent.parent)
    a.rename(a.with_suffix(".x"))
    b.rename(a)
    a.with_suffix(".x").rename(b)


@pytest.mark.parametrize("change", [change_contents, change_only_contents, swap_names])
def test_changed_files_are_decoded_again(folder, change):
    load(folder)
    files = sorted((folder / "a").iterdir())
    change(files[8], files[9])  # neither is in the fingerprint's sample
    expected = list(ALL)
    expected[8:10] = [18, 16] if change is swap_names else [99, 18]
    assert levels(load(folder)) == expected


def test_every_size_subset_and_number_of_channels_is_cached_separately(folder, cache, decodings):
    wanted = [{}, {"take": range(20)}, {"take": range(20, 40)}, {"channels": 1}, {"image_size": 8}]
    first = [load(folder, **keys) for keys in wanted]
    assert len(decodings) == len(list(cache.iterdir())) == len(wanted)
    for keys, before in zip(wanted, first, strict=True):
        np.testing.assert_array_equal(load(folder, **keys)[0], before[0])
    assert len(decodings) == len(wanted)
    assert levels(first[1]) == ALL[:20] and levels(first[2]) == ALL[20:]


def flipped(at):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return damage


DAMAGE = {
    "a pixel": flipped(2000),
    "the labels": flipped(-600),
    "short": lambda path: os.truncate(path, 5000),
    "empty": lambda path: os.truncate(path, 0),
    "foreign": lambda path: path.write_bytes(b"PK\3\4"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_decoded_again_and_replaced(folder, cache, decodings, kind):
    load(folder)
    (path,) = cache.iterdir()
    DAMAGE[kind](path)
    decodings.clear()
    assert levels(load(folder)) == ALL and decodings == [NUM_IMAGES]
    assert levels(load(folder)) == ALL and decodings == [NUM_IMAGES]


def no_folder(cache):
    cache.parent.parent.write_text("a file where the folder should be")


def small_files(cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("hinder", [no_folder, small_files])
def test_a_cache_that_cannot_be_written_changes_nothing(folder, cache, decodings, hinder):
    restore = hinder(cache)
    try:
        assert levels(load(folder)) == levels(load(folder)) == ALL
    finally:
        if restore:
            restore()
    assert decodings == [NUM_IMAGES] * 2
    assert not cache.exists() or not list(cache.iterdir())


def test_without_a_home_directory_only_the_cache_is_missing(folder, monkeypatch):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pathlib.Path, "expanduser", no_home)
    assert levels(load(folder)) == ALL and sharding.compiled_folder() is None


def test_the_least_recently_used_files_are_evicted_first(folder, cache, decodings, monkeypatch):
    def path_of(take):
        before = set(cache.glob("*"))
        load(folder, take=take)
        (path,) = set(cache.glob("*")) - before
        return path

    a, b = path_of(range(0, 20)), path_of(range(1, 21))
    (cache / "left_by_a_kill.part").write_bytes(bytes(a.stat().st_size))
    for number, path in enumerate((cache / "left_by_a_kill.part", a, b)):
        os.utime(path, (number, number))
    load(folder, take=range(0, 20))  # now b is the least recently used
    monkeypatch.setattr(decoded, "FOLDER_BYTES", 2 * a.stat().st_size)
    c = path_of(range(2, 22))
    assert set(cache.iterdir()) == {a, c}


def test_no_cache_if_disabled_fast_large_or_not_the_first_process(folder, cache, monkeypatch):
    assert levels(load(folder, cache_decoded=False)) == ALL
    limits = {"SLOW_SECONDS": 60, "LARGEST_BYTES": 9999, "FREE_FRACTION": 0}
    for name, value in [*limits.items(), ("processes.is_first", lambda: False)]:
        with monkeypatch.context() as patch:
            patch.setattr(f"vit_jax.data.decoded.{name}", value)
            assert levels(load(folder)) == ALL
    assert not cache.exists() or not list(cache.iterdir())


def test_a_run_may_resume_with_another_cache_setting(tmp_path):
    config = make_config()
    run_folder.write_config(tmp_path, config, {}, 20, "base", 0)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config.data.cache_decoded = False
    assert run_folder.read_summary(tmp_path, config, 0) is None
    config.data.split_seed = 1
    with pytest.raises(UserError, match="was trained with data.split_seed=0"):
        run_folder.read_summary(tmp_path, config, 0)


def test_the_digits_are_not_cached(cache):
    config = settings("", name="digits", channels=1)
    load_data(config, sharding.make_mesh())
    assert not cache.exists()
