"""Datasets that are met in the field: read correctly, or refused with the reason and a remedy."""

import io
import json
import shutil
import struct
import subprocess
import sys
import textwrap
import unicodedata
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny_configs import make_config
from tiny_datasets import levels, make_folder, settings, write_tfds
from tiny_weights import save_weights

import vit_jax
from vit_jax.cli import evaluate, predict
from vit_jax.data import load_data
from vit_jax.data.images import IMAGE_SUFFIXES, decide_range, read_image
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits
from vit_jax.evaluation.classifier import Classifier
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.storage import run_folder

features = tfds.features


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def folder_config(root, **keys):
    return settings(name="folder", dir=str(root), **keys)


def encode(array, kind="png", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def grey(level):
    return np.full((8, 8, 3), level, np.uint8)


def noise(seed, shape=(8, 8, 3), high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def save_noise(root, classes, count=10, start=0):
    """Write `count` distinct images per class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = Image.fromarray(noise(start + 1000 * label + i))
            image.save(root / name / f"{i}.png")
    return root


def read(root, **keys):
    """Read all images of a flat folder, by path."""
    examples = open_source(folder_config(root, **keys)).examples("")
    return np.stack([image for image, _ in examples.read(range(len(examples)))])


# 1: transparency

SHAPE = np.zeros((8, 8, 4), np.uint8)  # black and opaque on the left, transparent black elsewhere
SHAPE[:, :4, 3] = 255


def transparent(kind):
    if kind in ("RGBA", "LA"):
        return Image.fromarray(SHAPE).convert(kind), {}
    if kind == "PA":
        return Image.fromarray(SHAPE).convert("PA"), {}
    image = Image.fromarray(np.where(SHAPE[..., 3] == 0, 1, 0).astype(np.uint8))
    if kind == "palette":
        image = image.convert("P")
        image.putpalette([0, 0, 0, 0, 0, 0])
    return image, {"transparency": 1}


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "transparent grey"])
@pytest.mark.parametrize("background", [(255,), (200, 100, 50)])
def test_transparent_images_are_composited_on_the_background(tmp_path, kind, background):
    save_noise(tmp_path, ["ant", "bee"])
    image, options = transparent(kind)
    image.save(tmp_path / "ant/0.png", **options)
    found = read(tmp_path, background=background)[0]
    colour = background * 3 if len(background) == 1 else background
    assert (found[:, :4] == 0).all() and (found[:, 4:] == colour).all()
    config = settings(background=background)
    path = tmp_path / "ant/0.png"
    classifier = vit_jax.load_model(save_weights(tmp_path / "weights", model__depth=1))
    classifier.config.data.update(config)
    with Image.open(path) as opened:
        for predicted in classifier.read_images([path, opened]):
            np.testing.assert_array_equal(predicted, found)


def test_transparent_images_are_counted_once(tmp_path, mesh, capsys):
    save_noise(tmp_path, ["ant", "bee"], 20)
    for name in ("ant", "bee"):
        Image.fromarray(noise(7, (8, 8, 4))).save(tmp_path / name / "0.png")
        Image.fromarray(noise(8)).convert("RGBA").save(tmp_path / name / "1.png")  # opaque
    data = load_data(folder_config(tmp_path, test_size=2, val_size=2), mesh)
    output = capsys.readouterr().out
    assert output.count("transparent: they are composited on data.background=255") == 1
    assert any("transparent" in note for note in data.notes)


def test_transparency_of_tfds_images_is_composited(tmp_path):
    examples = [{"image": encode(SHAPE), "label": i % 2} for i in range(20)]
    kinds = {
        "image": features.Image(shape=(8, 8, 4)),
        "label": features.ClassLabel(names=["a", "b"]),
    }
    write_tfds(tmp_path, kinds, {"train": examples})
    image, _ = open_source(tfds_config(tmp_path)).examples("train").read([0])[0]
    assert (image[:, :4] == 0).all() and (image[:, 4:] == 255).all()


# 2: more than 8 bits


def png16(array):
    """Encode uint16 [h, w] or [h, w, 3], which Pillow cannot write in colour."""
    colour_type = 2 if array.ndim == 3 else 0

    def chunk(name, data):
        content = name + data
        return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))

    header = struct.pack(">IIBBBBB", *array.shape[1::-1], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    data = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)], ids=["grey", "colour"])
@pytest.mark.parametrize(
    ("top", "expected"), [(255, 255), (1000, 1023), (4095, 4095), (40000, 65535), (65535, 65535)]
)
def test_16_bit_images_are_scaled_by_the_range_of_the_dataset(tmp_path, shape, top, expected):
    images = [noise(i, shape, top + 1, np.uint16) for i in range(20)]
    images[0].flat[0] = top
    for i, array in enumerate(images):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / f"{i:02}.png").write_bytes(png16(array))
    source = open_source(folder_config(tmp_path))
    assert source.level_range == (0, expected)
    found = read(tmp_path)[0]
    wanted = images[0].astype(float) * 255 / expected
    wanted = wanted if wanted.ndim == 3 else wanted[..., None]
    assert (abs(found - wanted) <= 1).all() and found.max() > 100


def test_16_bit_colours_of_an_opened_image_are_read_in_full(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png16(np.full((8, 8, 3), 200, np.uint16)))
    model = vit_jax.load_model(save_weights(tmp_path / "weights", model__depth=1))
    model.config.data.update(channels=3, level_range=(0.0, 255.0))
    with Image.open(path) as opened:
        from_file, from_image = model.read_images([path, opened])
        assert opened.size == (8, 8) and (from_image == from_file).all()
    assert (from_file == 200).all()


def test_a_sample_of_black_images_decides_nothing():
    assert decide_range([np.zeros((8, 8), np.uint16)]) == (0, 65535)


FLOATS = [((0, 1), (0, 1)), ((-1, 1), (-1, 1)), ((0, 255), (0, 255)), ((-1000, 3000), None)]


@pytest.mark.parametrize(("ends", "expected"), FLOATS)
def test_float_images_are_scaled_by_the_range_of_the_dataset(tmp_path, ends, expected):
    save_noise(tmp_path, ["ant", "bee"], 4)
    for name in ("ant", "bee"):
        for i in range(4):
            (tmp_path / name / f"{i}.png").unlink()
            array = np.linspace(*ends, 64, dtype=np.float32).reshape(8, 8)
            Image.fromarray(array).save(tmp_path / name / f"{i}.tiff")
    assert open_source(folder_config(tmp_path)).level_range == (expected or ends)
    found = read(tmp_path)[0]
    assert found.min() == 0 and found.max() == 255 and 100 < found.mean() < 155


def test_the_range_is_fixed_for_evaluation_and_prediction(tmp_path, capsys):
    """Other photographs are darker: scaled by their own range, they would be brighter."""
    for i in range(40):
        name = "ab"[i % 2]
        for root, top in (("train", 4000), ("dark", 1000)):
            (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
            array = noise(i, (8, 8), top, np.uint16)
            Image.fromarray(array).save(tmp_path / root / name / f"{i}.png")
    config = tiny_training(tmp_path / "train")
    results = vit_jax.train(config, workdir=tmp_path / "runs")
    assert "the levels 0 to 4095 become black to white" in capsys.readouterr().out
    assert "levels 0 to 4095 become" in (results.workdir / "report.html").read_text()
    record = json.loads((results.best_run / "config.json").read_text())
    assert record["config"]["data.level_range"] == [0.0, 4095.0]
    model = vit_jax.load_model(results.best_run)
    images = model.read_images(sorted((tmp_path / "dark/a").iterdir()))
    assert 50 < images.max() < 65
    model.evaluate(tmp_path / "dark", split="all")
    vit_jax.train(config, workdir=tmp_path / "runs")  # accepts the decided setting
    assert "already finished" in capsys.readouterr().out
    bright = tmp_path / "bright.png"
    Image.fromarray(noise(0, (8, 8), 200, np.uint16)).save(bright)
    with pytest.raises(UserError, match="levels end at .* instead of 65535: convert it to 8 bits"):
        read_image(bright, 8, 3)


def tiny_training(root, **overrides):
    """Make the config of a training of one step on an image folder."""
    keys = {"data.name": "folder", "data.dir": str(root), "data.image_size": 8}
    keys |= {"model.depth": 1, "model.hidden_size": 8, "model.mlp_dim": 8, "model.num_heads": 2}
    keys |= {"model.patch_size": 4, "train.batch_size": 8, "train.steps": 2, "train.epochs": 0.0}
    keys |= {"train.num_seeds": 1, "optim.warmup_epochs": 0.0, "log.explain_images": 0}
    keys |= {"augment.crop_padding": 1, "train.eval_every_epochs": 0.0, "log.tensorboard": False}
    path = root.parent / "tiny.py"
    path.write_text("from vit_jax import config\nget_config = config.get_config\n")
    return vit_jax.load_config(path, keys | overrides)


# 3: features of TFDS


def tfds_config(root, **keys):
    return settings(name="shapes", dir=str(root), **keys)


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


# 4: links


@pytest.mark.parametrize("place", ["test", "train/eel"])
def test_a_dead_link_in_place_of_a_split_or_class_is_refused(tmp_path, place):
    save_noise(tmp_path / "train", ["ant", "bee"])
    (tmp_path / place).symlink_to(tmp_path / "nowhere")
    config = folder_config(tmp_path)
    with pytest.raises(UserError, match=f"{place} is a link that leads nowhere: repair or"):
        make_splits(open_source(config), config)


def test_links_are_followed_and_dead_ones_reported(tmp_path, capsys):
    root = make_folder(tmp_path / "photos")
    more = make_folder(tmp_path / "more", classes=["x"], per_class=5) / "x"
    (root / "ant/more").symlink_to(more)
    (root / "ant/again").symlink_to(more)  # the same images, read once
    (root / "dog").symlink_to(more)  # a class
    (root / "bee/up").symlink_to("..")  # a circle
    (root / "bee/gone.png").symlink_to("nowhere.png")
    (root / "bee/self.png").symlink_to("self.png")
    source = open_source(folder_config(root))
    assert source.class_names == ["ant", "bee", "cat", "dog"]
    assert np.bincount(source.examples("").labels).tolist() == [9, 4, 4, 5]
    assert "3 links lead nowhere or in a circle" in capsys.readouterr().err
    assert len(predict.list_images([root])) == 4 * 3 + 5
    assert "3 links or devices are skipped" in capsys.readouterr().err


# 5: data that nothing uses


@pytest.mark.parametrize("names", [("Training", "Testing"), ("TRAIN", "Test"), ("train", "test")])
def test_usual_names_of_splits_are_found(tmp_path, mesh, names):
    for i, name in enumerate((*names, "Dev")):
        save_noise(tmp_path / name, ["ant", "bee"], 4 + i, 100 * i)
    data = load_data(folder_config(tmp_path), mesh)
    assert [len(split) for split in (data.train, data.test, data.val)] == [8, 10, 12]
    assert not data.notes


def test_images_that_nothing_uses_are_reported(tmp_path, mesh, capsys):
    for i, name in enumerate(("train", "test", "extra", "valid", "val")):
        save_noise(tmp_path / name, ["ant", "bee"], 8, 100 * i)
    Image.fromarray(noise(1)).save(tmp_path / "loose.png")
    Image.fromarray(noise(2)).save(tmp_path / "train" / "loose.png")
    for junk in ("__MACOSX", ".ipynb_checkpoints", "train/__MACOSX", "train/.ipynb_checkpoints"):
        save_noise(tmp_path / junk, ["ant"], 2)
    data = load_data(folder_config(tmp_path), mesh)
    assert data.class_names == ["ant", "bee"] and len(data.val) == 16
    error = capsys.readouterr().err
    assert "the images of extra, val are not used: data.train_split" in error
    assert error.count("1 images outside class folders are not used") == 2
    assert sum("not used" in note for note in data.notes) == 3
    load_data(folder_config(tmp_path / "train"), mesh)
    assert "folder test next to it are not used: set data.dir=" in capsys.readouterr().err


def test_a_misspelt_split_is_refused(tmp_path):
    save_noise(tmp_path, ["ant", "bee"])
    with pytest.raises(UserError, match="data.train_split=trian is not a folder"):
        open_source(folder_config(tmp_path, train_split="trian"))
    digits = settings(name="digits", train_split="trian")
    with pytest.raises(UserError, match="data.train_split='trian', but digits has no predefined"):
        make_splits(open_source(digits), digits)


# 6: classes that are too small


def test_a_class_without_test_images_is_reported(tmp_path, capsys):
    save_noise(tmp_path / "photos", ["land"], 38)
    save_noise(tmp_path / "photos", ["sea"], 2, 500)
    results = vit_jax.train(tiny_training(tmp_path / "photos"), workdir=tmp_path / "runs")
    message = "class sea has 0 test images: add some, or raise data.test_size"
    assert message in capsys.readouterr().err
    assert message in (results.workdir / "report.html").read_text()
    report = (results.best_run / "test_report.txt").read_text()
    assert "Classes without images, not in macro F1: sea." in report


def test_a_split_without_images_is_refused_with_a_remedy(tmp_path):
    save_noise(tmp_path, ["ant", "bee"], 2)
    config = folder_config(tmp_path, test_size=0.1)
    with pytest.raises(UserError, match="data.test_size=0.1 asks for 0 of 4 .* from 1 to 3"):
        make_splits(open_source(config), config)


# 7: copies


@pytest.mark.parametrize("resident", ["always", "never"])
def test_identical_images_in_two_splits_are_reported(tmp_path, mesh, capsys, resident):
    for i, name in enumerate(("train", "val", "test")):
        save_noise(tmp_path / name, ["ant", "bee"], 6, 100 * i)
    for i in range(3):
        shutil.copy(tmp_path / f"train/ant/{i}.png", tmp_path / f"test/ant/copy_{i}.png")
    shutil.copy(tmp_path / "train/ant/0.png", tmp_path / "test/bee/other_class.png")
    data = load_data(folder_config(tmp_path, device_resident=resident), mesh)
    error = capsys.readouterr().err
    assert "4 of 16 test images are identical to train images" in error
    assert "images that occur in several classes: 1;" in error
    assert "val images are identical" not in error and len(data.notes) == 2


# 14: TFRecord

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
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert lines.splitlines() == [
        f"{list(range(20))} {[0, 1] * 10}",
        f"{list(range(5, 9))} {[1, 0] * 2}",
        f"{list(range(5))} {[0, 1, 0, 1, 0]}",
        "True False",
    ]


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


# 17: classes that are missing


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the classes ant, bee and cat."""
    root = tmp_path_factory.mktemp("run")
    save_noise(root / "photos", ["ant", "bee", "cat"], 20)
    return vit_jax.train(tiny_training(root / "photos"), workdir=root / "runs").best_run


def test_a_split_may_lack_classes_of_the_training_images(tmp_path, mesh, capsys):
    save_noise(tmp_path / "train", ["ant", "bee", "cat"], 20)
    save_noise(tmp_path / "test", ["cat", "ant"], 5, 5000)
    (tmp_path / "test/bee").mkdir()
    config = folder_config(tmp_path, val_size=9)
    data = load_data(config, mesh)
    assert data.class_names == ["ant", "bee", "cat"]
    assert "class bee has 0 test images" in capsys.readouterr().err
    test = make_splits(open_source(config), config).test
    assert np.bincount(test.labels).tolist() == [5, 0, 5]


@pytest.mark.parametrize("classes", [["cat"], ["bee", "cat"], ["cat", "ant", "bee"]])
def test_some_classes_can_be_evaluated(run, tmp_path, capsys, classes):
    save_noise(tmp_path / "new", classes, 5, 7000)
    model = Classifier(run)
    found = model.evaluate(tmp_path / "new", split="all")
    support = {name: 5 * (name in classes) for name in ("ant", "bee", "cat")}
    assert {name: one["support"] for name, one in found["classes"].items()} == support
    missing = ", ".join(sorted(set(support) - set(classes)))
    output = capsys.readouterr().out
    assert (f"the dataset does not have the classes {missing}" in output) == bool(missing)
    # As predicted image by image.
    paths = sorted((tmp_path / "new/cat").iterdir())
    hits = (model.predict(paths).argmax(1) == 2).mean()
    assert found["classes"]["cat"]["recall"] == pytest.approx(hits)
    out = ["--split=all", f"--out={tmp_path / 'out'}"]
    dataset = [f"--config.data.dir={tmp_path / 'new'}"]
    assert evaluate.main([str(run), *dataset, *out]) == 0


def test_unknown_classes_are_refused(run, tmp_path):
    save_noise(tmp_path, ["cat", "cow"], 3)
    with pytest.raises(UserError, match="does not have cow"):
        Classifier(run).evaluate(tmp_path, split="all")


# 18: formats

SAVED = {".heic": None, ".heif": None}  # if their plugin is installed, it is tested elsewhere


@pytest.mark.parametrize("suffix", [s for s in IMAGE_SUFFIXES if s not in SAVED] + [""])
def test_every_format_is_read_for_training_and_prediction(run, tmp_path, suffix):
    kind = {".jfif": "jpeg", ".jpe": "jpeg", "": "png"}.get(suffix)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(grey(100 + i)).save(tmp_path / name / f"{i}{suffix}", kind)
    assert abs(read(tmp_path).astype(int) - 101).max() <= 5
    assert len(predict.list_images([tmp_path])) == 6
    assert Classifier(run).evaluate(tmp_path, split="all")["count"] == 6


def test_the_formats_that_are_met_most_are_read():
    wanted = {".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".avif", ".jp2"}
    assert wanted <= set(IMAGE_SUFFIXES)


def test_files_of_other_formats_are_counted_by_suffix(tmp_path, capsys):
    save_noise(tmp_path, ["ant", "bee"], 2)
    for i in range(20):
        (tmp_path / f"ant/{i}.xcf").write_bytes(b"gimp xcf")
    (tmp_path / "ant/README").write_text("These are ants.")
    open_source(folder_config(tmp_path)).examples("")
    captured = capsys.readouterr()
    assert "ignored 20 files of .xcf, 1 file without a suffix" in captured.out
    assert "one level too high" not in captured.err
    for path in (tmp_path / "ant").glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match="ant contains no image .*: 20 files of .xcf.*supported"):
        open_source(folder_config(tmp_path)).examples("")
    with pytest.raises(UserError, match="holds no image .*, but 20 files of .xcf"):
        predict.list_images([tmp_path / "ant"])
    assert "one level too high" not in capsys.readouterr().err


# 19: the real reason


@pytest.mark.parametrize(("images", "words"), [(3, "only unlabelled ones"), (0, "no images")])
def test_an_unlabelled_or_empty_test_folder_is_refused(tmp_path, images, words):
    save_noise(tmp_path / "train", ["ant", "bee"])
    (tmp_path / "test").mkdir()
    for i in range(images):
        Image.fromarray(noise(i)).save(tmp_path / f"test/{i}.png")
    config = folder_config(tmp_path)
    with pytest.raises(UserError, match=f"{words}.*data.test_split=hold_out"):
        make_splits(open_source(config), config)
    config.test_split = "hold_out"
    assert len(make_splits(open_source(config), config).test) == 4


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


# 20: a moved folder


def test_a_run_resumes_and_finishes_on_moved_images(tmp_path, capsys):
    save_noise(tmp_path / "photos", ["ant", "bee"], 20)
    workdir = tmp_path / "runs"
    best = vit_jax.train(tiny_training(tmp_path / "photos"), workdir=workdir).best_run
    shutil.move(tmp_path / "photos", tmp_path / "scratch")
    moved = tiny_training(tmp_path / "scratch")
    (best / "summary.json").unlink()  # as if the run had been killed in the closing evaluation
    for name in ("SHA256SUMS", "test_report.json"):
        (best / name).unlink()
    for _ in range(2):  # resumed, then finished
        vit_jax.train(moved, workdir=workdir)
        record = json.loads((best / "config.json").read_text())
        assert record["config"]["data.dir"] == str(tmp_path / "scratch")
    assert vit_jax.load_model(best).evaluate()["count"] == 8
    shutil.move(tmp_path / "scratch", tmp_path / "home")
    vit_jax.train(tiny_training(tmp_path / "home"), workdir=workdir)  # finished, and moved
    assert vit_jax.load_model(best).evaluate()["count"] == 8
    save_noise(tmp_path / "home", ["ant", "bee"], 20, 333)
    assert vit_jax.load_model(best).config.data.dir == str(tmp_path / "home")
    assert "not those of the training" not in capsys.readouterr().err
    vit_jax.load_model(best).evaluate()
    assert "the images or splits are not those of the training" in capsys.readouterr().err
    save_noise(tmp_path / "others", ["ant", "bee"], 20, 444)
    with pytest.raises(UserError, match="was started with other images"):
        vit_jax.train(tiny_training(tmp_path / "others"), workdir=workdir)


def test_only_the_path_of_the_data_may_change(tmp_path):
    config = make_config(data__name="folder", data__dir="photos")
    run_folder.write_config(tmp_path, config, {}, 20, "base", 0)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config.data.dir = "elsewhere"
    assert run_folder.read_summary(tmp_path, config, 0) is None
    config.data.background = (0,)
    with pytest.raises(UserError, match="was trained with data.background="):
        run_folder.read_summary(tmp_path, config, 0)


# 22: names of classes, and large images


def test_names_that_look_alike_are_reported(tmp_path, mesh, capsys):
    names = ["Cat", "cat", "dog", "\u00e9t\u00e9", unicodedata.normalize("NFD", "\u00e9t\u00e9")]
    save_noise(tmp_path, names, 10)
    data = load_data(folder_config(tmp_path), mesh)
    assert len(data.class_names) == 5
    error = capsys.readouterr().err
    assert "differ in case or Unicode form only: Cat ('Cat'), cat ('cat')" in error
    assert error.count("Unicode form only") == 2 and "dog" not in error


def test_two_unicode_forms_of_a_name_are_one_class_in_two_splits(tmp_path):
    save_noise(tmp_path / "train", ["\u00e9t\u00e9", "hiver"])
    save_noise(tmp_path / "test", [unicodedata.normalize("NFD", "\u00e9t\u00e9"), "hiver"])
    config = folder_config(tmp_path)
    splits = make_splits(open_source(config), config)
    assert np.bincount(splits.test.labels).tolist() == [10, 10]


def test_two_classes_of_one_name_in_two_unicode_forms_stay_two(tmp_path):
    names = ["\u00e9t\u00e9", unicodedata.normalize("NFD", "\u00e9t\u00e9"), "hiver"]
    save_noise(tmp_path / "train", names, 10)
    save_noise(tmp_path / "test", names, 5, 5000)
    config = folder_config(tmp_path)
    splits = make_splits(open_source(config), config)
    assert np.bincount(splits.test.labels).tolist() == [5, 5, 5]
    images = splits.test.read(range(15))
    assert len({image.tobytes() for image, _ in images}) == 15


@pytest.mark.parametrize("name", ["test", "Train", "dev"])
def test_a_class_may_have_the_name_of_a_split(tmp_path, name):
    make_folder(tmp_path, classes=["control", name])
    source = open_source(folder_config(tmp_path))
    assert source.class_names == sorted(["control", name])
    assert levels(source.examples("")) == (
        list(range(8)) if name != "Train" else [*range(4, 8), *range(4)]
    )


def test_unlabelled_splits_are_not_classes(tmp_path):
    make_folder(tmp_path, classes=["train", "test"])
    with pytest.raises(UserError, match="fewer than two class folders"):
        open_source(folder_config(tmp_path))


def test_the_limit_of_pixels_can_be_set(run, tmp_path, capsys):
    path = tmp_path / "ant/x.png"
    save_noise(tmp_path, ["ant", "bee"], 2)
    Image.new("1", (3000, 2000)).save(path)
    try:
        with pytest.raises(UserError, match="if the file is trusted, raise data.max_pixels"):
            read(tmp_path, max_pixels=2_000_000)
        assert len(read(tmp_path, max_pixels=12_000_000)) == 5
        assert predict.main([str(run), str(path), "--max_pixels=2000000"]) == 1
        assert "raise data.max_pixels" in capsys.readouterr().err
        assert predict.main([str(run), str(path), "--max_pixels=12000000"]) == 0
    finally:
        read(tmp_path)  # restores the default limit
