"""Which split the images of a table are in: folders, columns, or neither."""

import pathlib
import shutil

import pytest
from tiny_datasets import make_folder
from tiny_labelled import EXPECTED, config_of, contents, flat, save, write

from vit_jax.config.schema import SCHEMA
from vit_jax.data.sources import open_source
from vit_jax.data.splits import (
    LAYOUT_KEYS,
    PIXEL_KEYS,
    READING_KEYS,
    SPLIT_KEYS,
    SUBSET_KEYS,
    differing_splits,
)
from vit_jax.runtime.errors import UserError


def sports(root):
    """Write the layout of the 100 Sports dataset: class folders of splits, and a table."""
    names = {"train": 12, "test": 4, "valid": 4}
    lines, level = ["class id,filepaths,labels,data\x20set"], 0
    for split, count in names.items():
        for i in range(count):
            path = f"{split}/{EXPECTED[i]}/{i:03}.png"
            save(root / "photos" / path, level)
            lines.append(f"{i % 2},{path},{EXPECTED[i]},{split}")
            level += 1
    return write(root / "photos", lines, "sports.csv")


def test_the_layout_of_100_sports_is_read(tmp_path):
    sports(tmp_path)
    # A relative path is also looked up in data.dir.
    table, folder = config_of(tmp_path, labels="sports.csv"), config_of(tmp_path)
    assert open_source(table).split_names == ["test", "train", "valid"]
    assert contents(table) == contents(folder)
    assert sorted(contents(table)["test"]) == [12, 13, 14, 15]


def test_without_a_column_of_splits_the_folders_are_splits(tmp_path):
    sports(tmp_path)
    config = config_of(tmp_path, labels="sports.csv", split_column="none")
    assert contents(config) == contents(config_of(tmp_path))


def test_settings_that_split_a_dataset_differently_are_found(tmp_path):
    """Of such a dataset, an evaluation could be of training images."""
    run = config_of(tmp_path, labels=str(sports(tmp_path)))
    for change in (
        {"split_column": "none"},
        {"label_column": "class id"},
        {"label_pattern": "(.)"},
        {"skip_corrupt": True},
        {"test_size": 3.0},
    ):
        assert differing_splits(run, {**run, **change}) == list(change)
    table = pathlib.Path(run["labels"])
    moved = shutil.copy(table, tmp_path / "moved.csv")
    other = write(tmp_path, [*table.read_text().splitlines()[:-1]], "other.csv")
    assert differing_splits(run, {**run, "labels": str(other)}) == ["labels"]
    for change in (
        {"labels": "sports.csv"},
        {"labels": str(moved)},
        {"image_column": "x"},
        {"train_examples": 8},
    ):
        assert differing_splits(run, {**run, **change}) == []
    assert differing_splits(run, {**run, "fold": 1, "num_folds": 3}) == ["fold", "num_folds"]
    folds = {**run, "num_folds": 3}
    assert differing_splits(folds, {**folds, "train_examples": 8}) == ["train_examples"]
    assert differing_splits(run, {**run, "dir": "elsewhere", "test_size": 3.0}) == []


def test_every_setting_of_the_data_has_one_part_in_the_choice_of_images():
    keys = [*LAYOUT_KEYS, *READING_KEYS, *SPLIT_KEYS, *SUBSET_KEYS, *PIXEL_KEYS, "name"]
    choosing = [
        key.removeprefix("data.")
        for key, setting in SCHEMA.items()
        if key.startswith("data.") and setting.resume != "any"
    ]
    assert sorted(keys) == sorted(choosing)


