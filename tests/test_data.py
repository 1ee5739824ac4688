"""Sources, splits and batches: content, sizes and order."""

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from tiny_datasets import cifar10_members, levels, make_cifar10, make_folder, settings

from vit_jax.data import ResidentBatches, StreamingBatches, load_data, prepare, sources
from vit_jax.data.batches import batch_indices
from vit_jax.data.examples import Examples
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits, stratified
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A prepared CIFAR-10 of 100 training and 20 test images, in equal classes."""
    folder = tmp_path_factory.mktemp("tfds")
    archive = make_cifar10(folder / "archive.tar.gz")
    prepare.prepare_dataset(prepare.DATASETS["cifar10"], folder, archive)
    return str(folder)


# Splits


def of_labels(labels):
    """Make examples whose images contain their index."""
    labels = np.asarray(labels, np.int32)
    return Examples(
        len(labels),
        lambda wanted: [(np.full((1, 1, 1), i, np.uint8), labels[i]) for i in wanted],
        lambda: labels,
    )


class SingleSplit:
    class_names, split_names = list("abc"), []

    def __init__(self, labels):
        self.all = of_labels(labels)

    def examples(self, split):
        return self.all


UNEVEN = np.random.default_rng(0).permutation([0] * 100 + [1] * 50 + [2] * 10)


@pytest.mark.parametrize("count", [1, 16, 33, 80, 159])
def test_stratified_counts_are_exact_and_proportional(count):
    chosen, rest = stratified(UNEVEN, count, (7, 1))
    assert len(chosen) == count
    assert sorted([*chosen, *rest]) == list(range(160))
    excess = np.bincount(UNEVEN[chosen], minlength=3) - np.bincount(UNEVEN) * count / 160
    assert abs(excess).max() <= 1
    again, _ = stratified(UNEVEN, count, (7, 1))
    other, _ = stratified(UNEVEN, count, (8, 1))
    assert chosen.tolist() == again.tolist() != other.tolist()


def test_a_subset_of_train_does_not_change_validation_and_test():
    config = settings(val_size=0.1, test_size=32)
    whole = make_splits(SingleSplit(UNEVEN), config)
    assert [len(split) for split in (whole.train, whole.val, whole.test)] == [115, 13, 32]
    config.train_examples = 23
    subset = make_splits(SingleSplit(UNEVEN), config)
    assert len(subset.train) == 23
    assert abs(np.bincount(subset.train.labels) - np.array([100, 50, 10]) * 23 / 160).max() <= 1
    assert set(levels(subset.train)) < set(levels(whole.train))
    config.train_examples, config.examples_per_class = 0, 3
    few = make_splits(SingleSplit(UNEVEN), config)
    assert np.bincount(few.train.labels).tolist() == [3, 3, 3]
    for splits in (subset, few):
        assert levels(splits.val) == levels(whole.val)
        assert levels(splits.test) == levels(whole.test)
    config.split_seed = 1
    assert levels(make_splits(SingleSplit(UNEVEN), config).test) != levels(whole.test)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"val_size": 200}, "data.val_size=200 asks for 200 of 128 training examples"),
        ({"test_size": 160}, "data.test_size=160 asks for 160 of 160"),
        ({"val_size": 0.001}, "asks for 0 of 128"),
        ({"train_examples": 116}, "data.train_examples=116, but only 115 are left"),
        ({"examples_per_class": 8}, "data.examples_per_class=8, but a class has only 7"),
    ],
)
def test_splits_that_are_too_large_or_empty_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        make_splits(SingleSplit(UNEVEN), settings(**keys))


def test_a_class_without_training_examples_is_refused():
    with pytest.raises(UserError, match="data.examples_per_class=1, but a class has only 0"):
        make_splits(SingleSplit(UNEVEN.clip(max=1)), settings(examples_per_class=1))


# TFDS datasets


def tfds_splits(tfds_dir, **keys):
    config = settings(**({"name": "cifar10", "dir": tfds_dir, "image_size": 32} | keys))
    return make_splits(open_source(config), config)


def pixels(examples):
    return [image.tobytes() for image, _ in examples.read(range(len(examples)))]


def test_validation_is_held_out_from_train_and_test_is_the_datasets(tfds_dir):
    splits = tfds_splits(tfds_dir)
    assert splits.class_names[:2] == ["airplane", "automobile"]
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [90, 10, 20]
    assert np.bincount(splits.val.labels).tolist() == [1] * 10
    content = cifar10_members()[1]
    for name, pieces in (("train", [splits.train, splits.val]), ("test", [splits.test])):
        found = [(x.tobytes(), int(y)) for p in pieces for x, y in p.read(range(len(p)))]
        expected = [(x.tobytes(), int(y)) for x, y in zip(*content[name], strict=True)]
        assert sorted(found) == sorted(expected)


def test_split_strings_are_those_of_tfds(tfds_dir):
    splits = tfds_splits(
        tfds_dir, train_split="train[:50%]", val_split="train[50%:75%]", test_split="train[75:]"
    )
    whole = pixels(
        open_source(settings(name="cifar10", dir=tfds_dir, image_size=32)).examples("train")
    )
    assert pixels(splits.train) == whole[:50]
    assert pixels(splits.val) == whole[50:75]
    assert pixels(splits.test) == whole[75:]
    with pytest.raises(UserError, match=r"split 'valid' of cifar10 .*\(it has train, test\)"):
        tfds_splits(tfds_dir, val_split="valid")
    with pytest.raises(UserError, match=r"train\[:0\]"):
        tfds_splits(tfds_dir, val_split="train[:0]")


def test_a_missing_dataset_error_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="'mnist' is not in .*vit-jax prepare-data"):
        open_source(settings(name="mnist", dir=str(tmp_path), download=False))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_dataset_is_prepared(tmp_path, monkeypatch):
    archive = make_cifar10(tmp_path / "archive.tar.gz")
    with_archive = prepare.prepare
    monkeypatch.setattr(
        prepare, "prepare", lambda name, folder: with_archive(name, folder, archive)
    )
    source = open_source(settings(name="cifar10", dir=str(tmp_path)))
    assert len(source.examples("test")) == 20


def test_a_prepared_dataset_is_read_without_tensorflow(tfds_dir):
    code = f"""
        import sys
        from vit_jax.runtime import sharding
        from vit_jax.config import get_config
        from vit_jax.data import load_data
        config = get_config().data
        config.dir, config.device_resident = {tfds_dir!r}, "never"
        next(load_data(config, sharding.make_mesh()).train.train(0, 0, 1, 8))
        assert "tensorflow" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=240)


