"""Image folders whose labels are in a CSV or TSV file, or in the names of the files."""

import json
import shutil

import numpy as np
import pytest
from tiny_configs import make_config
from tiny_datasets import levels, settings
from tiny_images import save_noise, tiny_training
from tiny_labelled import EXPECTED, config_of, contents, flat, rows, save, write

import vit_jax
from vit_jax.cli import app
from vit_jax.data.sources import open_source
from vit_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device", "no_figures")


@pytest.mark.parametrize("form", ["csv", "tsv", "semicolons", "no header", "BOM", "quotes"])
def test_labels_are_read_from_a_table(tmp_path, form):
    flat(tmp_path)
    lines = ["label,filename", *(",".join(reversed(row.split(","))) for row in rows())]
    encoding, name = "utf-8", "labels.csv"
    if form == "tsv":
        lines, name = [line.replace(",", "\t") for line in lines], "labels.tsv"
    elif form == "semicolons":
        lines = [line.replace(",", ";") for line in lines]
    elif form == "no header":
        lines = lines[1:]
    elif form == "BOM":
        encoding = "utf-8-sig"
    elif form == "quotes":
        lines = [",".join(f'"{cell}"' for cell in line.split(",")) + "\r" for line in lines]
    path = write(tmp_path, [*lines, ""], name, encoding)
    found = contents(config_of(tmp_path, labels=str(path)))
    assert found["train"] | found["val"] | found["test"] == EXPECTED
    assert [len(found[split]) for split in ("train", "val", "test")] == [14, 2, 4]


def test_labels_outnumber_the_delimiters_of_a_table_without_a_header(tmp_path):
    flat(tmp_path)
    shutil.move(tmp_path / "photos" / "0.png", tmp_path / "photos" / "0, zero.png")
    lines = ["", '"0, zero.png",red;blue;green', *(f"{i}.png,red" for i in range(1, 20))]
    path = write(tmp_path, lines)
    source = open_source(config_of(tmp_path, labels=str(path), multi_label=True))
    assert source.class_names == ["blue", "green", "red"]


def test_columns_are_found_or_named(tmp_path, capsys):
    flat(tmp_path)
    lines = ["x,y2,z"] + [f"{i}.png,{EXPECTED[i]},{i // 10}" for i in range(20)]
    config = config_of(tmp_path, labels=str(write(tmp_path, lines)))
    with pytest.raises(UserError, match="hold labels: set data.label_column to one of x, y2, z"):
        open_source(config)
    config.label_column = "y2"
    assert open_source(config).class_names == ["ant", "cat"]
    assert "file names in column x, labels in y2\n" in capsys.readouterr().out
    config.label_column = "z"
    assert open_source(config).class_names == ["0", "1"]
    config.label_column = "w"
    with pytest.raises(UserError, match="data.label_column=w is not a column of .* are x, y2, z"):
        open_source(config)


def test_number_labels_are_sorted_by_value(tmp_path):
    flat(tmp_path, 12)
    lines = ["image,label"] + [f"{i}.png,{i}" for i in range(12)]
    config = config_of(tmp_path, labels=str(write(tmp_path, lines)))
    assert open_source(config).class_names == [str(i) for i in range(12)]


def test_file_names_may_lack_their_folder_or_suffix(tmp_path):
    flat(tmp_path)
    lines = ["id,label"] + [f"{i},{EXPECTED[i]}" for i in range(20)]
    found = contents(config_of(tmp_path, labels=str(write(tmp_path, lines))))
    assert found["train"] | found["val"] | found["test"] == EXPECTED
    lines = ["file,label,split"] + [
        f"{i}.png,{EXPECTED[i]},{'train' if i < 16 else 'test'}" for i in range(20)
    ]
    for i in range(20):
        save(tmp_path / "photos" / ("train" if i < 16 else "test") / f"{i}.png", i + 100)
        (tmp_path / "photos" / f"{i}.png").unlink()
    found = contents(config_of(tmp_path, labels=str(write(tmp_path, lines))))
    assert sorted(found["test"]) == [116, 117, 118, 119]
    windows = [line.replace("0.png", "train\\0.png") for line in lines[:11]]
    found = contents(config_of(tmp_path, labels=str(write(tmp_path, windows))))
    assert 100 in found["train"] | found["val"] | found["test"]


def test_images_that_the_table_does_not_name_are_a_warning(tmp_path):
    flat(tmp_path)
    path = write(tmp_path, ["file,label", *rows(18)])
    (warning,) = open_source(config_of(tmp_path, labels=str(path))).warnings
    assert "does not name 2 images, such as" in warning


