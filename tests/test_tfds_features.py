"""TFDS datasets of every kind of feature, and of TFRecord files, without TensorFlow."""

import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_datasets import settings, write_tfds
from tiny_images import encode, grey, png16, tfds_config

from vit_jax.data import decoded, load_data
from vit_jax.data.sources import open_source
from vit_jax.data.splits import all_splits, make_splits, only_split
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.storage import run_folder

features = tfds.features


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


# splits


def test_a_dataset_for_tests_only_is_evaluated_whole(tmp_path):
    kinds = {"image": IMAGES["uint8"][0], "label": features.ClassLabel(names=["a", "b"])}
    examples = [{"image": IMAGES["uint8"][1], "label": i % 2} for i in range(20)]
    write_tfds(tmp_path, kinds, {"test": examples})
    config = tfds_config(tmp_path)
    source = open_source(config, min_classes=1)
    assert only_split(source) == "test" and [len(one) for one in all_splits(source, config)] == [20]
    with pytest.raises(UserError, match="Unknown split 'train'"):
        make_splits(open_source(config), config)


# features of TFDS


def bits_of(array):
    """Encode float32 [h, w, 1] as TFDS does: the bits of a float are a pixel in RGBA."""
    return encode(np.ascontiguousarray(array).view(np.uint8))


RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
IMAGES = {
    "uint8": (features.Image(shape=(8, 8, 1)), encode(RAMP[..., 0])),
    "uint16": (
        features.Image(shape=(8, 8, 1), dtype=np.uint16),
        png16(RAMP[..., 0].astype(np.uint16) * 16),
    ),
    "float32": (
        features.Image(shape=(8, 8, 1), dtype=np.float32),
        bits_of(RAMP.astype(np.float32) / 255),
    ),
    "tensor": (features.Tensor(shape=(8, 8, 1), dtype=np.uint8), RAMP.flatten().tolist()),
    "float tensor": (
        features.Tensor(shape=(8, 8), dtype=np.float32),
        (RAMP / 255).flatten().tolist(),
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_every_image_feature_of_tfds_is_read(tmp_path, mesh, capsys, kind):
    feature, value = IMAGES[kind]
    kinds = {"photo": feature, "label": features.ClassLabel(names=["a", "b"])}
    examples = [{"photo": value, "label": i % 2} for i in range(20)]
    write_tfds(tmp_path, kinds, {"train": examples})
    source = open_source(tfds_config(tmp_path, image_key="photo", channels=1))
    image, label = source.examples("train").read([3])[0]
    assert label == 1 and image.dtype == np.uint8
    if kind == "uint16":  # the largest level is 4032
        assert source.level_range == (0, 4095)
    assert abs(image.astype(int) - RAMP).max() <= 1
    load_data(tfds_config(tmp_path, image_key="photo", channels=1), mesh)
    assert "transparent" not in capsys.readouterr().out


def test_swapped_labels_between_the_sampled_examples_are_noticed(tmp_path, mesh):
    feature, value = IMAGES["uint8"]
    kinds = {"image": feature, "label": features.ClassLabel(names=["a", "b"])}
    found = []
    for folder, changed in (("one", []), ("two", [2, 3])):
        rows = [{"image": value, "label": i % 2 ^ (i in changed)} for i in range(40)]
        splits = {"train": rows, "validation": rows[20:28], "test": rows[-8:]}
        write_tfds(tmp_path / folder, kinds, splits)
        found.append(load_data(tfds_config(tmp_path / folder, channels=1), mesh).fingerprint)
    assert found[0]["checksum"] == found[1]["checksum"]
    assert not run_folder.is_same_data(*found)
    assert run_folder.is_same_data({k: v for k, v in found[0].items() if k != "files"}, found[1])


LABELS = {
    "unnamed": (features.ClassLabel(num_classes=3), [0, 2, 1, 0], ["0", "1", "2"]),
    "undefined": (features.ClassLabel(), [0, 2, 1, 0], ["0", "1", "2"]),
    "integers": (features.Scalar(np.int64), [7, 30, 9, 7], ["7", "9", "30"]),
    "text": (features.Text(), [b"bee", b"cow", b"ant", b"bee"], ["ant", "bee", "cow"]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_every_label_feature_of_tfds_is_read(tmp_path, kind):
    feature, labels, names = LABELS[kind]
    kinds = {"image": features.Image(shape=(8, 8, 3)), "coarse_label": feature}
    examples = [{"image": encode(grey(i)), "coarse_label": labels[i % 4]} for i in range(40)]
    write_tfds(tmp_path, kinds, {"train": examples, "test": examples[:3]})
    config = tfds_config(tmp_path, label_key="coarse_label")
    source = open_source(config)
    assert source.class_names == names
    for split, count in (("train", 40), ("test", 3)):
        read_labels = [label for _, label in source.examples(split).read(range(count))]
        numbers = [0, 2, 1, 0] if kind in ("unnamed", "undefined", "integers") else [1, 2, 0, 1]
        assert read_labels == (numbers * 10)[:count] == source.examples(split).labels.tolist()


@pytest.mark.parametrize(
    ("key", "feature"),
    [
        ("label", features.Sequence(features.ClassLabel(num_classes=3))),
        ("label", features.Tensor(shape=(3,), dtype=np.int64)),
        ("label", features.Scalar(np.float32)),
        ("label", features.BBoxFeature()),
        ("image", features.Tensor(shape=(8, 8, 13), dtype=np.float32)),
        ("image", features.Tensor(shape=(3, 8, 8), dtype=np.uint8)),
        ("image", features.Sequence(features.Image(shape=(8, 8, 3)))),
        ("image", features.Text()),
    ],
)
def test_other_features_of_tfds_are_refused(tmp_path, key, feature):
    kinds = {"image": features.Image(shape=(8, 8, 3)), "label": features.Scalar(np.int64)}
    write_tfds(tmp_path, kinds | {key: feature}, {"train": []})
    with pytest.raises(UserError, match=f"data.{key}_key='{key}' is .*; its features are image "):
        open_source(tfds_config(tmp_path))


def test_a_missing_feature_of_tfds_is_refused(tmp_path):
    write_tfds(tmp_path, NAMED, {"train": TWENTY})
    with pytest.raises(UserError, match="data.label_key='fine' is missing; its features are"):
        open_source(tfds_config(tmp_path, label_key="fine"))


# TFRecord

NAMED = {
    "image": features.Image(shape=(8, 8, 3)),
    "label": features.ClassLabel(names=["a", "b"]),
}
TWENTY = [{"image": encode(grey(i)), "label": i % 2} for i in range(20)]


def test_tfrecord_files_are_read_without_tensorflow(tmp_path):
    write_tfds(tmp_path, NAMED, {"train": TWENTY, "test": TWENTY[:5]})
    code = f"""
        import sys
        from vit_jax.config import get_config
        from vit_jax.data.sources import open_source
        config = get_config().data
        config.name, config.dir, config.image_size = "shapes", {str(tmp_path)!r}, 8
        source = open_source(config)
        for split in ("train", "train[5:9]", "test"):
            examples = source.examples(split)
            found = examples.read(range(len(examples)))
            print([int(image[0, 0, 0]) for image, _ in found], examples.labels.tolist())
        print(source.overlap("train[:5]", "train[4:]"), source.overlap("train[:5]", "train[5:]"))
        assert "tensorflow" not in sys.modules
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout
    assert lines.splitlines() == [
        f"{list(range(20))} {[0, 1] * 10}",
        f"{list(range(5, 9))} {[1, 0] * 2}",
        f"{list(range(5))} {[0, 1, 0, 1, 0]}",
        "True False",
    ]


def test_another_image_key_is_not_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "SLOW_SECONDS", 0.0)
    kind = features.Image(shape=(8, 8, 1))
    both = {"left": kind, "right": kind, "label": features.ClassLabel(names=["a", "b"])}
    examples = [{"left": encode(grey(10)), "right": encode(grey(90)), "label": i} for i in (0, 1)]
    write_tfds(tmp_path, both, {"train": examples})
    for key, level in (("left", 10), ("right", 90)):
        images, _ = open_source(tfds_config(tmp_path, image_key=key)).examples("train").load_all(1)
        assert (images == level).all()


def test_damaged_tfrecord_files_are_refused(tmp_path):
    folder = write_tfds(tmp_path, NAMED, {"train": TWENTY})
    (path,) = folder.glob("*.tfrecord*")
    whole = path.read_bytes()
    second = 16 + struct.unpack("<Q", whole[:8])[0]
    damaged = whole[: second + 1] + b"\xff" + whole[second + 2 :]
    for content, message in (
        (damaged, f"is damaged or cut off at byte {second}"),
        (whole[:-5], "is damaged or cut off at byte"),
        (whole[:second], "has 1 records instead of 20"),
        (b"", "has 0 records instead of 20"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_source(tfds_config(tmp_path)).examples("train")


# splits and datasets that cannot be read


def test_unlabelled_and_empty_splits_of_tfds_are_refused(tmp_path):
    unlabelled = [example | {"label": -1} for example in TWENTY]
    write_tfds(tmp_path, NAMED, {"train": TWENTY, "test": unlabelled, "validation": []})
    config = tfds_config(tmp_path)
    source = open_source(config)
    with pytest.raises(UserError, match="'validation' .* is empty: set data.val_split=hold_out"):
        make_splits(source, config)
    with pytest.raises(UserError, match="'test' .* no labels: set data.test_split=hold_out"):
        source.examples("test").read([0])
    config.update(val_split="hold_out", test_split="hold_out")
    assert len(make_splits(source, config).test) == 4


def damage(folder):
    (folder / "features.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (damage, {}, "data.name=shapes in .* cannot be read"),
        (lambda folder: (folder / "features.json").unlink(), {}, "has no features.json: prepare"),
        (None, {"name": "shapes:2.0.0"}, "set data.name to one that is there: shapes:1.0.0"),
        (None, {"dir": "shapes/1.0.0"}, "of the dataset itself: set data.dir=.*"),
        (None, {"dir": "shapes"}, "of the dataset itself: set data.dir=.*"),
        (None, {"name": "circles"}, "prepare it there with TFDS"),
    ],
)
def test_a_dataset_that_is_not_found_is_explained(tmp_path, change, keys, message):
    folder = write_tfds(tmp_path, NAMED, {"train": TWENTY})
    if change:
        change(folder)
    keys = {"name": "shapes"} | keys | {"dir": str(tmp_path / keys.get("dir", "."))}
    with pytest.raises(UserError, match=message):
        open_source(settings(**keys))
