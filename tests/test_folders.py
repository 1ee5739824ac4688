"""Image folders: splits, classes, formats, modes and errors."""

import numpy as np
import pytest
from PIL import Image
from tiny_configs import make_config
from tiny_datasets import CLASSES, levels, make_folder, settings
from tiny_images import save_image
from tiny_runs import run_configs

from vit_jax.data import load_data
from vit_jax.data.folders import is_class_folder
from vit_jax.data.images import IMAGE_SUFFIXES
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits
from vit_jax.evaluation.samples import images_of_classes
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def test_a_folder_with_splits_is_read_as_split(tmp_path):
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


def test_a_flat_folder_is_split(tmp_path):
    make_folder(tmp_path, per_class=10)
    config = settings(name="folder", dir=str(tmp_path))
    splits = make_splits(open_source(config), config)
    examples = [splits.train, splits.val, splits.test]
    assert [len(split) for split in examples] == [
        22,
        2,
        6,
    ]  # a fifth for test, then a tenth of the rest for validation
    assert sorted(sum(map(levels, examples), [])) == list(range(30))
    for split in examples:
        assert [level // 10 for level in levels(split)] == split.labels.tolist()


def test_images_of_classes_are_of_those_with_test_images(tmp_path):
    make_folder(tmp_path, ("train", "valid", "test"))
    for path in (tmp_path / "test" / CLASSES[0]).iterdir():
        path.unlink()
    config = settings(name="folder", dir=str(tmp_path))
    assert images_of_classes(config, (), 2)[1] == list(CLASSES[1:3])
    with pytest.raises(UserError, match=f"the test split lacks images of {CLASSES[0]}$"):
        images_of_classes(config, CLASSES[:2], 2)


def test_sizes_of_splits_that_are_not_held_out_are_a_warning(tmp_path, mesh):
    make_folder(tmp_path, ("train", "valid"))
    config = settings(name="folder", dir=str(tmp_path), val_size=0.3, test_size=3)
    (warning,) = [text for text in load_data(config, mesh).notes if "no effect" in text]
    assert warning.startswith("data.val_size=0.3 has no effect, because the dataset has the split")
    assert not any("no effect" in text for text in load_data(config, mesh, min_classes=1).notes)


def test_folds_do_not_cover_what_is_held_out(tmp_path, mesh):
    config = settings(name="digits", channels=1, num_folds=5)
    (note,) = load_data(config, mesh).notes
    assert note == (
        "the folds divide 1,294 training images; those of data.val_size and those of "
        "data.test_size are in none of them"
    )
    make_folder(tmp_path, ("train", "test"), per_class=9)
    config = settings(name="folder", dir=str(tmp_path), num_folds=3)
    (note,) = load_data(config, mesh).notes
    assert note.endswith("; those of data.val_size and the split test are in none of them")


def test_a_folder_one_level_above_the_dataset_is_a_warning(tmp_path, capsys, mesh):
    """As when archives of splits were unpacked into folders of the same name."""
    for split in ("seg_train", "seg_test"):
        make_folder(tmp_path / split / split, per_class=20)
    load_data(settings(name="folder", dir=str(tmp_path / "seg_train" / "seg_train")), mesh)
    captured = capsys.readouterr()
    assert "folder: 3 classes (ant, bee, cat), 43 train" in captured.out and not captured.err
    (tmp_path / "seg_train" / ".DS_Store").touch()
    load_data(settings(name="folder", dir=str(tmp_path)), mesh)
    assert "(seg_test, seg_train) contain no images but subfolders" in capsys.readouterr().err
    make_folder(tmp_path / "split", ("first", "second"), per_class=20)
    Image.new("RGB", (8, 8)).save(tmp_path / "split" / "second" / "loose.png")
    load_data(settings(name="folder", dir=str(tmp_path / "split")), mesh)
    assert "folders (first) contain no images but subfolders" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_format_is_read(tmp_path, suffix):
    make_folder(tmp_path)
    path = tmp_path / f"ant/x{suffix.upper()}"
    save_image(np.full((12, 20, 3), (250, 130, 10), np.uint8), path)
    (tmp_path / "ant/notes.txt").write_text("not an image")
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


def test_images_are_oriented_and_centre_cropped(tmp_path):
    make_folder(tmp_path)
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:8], pixels[:, 8:12] = 100, 200  # left and right half of the centre
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: upright after a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "ant/x.png", exif=exif)
    image, _ = open_source(settings(name="folder", dir=str(tmp_path))).examples("").read([4])[0]
    assert (image[:4] == 100).all() and (image[4:] == 200).all()  # the left half is now on top


