"""Sources, splits and batches: what is read, how it is divided, and in which order it comes."""

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny_sets import cifar10_members, make_cifar10

from vit_jax import sharding
from vit_jax.config import get_config
from vit_jax.data import ResidentBatches, StreamingBatches, load_data, prepare, sources
from vit_jax.data.sources import IMAGE_SUFFIXES, Examples, open_source
from vit_jax.data.splits import make_splits, stratified
from vit_jax.errors import UserError

CLASSES = ("ant", "bee", "cat")


def settings(**keys):
    """The settings `config.data`, with some of them changed; 8x8 pixels unless told."""
    config = get_config().data
    config.update({"image_size": 8, "num_threads": 2} | keys)
    return config


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A prepared CIFAR-10 of 100 training and 20 test images, in equal classes."""
    folder = tmp_path_factory.mktemp("tfds")
    archive = make_cifar10(folder / "archive.tar.gz")
    prepare.prepare_set(prepare.SETS["cifar10"], folder, archive)
    return str(folder)


def make_folder(root, parts=("",), per_class=4, classes=CLASSES):
    """Writes `per_class` images a class; the grey level of each is unique in the folder."""
    level = 0
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(per_class):
                path = root / part / name / f"{number}.png"
                Image.new("RGB", (8, 8), (level, level, level)).save(path)
                level += 1
    return root


def levels(examples):
    """The grey level of each image: its identity."""
    return [int(image[0, 0, 0]) for image, _ in examples.read(range(len(examples)))]


# Image folders


def test_a_split_folder_keeps_its_parts(tmp_path):
    make_folder(tmp_path, ("train", "valid", "test"))
    splits = make_splits(
        source := open_source(settings(name="folder", dir=str(tmp_path))), settings()
    )
    assert splits.class_names == list(CLASSES)
    assert sorted(source.split_names) == ["test", "train", "valid"]
    assert levels(splits.train) == list(range(12))
    assert levels(splits.val) == list(range(12, 24))
    assert levels(splits.test) == list(range(24, 36))
    assert splits.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_flat_folder_is_divided(tmp_path):
    make_folder(tmp_path, per_class=10)
    config = settings(name="folder", dir=str(tmp_path))
    splits = make_splits(open_source(config), config)
    parts = [splits.train, splits.val, splits.test]
    assert [len(part) for part in parts] == [22, 2, 6]  # a fifth, then a tenth of the rest
    assert sorted(sum(map(levels, parts), [])) == list(range(30))
    for part in parts:
        assert [level // 10 for level in levels(part)] == part.labels.tolist()


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_format_is_read(tmp_path, suffix):
    make_folder(tmp_path)
    path = tmp_path / f"ant/x{suffix.upper()}"
    Image.new("RGB", (20, 12), (250, 130, 10)).save(path)
    (tmp_path / "ant/notes.txt").write_text("no image")
    examples = open_source(settings(name="folder", dir=str(tmp_path))).examples("")
    assert len(examples) == 13
    image, label = examples.read([4])[0]
    assert (image.shape, image.dtype, label) == ((8, 8, 3), np.uint8, 0)
    np.testing.assert_allclose(
        image.astype(int), np.broadcast_to((250, 130, 10), image.shape), 0, 6
    )


def palette():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


MODES = {
    "greyscale": (Image.new("L", (8, 8), 77), (77, 77, 77)),
    "palette": (palette(), (200, 100, 50)),
    "RGBA": (Image.new("RGBA", (8, 8), (10, 20, 30, 255)), (10, 20, 30)),
    "CMYK": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
    "16 bits": (Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)), (100, 100, 100)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_or_grey(tmp_path, mode):
    original, colour = MODES[mode]
    make_folder(tmp_path)
    suffix = "jpg" if mode == "CMYK" else "png"
    original.save(tmp_path / f"ant/x.{suffix}")
    config = settings(name="folder", dir=str(tmp_path))
    image, _ = open_source(config).examples("").read([4])[0]
    np.testing.assert_allclose(image.astype(int), np.broadcast_to(colour, image.shape), 0, 4)
    config.channels = 1
    image, _ = open_source(config).examples("").read([4])[0]
    grey = np.dot(colour, (0.299, 0.587, 0.114))
    np.testing.assert_allclose(image.astype(float), np.full((8, 8, 1), grey), 0, 4)


def test_a_transparent_palette_is_read_without_a_warning(tmp_path):
    make_folder(tmp_path)
    palette().save(tmp_path / "ant/x.png", transparency=b"\x80\xff")
    image, _ = open_source(settings(name="folder", dir=str(tmp_path))).examples("").read([4])[0]
    assert image[0, 0].tolist() == [200, 100, 50]


def test_an_image_is_turned_upright_and_cropped_in_its_centre(tmp_path):
    make_folder(tmp_path)
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:8], pixels[:, 8:12] = 100, 200  # the left and right half of the centre
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: a quarter turn clockwise shows it upright
    Image.fromarray(pixels).save(tmp_path / "ant/x.png", exif=exif)
    image, _ = open_source(settings(name="folder", dir=str(tmp_path))).examples("").read([4])[0]
    assert (image[:4] == 100).all() and (image[4:] == 200).all()  # left has become top


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "ant/._0.png").write_text("what macOS writes beside 0.png")
    (tmp_path / "ant/folder.png").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "ant/.copies").mkdir()
    (tmp_path / "ant/.copies/0.png").write_bytes((tmp_path / "ant/0.png").read_bytes())
    examples = open_source(settings(name="folder", dir=str(tmp_path))).examples("")
    assert levels(examples) == list(range(12))


def broken_folder(root):
    make_folder(root)
    (root / "bee/1.png").write_bytes((root / "bee/1.png").read_bytes()[:50])
    (root / "cat/0.png").write_text("no image")
    return settings(name="folder", dir=str(root))


@pytest.mark.parametrize("resident", ["always", "never"])
def test_an_unreadable_file_is_named(tmp_path, mesh, resident):
    config = broken_folder(tmp_path)
    config.resident, config.test_size, config.val_size = resident, 1, 1
    with pytest.raises(UserError, match=r"(bee/1|cat/0).png cannot be read as an image"):
        data = load_data(config, mesh)
        for part in (data.train, data.val, data.test):
            list(part.evaluate(8))


def test_unreadable_files_are_skipped_and_counted(tmp_path, capsys):
    config = broken_folder(tmp_path)
    config.skip_corrupt = True
    examples = open_source(config).examples("")
    assert levels(examples) == [0, 1, 2, 3, 4, 6, 7, 9, 10, 11]
    assert examples.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert "skipped 2 unreadable of 12 files" in capsys.readouterr().out
    for path in (tmp_path / "cat").iterdir():
        path.write_text("no image")
    with pytest.raises(UserError, match="cat holds no readable image"):
        open_source(config).examples("")


@pytest.mark.parametrize(
    ("make", "keys", "sentence"),
    [
        (lambda root: (root / "dog").mkdir(), {}, "class folder .*/dog holds no image"),
        (lambda root: None, {"dir": "/absent"}, "data.dir=/absent is not a folder"),
        (lambda root: make_folder(root, ("test",)), {}, "holds test but no folder 'train'"),
        (
            lambda root: make_folder(root, ("train",), classes=["ant"]),
            {},
            "holds fewer than two class folders",
        ),
        (
            lambda root: (make_folder(root, ("train",)), make_folder(root, ("test",), 1, ["ant"])),
            {},
            "differ in their classes: bee, cat",
        ),
    ],
)
def test_a_folder_that_is_no_set_is_told(tmp_path, make, keys, sentence):
    if make(tmp_path) is None:
        make_folder(tmp_path)
    config = settings(**({"name": "folder", "dir": str(tmp_path)} | keys))
    with pytest.raises(UserError, match=sentence):
        make_splits(open_source(config), config)


# Splits


def of_labels(labels):
    """Examples whose images hold their own index."""
    labels = np.asarray(labels, np.int32)
    return Examples(
        len(labels),
        lambda wanted: [(np.full((1, 1, 1), i, np.uint8), labels[i]) for i in wanted],
        lambda: labels,
    )


class OnePiece:
    class_names, split_names = list("abc"), []

    def __init__(self, labels):
        self.all = of_labels(labels)

    def examples(self, split):
        return self.all


UNEVEN = np.random.default_rng(0).permutation([0] * 100 + [1] * 50 + [2] * 10)


@pytest.mark.parametrize("count", [1, 16, 33, 80, 159])
def test_stratified_counts_are_exact_and_in_proportion(count):
    chosen, rest = stratified(UNEVEN, count, (7, 1))
    assert len(chosen) == count
    assert sorted([*chosen, *rest]) == list(range(160))
    share = np.bincount(UNEVEN[chosen], minlength=3) - np.bincount(UNEVEN) * count / 160
    assert abs(share).max() <= 1
    again, _ = stratified(UNEVEN, count, (7, 1))
    other, _ = stratified(UNEVEN, count, (8, 1))
    assert chosen.tolist() == again.tolist() != other.tolist()


def test_a_subset_of_train_leaves_validation_and_test_alone():
    config = settings(val_size=0.1, test_size=32)
    whole = make_splits(OnePiece(UNEVEN), config)
    assert [len(part) for part in (whole.train, whole.val, whole.test)] == [115, 13, 32]
    config.train_examples = 23
    part = make_splits(OnePiece(UNEVEN), config)
    assert len(part.train) == 23
    assert abs(np.bincount(part.train.labels) - np.array([100, 50, 10]) * 23 / 160).max() <= 1
    assert set(levels(part.train)) < set(levels(whole.train))
    config.train_examples, config.examples_per_class = 0, 3
    few = make_splits(OnePiece(UNEVEN), config)
    assert np.bincount(few.train.labels).tolist() == [3, 3, 3]
    for splits in (part, few):
        assert levels(splits.val) == levels(whole.val)
        assert levels(splits.test) == levels(whole.test)
    config.split_seed = 1
    assert levels(make_splits(OnePiece(UNEVEN), config).test) != levels(whole.test)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"val_size": 200}, "data.val_size=200 asks for 200 of 128 training examples"),
        ({"test_size": 160}, "data.test_size=160 asks for 160 of 160"),
        ({"val_size": 0.001}, "asks for 0 of 128"),
        ({"train_examples": 116}, "data.train_examples=116, but only 115 are left"),
        ({"examples_per_class": 8}, "data.examples_per_class=8, but a class has only 7"),
    ],
)
def test_parts_that_are_too_large_or_empty_are_told(keys, sentence):
    with pytest.raises(UserError, match=sentence):
        make_splits(OnePiece(UNEVEN), settings(**keys))


def test_a_class_without_training_examples_is_told():
    with pytest.raises(UserError, match="data.examples_per_class=1, but a class has only 0"):
        make_splits(OnePiece(UNEVEN.clip(max=1)), settings(examples_per_class=1))


# TFDS sets


def tfds_splits(tfds_dir, **keys):
    config = settings(**({"name": "cifar10", "dir": tfds_dir, "image_size": 32} | keys))
    return make_splits(open_source(config), config)


def pixels(examples):
    return [image.tobytes() for image, _ in examples.read(range(len(examples)))]


def test_a_tfds_set_keeps_its_test_part_and_lends_validation(tfds_dir):
    splits = tfds_splits(tfds_dir)
    assert splits.class_names[:2] == ["airplane", "automobile"]
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [90, 10, 20]
    assert np.bincount(splits.val.labels).tolist() == [1] * 10
    content = cifar10_members()[1]
    for split, parts in (("train", [splits.train, splits.val]), ("test", [splits.test])):
        found = [(x.tobytes(), int(y)) for p in parts for x, y in p.read(range(len(p)))]
        expected = [(x.tobytes(), int(y)) for x, y in zip(*content[split], strict=True)]
        assert sorted(found) == sorted(expected)


def test_split_strings_are_taken_at_their_word(tfds_dir):
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


def test_a_missing_set_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="'mnist' is not in .*scripts/prepare_data.py"):
        open_source(settings(name="mnist", dir=str(tmp_path), download=False))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_set_is_prepared(tmp_path, monkeypatch):
    archive = make_cifar10(tmp_path / "archive.tar.gz")
    with_archive = prepare.prepare
    monkeypatch.setattr(
        prepare, "prepare", lambda name, folder: with_archive(name, folder, archive)
    )
    source = open_source(settings(name="cifar10", dir=str(tmp_path)))
    assert len(source.examples("test")) == 20


def test_a_prepared_set_is_read_without_tensorflow(tfds_dir):
    code = f"""
        import sys
        from vit_jax import sharding
        from vit_jax.config import get_config
        from vit_jax.data import load_data
        config = get_config().data
        config.dir, config.resident = {tfds_dir!r}, "never"
        next(load_data(config, sharding.make_mesh()).train.train(0, 0, 1, 8))
        assert "tensorflow" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