def test_a_pattern_finds_labels_in_file_names(tmp_path):
    for i in range(20):
        save(tmp_path / "photos" / f"{'Maine_Coon' if i % 2 else 'beagle'}_{i}.png", i)
    config = config_of(tmp_path, label_pattern=r"^(.+)_\d+\.png$")
    found = contents(config)
    assert found["train"] | found["val"] | found["test"] == {
        i: "Maine_Coon" if i % 2 else "beagle" for i in range(20)
    }
    save(tmp_path / "photos" / "other.png", 0)
    with pytest.raises(UserError, match="no label in the names of 1 of 21 images: other.png"):
        open_source(config)


def test_a_pattern_finds_labels_and_splits_in_paths(tmp_path):
    for i in range(12):
        split = "train" if i < 8 else "test"
        save(tmp_path / "photos" / f"{split}ing" / f"{i}-{EXPECTED[i]}.png", i)
    whole = r"(?P<split>train|test)ing/\d+-"
    for pattern in (whole + r"(?P<label>\w+)", whole + r"(\w+)", r"-(\w+)"):
        found = contents(config_of(tmp_path, label_pattern=pattern, val_size=2))
        assert found["test"] == {i: EXPECTED[i] for i in range(8, 12)}


def with_split(value):
    return ["file,label,split", *(f"{row},train" for row in rows(19)), f"19.png,cat,{value}"]


PROBLEMS = {
    "missing file": (["file,label", *rows(), "x.png,cat"], "line 22 of .* 'x.png', which is not"),
    "missing label": (["file,label", *rows(19), "19.png,"], "line 21 of .* has no label in column"),
    "missing name": (["file,label", *rows(19), ",cat"], "line 21 of .* has no file name in column"),
    "missing split": (with_split(""), "line 21 of .* has no split in column split"),
    "unknown split": (with_split("tset"), "has the split 'tset', which is not known: use train"),
    "no train": (
        ["file,label,split", *(f"{r},{('test', 'valid')[i % 2]}" for i, r in enumerate(rows()))],
        "splits test, valid, none of them train: set data.train_split",
    ),
    "duplicate": (["file,label", *rows(), "3.png,cat"], "line 5 of .* and line 22 .* twice"),
    "contradiction": (["file,label", *rows(), "3.png,ant"], "two labels, cat and ant: remove"),
    "two splits": (
        [*with_split("test"), "3.png,cat,test"],
        "3.png in two splits, train and test",
    ),
    "cells": (["file,label", *rows(), "3.png"], "line 22 of .* has 1 cells, the first line has 2"),
    "quote": (
        ["file,label", *rows(), '"3.png'],
        "row that begins on line 22 .*unexpected end of data",
    ),
    "one column": (["file", "3.png"], "no column that is known to hold labels"),
    "columns twice": (["file,label,label", "3.png,a,b"], "several columns 'label'"),
    "one class": (["file,label", "1.png,cat", "2.png,cat"], "a single class .*, cat: give at"),
    "only columns": (["file,label"], "no line below the names of its columns"),
    "empty": ([], "is empty"),
    "control character": (["file,label", *rows(), "3.png,a\x1bb"], "a control character"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problems_of_a_table_are_single_line_errors(tmp_path, problem):
    lines, message = PROBLEMS[problem]
    flat(tmp_path)
    config = config_of(tmp_path, labels=str(write(tmp_path, lines)))
    with pytest.raises(UserError, match=message) as caught:
        contents(config)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tables_are_errors(tmp_path):
    flat(tmp_path)
    path = write(tmp_path, ["file,label", "1.png,été"], encoding="latin-1")
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 17\): save it as UTF-8"):
        open_source(config_of(tmp_path, labels=str(path)))
    path.write_bytes(b"file,label\n1.png,\0")
    with pytest.raises(UserError, match="zero byte"):
        open_source(config_of(tmp_path, labels=str(path)))
    with pytest.raises(UserError, match="data.labels=absent.csv is not a file, nor one in"):
        open_source(config_of(tmp_path, labels="absent.csv"))
    with pytest.raises(UserError, match="data.dir=nowhere is not a folder"):
        open_source(settings(name="folder", dir="nowhere", labels=str(path)))


def test_ambiguous_file_names_are_an_error(tmp_path):
    flat(tmp_path)
    save(tmp_path / "photos" / "3.bmp", 3)
    path = write(tmp_path, ["id,label", "1,cat", "3,ant"])
    with pytest.raises(UserError, match="names the file '3', which is any of .*3.bmp, .*3.png"):
        open_source(config_of(tmp_path, labels=str(path)))


def test_unreadable_images_are_an_error_or_skipped(tmp_path, capsys):
    flat(tmp_path)
    (tmp_path / "photos" / "3.png").write_bytes(b"damaged")
    config = config_of(tmp_path, labels=str(write(tmp_path, ["file,label", *rows()])))
    with pytest.raises(UserError, match="3.png cannot be read as an image .*skip_corrupt=True"):
        levels(open_source(config).examples(""))
    config.skip_corrupt = True
    assert len(levels(open_source(config).examples(""))) == 19
    assert "skipped 1 unreadable of 20 files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data.labels": "x.csv"}, "data.labels='x.csv' has no effect with data.name=digits"),
        ({"data.label_pattern": "(.)"}, "data.label_pattern='.*' has no effect"),
        ({"data.label_column": "x"}, "data.label_column=x has no effect without data.labels or a"),
        ({"data.name": "hf:x", "data.split_column": "x"}, "data.split_column=x has no effect"),
        ({"data.name": "hf:x", "data.label_key": "x"}, "label_key=x .*; set data.label_column"),
        (
            {"data.name": "digits", "data.image_key": "x"},
            "digits: it names a feature of a TFDS dataset$",
        ),
        ({"data.name": "hf:"}, "needs a name or folder, as hf:mnist"),
        (
            {
                "data.name": "folder",
                "data.dir": "x",
                "data.labels": "x",
                "data.label_pattern": "(x)",
            },
            "data.labels or data.label_pattern, not both",
        ),
        (
            {"data.name": "folder", "data.dir": "x", "data.label_pattern": "("},
            "is not a regular expression",
        ),
        (
            {"data.name": "folder", "data.dir": "x", "data.label_pattern": "(?P<split>x)"},
            "has no group for the label: put the part that is the label in parentheses",
        ),
    ],
)
def test_settings_without_effect_are_errors(keys, message):
    with pytest.raises(UserError, match=message):
        make_config(**keys)