# Batches: 90 training, 10 validation and 20 test images on eight devices


@pytest.fixture(scope="module")
def kinds(tfds_dir, mesh):
    """The same data, device-resident and streaming."""
    config = settings(name="cifar10", dir=tfds_dir, image_size=32)
    loaded = {}
    for kind in ("always", "never"):
        config.device_resident = kind
        loaded[kind] = load_data(config, mesh)
    return loaded


def fetched(batches):
    return [{name: np.asarray(array) for name, array in batch.items()} for batch in batches]


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_resident_and_streaming_batches_are_the_same(kinds, mesh):
    resident, streaming = kinds["always"], kinds["never"]
    assert isinstance(resident.train, ResidentBatches)
    assert isinstance(streaming.train, StreamingBatches)
    assert resident.class_names == streaming.class_names
    for seed in (0, 1):
        batches = [fetched(data.train.train(seed, 0, 8, 16)) for data in (resident, streaming)]
        assert_equal(*batches)
        first = batches[0][0]
        assert (first["image"].shape, first["image"].dtype) == ((16, 32, 32, 3), np.uint8)
        assert first["label"].dtype == np.int32 and first["mask"].all()
    for split in ("train", "val", "test"):
        assert_equal(*(fetched(getattr(data, split).evaluate(16)) for data in kinds.values()))
    for data in kinds.values():
        image = next(data.train.train(0, 0, 1, 16))["image"]
        assert image.sharding.is_equivalent_to(sharding.split(mesh), image.ndim)