@pytest.mark.parametrize("form", ["absolute", "of the table", "of a link"])
def test_folders_are_splits_however_the_table_names_their_files(tmp_path, form):
    """Images of the test folder must not become training images."""
    sports(tmp_path)
    names = ["file,labels"]
    start = {"absolute": f"{tmp_path}/photos", "of the table": "..", "of a link": "photos"}[form]
    lines = (tmp_path / "photos" / "sports.csv").read_text().splitlines()[1:]
    names += [f"{start}/{path},{label}" for _, path, label, _ in (x.split(",") for x in lines)]
    inside = tmp_path / "photos" / "meta" if form == "of the table" else tmp_path
    inside.mkdir(exist_ok=True)
    table = write(inside, names)
    config = config_of(tmp_path, labels=str(table))
    if form == "of a link":
        (tmp_path / "link").symlink_to(tmp_path / "photos")
        config.dir = str(tmp_path / "link")
    assert contents(config) == contents(config_of(tmp_path))
    assert not open_source(config).warnings
    twice = names[1].replace(start, str(tmp_path / "photos"), 1)
    write(inside, [*names, twice])
    with pytest.raises(UserError, match="line 2 .* and line 22 .* twice"):
        open_source(config)


def test_links_to_one_file_are_not_confused(tmp_path):
    """As in caches that store equal files once."""
    sports(tmp_path)
    names = [tmp_path / "photos" / name for name in ("train/ant/000.png", "test/ant/002.png")]
    names[1].unlink()
    names[0].rename(tmp_path / "blob.png")
    for name in names:
        name.symlink_to(tmp_path / "blob.png")
    lines = (tmp_path / "photos" / "sports.csv").read_text().splitlines()[1:]
    rows = [
        f"{tmp_path}/photos/{path},{label}" for _, path, label, _ in (x.split(",") for x in lines)
    ]
    config = config_of(tmp_path, labels=str(write(tmp_path, ["file,labels", *rows])))
    found = contents(config)
    assert len(found["test"]) == 4 and found["test"][0] == "ant"


def test_images_outside_the_folders_of_splits_are_an_error(tmp_path):
    flat(tmp_path, 4)
    for i in range(20):
        save(tmp_path / "photos" / ("train" if i < 16 else "test") / f"{i}.png", i)
    lines = ["file,label"] + [
        f"{'train' if i < 16 else 'test'}/{i}.png,{EXPECTED[i]}" for i in range(20)
    ]
    config = config_of(tmp_path, labels=str(write(tmp_path, [*lines, "0.png,ant"])))
    with pytest.raises(UserError, match="line 2 .*train/0.png.*, but line 22 .*/0.png, in none"):
        contents(config)
    write(tmp_path, lines)
    assert sorted(contents(config)["test"]) == [16, 17, 18, 19]


def test_a_class_may_be_called_train(tmp_path):
    for i in range(20):
        save(tmp_path / "photos" / ("train" if i % 2 else "bus") / f"{i}.png", i)
    lines = ["file,label"] + [f"{('bus', 'train')[i % 2]}/{i}.png,{i % 2}" for i in range(20)]
    found = contents(config_of(tmp_path, labels=str(write(tmp_path, lines))))
    assert sorted(found["train"] | found["val"] | found["test"]) == list(range(20))


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("prefix", ["", "test/"])
def test_a_table_labels_a_flat_test_folder(tmp_path, prefix, column):
    root = make_folder(tmp_path / "photos", ("train",))
    for i in range(6):
        save(root / "test" / f"{i}.png", 100 + i)
    lines = ["id,label"] + [f"{prefix}{i}.png,{('ant', 'bee', 'cat')[i % 3]}" for i in range(6)]
    if column:
        lines = [lines[0] + ",split", *(f"{line},test" for line in lines[1:])]
    config = config_of(tmp_path, labels=str(write(tmp_path, lines)), val_size=2)
    found = contents(config)
    assert found["test"] == {100 + i: ("ant", "bee", "cat")[i % 3] for i in range(6)}
    assert sorted(found["train"] | found["val"]) == list(range(12))
    write(tmp_path, [*lines[:-1], lines[-1].replace("cat", "dog")])
    with pytest.raises(UserError, match="line 7 of .* has the class 'dog', which no training"):
        contents(config)
    write(tmp_path, lines[:5])
    (warning,) = open_source(config).warnings
    assert "does not name 2 images, such as" in warning