def test_a_model_is_trained_and_evaluated_on_a_table(tmp_path):
    """Also on another folder with its table, on class folders, and on single images."""
    classes = ("ant", "bee")
    for name, start in (("photos", 0), ("new", 500)):
        save_noise(tmp_path / name, classes, 20, start)
        lines = [f"{c}/{i}.png,{c}" for c in classes for i in range(20)]
        write(tmp_path / name, ["file,label", *lines])
    config = tiny_training(tmp_path / "photos", **{"data.labels": "labels.csv"})
    run = vit_jax.train(config, workdir=tmp_path / "runs").best_run
    model = vit_jax.load_model(run)
    assert model.class_names == list(classes)
    on_folder = model.evaluate(tmp_path / "new", split="all")
    out = tmp_path / "out"
    other = [f"--config.data.dir={tmp_path / 'new'}", "--split=all", f"--out={out}"]
    assert not app.main(["evaluate", str(run), *other])
    on_table = json.loads((out / "test_report.json").read_text())
    assert on_table["confusion"] == on_folder["confusion"]
    assert not app.main(["predict", str(run), str(tmp_path / "new" / "ant")])


def test_a_changed_table_is_noticed_and_a_moved_one_is_not(tmp_path, capsys):
    classes = {"ant": 40, "bee": 200}
    save_noise(tmp_path / "photos", classes, 20, 0)
    lines = ["file,label", *(f"{c}/{i}.png,{c}" for c in classes for i in range(20))]
    write(tmp_path / "photos", lines)
    keys = {"data.labels": "labels.csv"}
    run = vit_jax.train(tiny_training(tmp_path / "photos", **keys), tmp_path / "runs").best_run
    moved = tmp_path / "moved"
    (tmp_path / "photos").rename(moved)
    assert vit_jax.train(tiny_training(moved, **keys), tmp_path / "runs").best_run == run
    assert vit_jax.load_model(run).evaluate()["count"] == 8  # from where the data are now
    write(moved, [*lines[:-1], "bee/19.png,ant"])
    with pytest.raises(UserError, match="started with other labels"):
        vit_jax.train(tiny_training(moved, **keys), tmp_path / "runs")


def test_a_table_of_labels_belongs_to_its_dataset(tmp_path):
    classes = {"ant": 40, "bee": 200}
    for name in ("photos", "new"):
        save_noise(tmp_path / name, classes, 20, 0)
    paths = [tmp_path / "photos" / c / f"{i}.png" for c in classes for i in range(20)]
    write(tmp_path / "photos", ["file,label", *(f"{path},{path.parent.name}" for path in paths)])
    config = tiny_training(tmp_path / "photos", **{"data.labels": "labels.csv"})
    run = vit_jax.train(config, workdir=tmp_path / "runs").best_run
    shutil.rmtree(tmp_path / "new" / "bee")
    out = tmp_path / "out"
    arguments = [f"--config.data.dir={tmp_path / 'new'}", "--split=all", f"--out={out}"]
    assert not app.main(["evaluate", str(run), *arguments])
    assert np.sum(json.loads((out / "test_report.json").read_text())["confusion"]) == 20
    arguments[0] = "--config.data.multi_label=True"
    assert app.main(["evaluate", str(run), *arguments]) == 1