def test_hidden_files_and_folders_are_ignored(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "ant/._0.png").write_text("metadata that macOS writes next to 0.png")
    (tmp_path / "ant/folder.png").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "ant/.copies").mkdir()
    (tmp_path / "ant/.copies/0.png").write_bytes((tmp_path / "ant/0.png").read_bytes())
    examples = open_source(settings(name="folder", dir=str(tmp_path))).examples("")
    assert levels(examples) == list(range(12))


def broken_folder(root):
    make_folder(root)
    (root / "bee/1.png").write_bytes((root / "bee/1.png").read_bytes()[:50])
    (root / "cat/0.png").write_text("not an image")
    return settings(name="folder", dir=str(root))


@pytest.mark.parametrize("resident", ["always", "never"])
def test_an_unreadable_file_is_named(tmp_path, mesh, resident):
    config = broken_folder(tmp_path)
    config.device_resident, config.test_size, config.val_size = resident, 1, 1
    with pytest.raises(UserError, match=r"(bee/1|cat/0).png cannot be read as an image"):
        data = load_data(config, mesh)
        for split in (data.train, data.val, data.test):
            list(split.evaluate(8))


def test_unreadable_files_are_skipped_and_counted(tmp_path, capsys):
    config = broken_folder(tmp_path)
    config.skip_corrupt = True
    examples = open_source(config).examples("")
    assert levels(examples) == [0, 1, 2, 3, 4, 6, 7, 9, 10, 11]
    assert examples.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    output = capsys.readouterr().out
    assert "skipped 2 unreadable of 12 files: " in output and "bee/1.png, " in output
    for path in (tmp_path / "cat").iterdir():
        path.write_text("not an image")
    with pytest.raises(UserError, match="cat contains no readable image"):
        open_source(config).examples("")


@pytest.mark.parametrize(
    ("make", "keys", "message"),
    [
        (lambda root: (root / "dog").mkdir(), {}, "class folder .*/dog contains no image"),
        (lambda root: None, {"dir": "/absent"}, "data.dir=/absent is not a folder"),
        (lambda root: make_folder(root, ("test",)), {}, "contains test but no folder 'train'"),
        (
            lambda root: make_folder(root, ("train",), classes=["ant"]),
            {},
            "contains fewer than two class folders",
        ),
        (
            lambda root: (make_folder(root, ("train",)), make_folder(root, ("test",), 1, ["cow"])),
            {},
            "classes that the training images do not have: cow",
        ),
    ],
)
def test_an_invalid_folder_is_refused(tmp_path, make, keys, message):
    if make(tmp_path) is None:
        make_folder(tmp_path)
    config = settings(**({"name": "folder", "dir": str(tmp_path)} | keys))
    with pytest.raises(UserError, match=message):
        make_splits(open_source(config), config)


def test_the_runs_of_a_sweep_do_not_become_a_class(tmp_path):
    inside, data = tmp_path / "photos" / "runs", {"name": "folder", "dir": str(tmp_path / "photos")}
    make_folder(tmp_path / "photos")
    config = make_config(**{f"data__{key}": value for key, value in data.items()})
    for workdir in (inside, inside.parent):
        with pytest.raises(UserError, match="lies among the class folders of data.dir=.*photos"):
            run_configs({"base": config}, workdir)
    assert not inside.exists()
    assert not is_class_folder(tmp_path / "runs", settings(**data))
    assert not is_class_folder(tmp_path / "photos" / ".runs", settings(**data))  # not read
    make_folder(tmp_path / "split", ("Training", "Testing"))  # only the folders of splits count
    for split in ("train", "Training"):
        own = settings(**data | {"dir": str(tmp_path / "split"), "train_split": split})
        assert not is_class_folder(tmp_path / "split" / "runs", own)
        assert is_class_folder(tmp_path / "split" / "Training" / "runs", own)