def test_multi_step_batches_have_the_indices_of_single_steps(kinds):
    train = kinds["always"].train  # 90 images, five batches per epoch
    for seed in (3, (3, 4)):
        found = list(train.train_at_once(seed, 4, 154, 16, lambda step: 0 if step == 4 else 10**6))
        assert [count for count, _ in found] == [1, 64, 64, 21]
        assert [int(batches["count"]) for _, batches in found] == [1, 64, 64, 21]
        rows = np.concatenate([batches["rows"][:count] for count, batches in found])
        expected = [batch_indices(seed, step, 90, 16) for step in range(4, 154)]
        np.testing.assert_array_equal(rows, expected)
        assert len({batches["rows"].shape for _, batches in found}) == 1
    assert found[0][1]["image"].shape == (90, 32, 32, 3)


@pytest.mark.parametrize("kind", ["always", "never"])
def test_batches_from_a_later_step_are_the_tail(kinds, kind):
    train = kinds[kind].train
    whole = fetched(train.train(3, 0, 8, 16))  # five batches per epoch
    assert_equal(fetched(train.train(3, 4, 8, 16)), whole[4:])
    assert list(train.train(3, 8, 8, 16)) == []


def test_an_epoch_visits_each_example_at_most_once(kinds):
    batches = fetched(kinds["always"].train.train(0, 0, 10, 16))
    epochs = [
        [image.tobytes() for b in e for image in b["image"]] for e in (batches[:5], batches[5:])
    ]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 80  # of 90: the incomplete batch is dropped
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("kind", ["always", "never"])
@pytest.mark.parametrize("batch_size", [8, 12, 256])
def test_evaluation_sees_every_example_once(kinds, tfds_dir, kind, batch_size):
    expected = tfds_splits(tfds_dir).val
    batches = fetched(kinds[kind].val.evaluate(batch_size))
    seen = [
        (image.tobytes(), int(label))
        for batch in batches
        for image, label, real in zip(batch["image"], batch["label"], batch["mask"], strict=True)
        if real
    ]
    rows = sum(len(batch["mask"]) for batch in batches)
    print(f"{len(seen)} of {len(expected)} examples in {rows} rows on {jax.device_count()} devices")
    assert seen == [(x.tobytes(), int(y)) for x, y in expected.read(range(len(expected)))]
    assert jax.device_count() == 8 and all(len(batch["mask"]) % 8 == 0 for batch in batches)


def test_a_dataset_that_does_not_fit_is_streamed(tfds_dir, mesh, capsys):
    config = settings(name="cifar10", dir=tfds_dir, image_size=32)
    for gib, mode in ((1.0, "device-resident"), (1e-6, "streamed")):
        config.device_resident_max_gib = gib
        load_data(config, mesh)
        line = "bird, cat, deer, ...), 90 train, 10 val, 20 test examples, " + mode
        assert line in capsys.readouterr().out


def test_the_digits_need_no_files(mesh):
    given, (pixels, labels) = load_digits(), sources.read_digits()
    np.testing.assert_array_equal(pixels, np.rint(given.images * (255 / 16)))
    np.testing.assert_array_equal(labels, given.target)
    data = load_data(settings(name="digits", channels=1), mesh)
    assert data.class_names == [str(digit) for digit in range(10)]
    assert len(data.train) + len(data.val) + len(data.test) == 1797


def test_splits_that_share_examples_are_refused(tfds_dir, tmp_path):
    leak = settings(name="cifar10", dir=tfds_dir, val_split="train[:10%]")
    with pytest.raises(UserError, match="train_split='train' and data.val_split=.* share examples"):
        make_splits(open_source(leak), leak)
    disjoint = settings(
        name="cifar10", dir=tfds_dir, train_split="train[10%:]", val_split="train[:10%]"
    )
    splits = make_splits(open_source(disjoint), disjoint)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (90, 10, 20)
    make_folder(tmp_path, ("train", "test"))
    twice = settings(name="folder", dir=str(tmp_path), val_split="test/")
    with pytest.raises(UserError, match="share examples"):
        make_splits(open_source(twice), twice)


def test_split_names_for_a_dataset_without_splits_are_refused():
    config = settings(name="digits", val_split="valid")
    with pytest.raises(
        UserError, match="data.val_split='valid', but digits has no predefined splits"
    ):
        make_splits(open_source(config), config)
