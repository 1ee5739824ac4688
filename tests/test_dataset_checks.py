"""Layouts, links, splits and classes: used as documented, or reported."""

import json
import shutil
import unicodedata

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny_configs import make_config
from tiny_datasets import levels, make_folder, settings
from tiny_images import folder_config, noise, save_noise, tiny_training, train_on_noise

import vit_jax
from vit_jax.cli import evaluate, predict
from vit_jax.data import load_data
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits
from vit_jax.evaluation.classifier import Classifier
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.storage import run_folder

pytestmark = pytest.mark.usefixtures("one_device", "no_figures")

features = tfds.features


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the classes ant, bee and cat."""
    return train_on_noise(tmp_path_factory.mktemp("run"), ["ant", "bee", "cat"])


# links


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


# data that nothing uses


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


# classes that are too small


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


def test_a_folder_of_images_is_not_taken_for_a_tfds_folder(tmp_path):
    save_noise(tmp_path / "train", ["ant", "bee"])
    with pytest.raises(UserError, match="that is a folder of images: set data.name=folder"):
        open_source(settings(name="cifar10", dir=str(tmp_path)))
    assert not (tmp_path / "downloads").exists()


# copies


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


# classes that are missing


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


# unlabelled splits


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


# a moved folder


def test_a_run_resumes_and_finishes_on_moved_images(tmp_path, capsys):
    save_noise(tmp_path / "photos", ["ant", "bee"], 20)
    workdir = tmp_path / "runs"

    def training(folder):  # of a subset, which other splits do not depend on
        return tiny_training(tmp_path / folder, **{"data.train_examples": 16})

    best = vit_jax.train(training("photos"), workdir=workdir).best_run
    shutil.move(tmp_path / "photos", tmp_path / "scratch")
    moved = training("scratch")
    (best / "summary.json").unlink()  # as if the run had been killed in the closing evaluation
    for name in ("SHA256SUMS", "test_report.json"):
        (best / name).unlink()
    for _ in range(2):  # resumed, then finished
        vit_jax.train(moved, workdir=workdir)
        record = json.loads((best / "config.json").read_text())
        assert record["config"]["data.dir"] == str(tmp_path / "scratch")
    assert vit_jax.load_model(best).evaluate()["count"] == 8
    shutil.move(tmp_path / "scratch", tmp_path / "home")
    vit_jax.train(training("home"), workdir=workdir)  # finished, and moved
    assert vit_jax.load_model(best).evaluate()["count"] == 8
    for number in (3, 7):  # which the sample of eight images of each split lacks
        images = [tmp_path / "home" / name / f"{number}.png" for name in ("ant", "bee")]
        shown = images[0].read_bytes()
        images[0].write_bytes(images[1].read_bytes())
        images[1].write_bytes(shown)
    assert vit_jax.load_model(best).config.data.dir == str(tmp_path / "home")
    assert "not those of the training" not in capsys.readouterr().err
    for changed in ({}, {"data.num_threads": 2}):
        vit_jax.load_model(best).evaluate(overrides=changed)
        assert "the images or splits are not those of the training" in capsys.readouterr().err
    other = save_noise(tmp_path / "new", ["ant", "bee"], 20, start=500)
    vit_jax.load_model(best).evaluate(other, split="test")
    assert "not those of the training" not in capsys.readouterr().err
    shutil.move(tmp_path / "home", tmp_path / "others")
    with pytest.raises(UserError, match="was started with other images"):
        vit_jax.train(training("others"), workdir=workdir)


def test_only_the_path_of_the_data_may_change(tmp_path):
    config = make_config(data__name="folder", data__dir="photos")
    run_folder.write_config(tmp_path, config, {}, 20, "base", 0)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config.data.dir = "elsewhere"
    assert run_folder.read_summary(tmp_path, config, 0) is None
    config.data.background = (0,)
    with pytest.raises(UserError, match="was trained with data.background="):
        run_folder.read_summary(tmp_path, config, 0)


# names of classes, and large images


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