# Batches: 90 training, 10 validation and 20 test images on eight devices


@pytest.fixture(scope="module")
def kinds(tfds_dir, mesh):
    """The same data, resident and streaming."""
    config = settings(name="cifar10", dir=tfds_dir, image_size=32)
    loaded = {}
    for kind in ("always", "never"):
        config.resident = kind
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
    for part in ("train", "val", "test"):
        assert_equal(*(fetched(getattr(data, part).evaluate(16)) for data in kinds.values()))
    for data in kinds.values():
        image = next(data.train.train(0, 0, 1, 16))["image"]
        assert image.sharding.is_equivalent_to(sharding.split(mesh), image.ndim)


@pytest.mark.parametrize("kind", ["always", "never"])
def test_a_start_in_the_middle_gives_the_tail(kinds, kind):
    train = kinds[kind].train
    whole = fetched(train.train(3, 0, 8, 16))  # five batches an epoch
    assert_equal(fetched(train.train(3, 4, 8, 16)), whole[4:])
    assert list(train.train(3, 8, 8, 16)) == []


def test_an_epoch_visits_each_example_at_most_once(kinds):
    batches = fetched(kinds["always"].train.train(0, 0, 10, 16))
    epochs = [
        [image.tobytes() for b in e for image in b["image"]] for e in (batches[:5], batches[5:])
    ]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 80  # of 90: the incomplete batch is left out
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


def test_what_does_not_fit_is_streamed(tfds_dir, mesh, capsys):
    config = settings(name="cifar10", dir=tfds_dir, image_size=32)
    for gib, told in ((1.0, "to be held on the device"), (1e-6, "streamed")):
        config.resident_max_gib = gib
        load_data(config, mesh)
        line = "cifar10: 10 classes, 90 train, 10 val, 20 test examples, " + told
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
    apart = settings(
        name="cifar10", dir=tfds_dir, train_split="train[10%:]", val_split="train[:10%]"
    )
    splits = make_splits(open_source(apart), apart)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (90, 10, 20)
    make_folder(tmp_path, ("train", "test"))
    twice = settings(name="folder", dir=str(tmp_path), val_split="test/")
    with pytest.raises(UserError, match="share examples"):
        make_splits(open_source(twice), twice)


def test_split_names_for_a_set_in_one_piece_are_refused():
    config = settings(name="digits", val_split="valid")
    with pytest.raises(UserError, match="data.val_split='valid', but digits comes in one piece"):
        make_splits(open_source(config), config)
