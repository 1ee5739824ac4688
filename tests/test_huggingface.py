"""Hugging Face datasets: Arrow and Parquet files, in folders and caches."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from tiny_datasets import levels, settings
from tiny_images import encode, grey, png16, tiny_training
from tiny_labelled import contents

import vit_jax
from vit_jax.data import arrow
from vit_jax.data.sources import open_source
from vit_jax.data.splits import all_splits, only_split
from vit_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device", "no_figures")

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["zebra", "ant"]  # not sorted, as the order of a ClassLabel may be


def make_table(start=0, count=20, names=NAMES, image="image", label="label", struct=True):
    """Make a table of grey images with the levels start, start + 1, ... and alternating labels."""
    content = [encode(grey(start + i)) for i in range(count)]
    cells = [{"bytes": one, "path": None} for one in content] if struct else content
    labels = pa.array([i % 2 for i in range(count)])
    if names is None:
        labels = pa.array([NAMES[i % 2] for i in range(count)])
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct else pa.binary()
    table = pa.table({image: pa.array(cells, kind), label: labels})
    if names is None or not struct:
        return table
    features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return table.replace_schema_metadata(metadata)


def save_arrow(path, table, rows=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def save_parquet(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=7)


def save_to_disk(root, tables):
    """Write what DatasetDict.save_to_disk writes, in two files per split."""
    root.mkdir(parents=True)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(tables)}))
    for split, table in tables.items():
        files = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
        save_arrow(root / split / files[0], table.slice(0, 11))
        save_arrow(root / split / files[1], table.slice(11))
        state = {"_data_files": [{"filename": name} for name in files], "_split": split}
        (root / split / "state.json").write_text(json.dumps(state))


def both():
    return {"train": make_table(), "test": make_table(100, 6)}


def assert_both(config):
    found = contents(config)
    assert found["train"] | found["val"] == {i: NAMES[i % 2] for i in range(20)}
    assert found["test"] == {100 + i: NAMES[i % 2] for i in range(6)}


LAYOUTS = ["data/{}-00000-of-00001.parquet", "{}/0000.parquet", "{}.parquet"]
LAYOUTS += ["{}/data-00000-of-00001.parquet", "mnist_{}-00000-of-00001.parquet"]
LAYOUTS += ["plain_text/{}-00000-of-00001-0123abc.parquet", "default/{}/part-0.parquet"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_parquet_files_is_read(tmp_path, layout):
    for split, table in both().items():
        save_parquet(tmp_path / layout.format(split), table)
    assert_both(settings(name=f"hf:{tmp_path}"))
    assert open_source(settings(name=f"hf:{tmp_path}")).class_names == NAMES


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    save_to_disk(tmp_path / "saved", both())
    assert_both(settings(name=f"hf:{tmp_path / 'saved'}"))
    assert_both(settings(name="hf:saved", dir=str(tmp_path)))
    assert_both(settings(name="hf:owner/saved", dir=str(tmp_path / "saved")))
    for folder in (tmp_path, tmp_path / "saved"):  # of another dataset
        with pytest.raises(UserError, match="contains no folder any"):
            open_source(settings(name="hf:any", dir=str(folder)))
    single = contents(settings(name=f"hf:{tmp_path / 'saved' / 'train'}"))
    assert [len(single[split]) for split in ("train", "val", "test")] == [14, 2, 4]


def test_large_parquet_files_are_memory_mapped(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(arrow, "LARGEST_IN_MEMORY", 100)
    for split, table in both().items():
        save_parquet(tmp_path / "data" / f"{split}.parquet", table)
    for _ in range(2):
        assert_both(settings(name=f"hf:{tmp_path / 'data'}"))
    assert len(list((tmp_path / "cache").glob("vit_jax/arrow/*"))) == 2


@pytest.mark.parametrize("struct", [True, False])
def test_columns_are_found_or_named(tmp_path, struct):
    table = make_table(names=None, image="img", label="fine", struct=struct)
    save_parquet(tmp_path / "train.parquet", table)
    config = settings(name=f"hf:{tmp_path}")
    assert open_source(config).class_names == sorted(NAMES)
    table = table.append_column("coarse", pa.array(["x", "y"] * 10))
    save_parquet(tmp_path / "train.parquet", table)
    with pytest.raises(UserError, match=r"\(fine, coarse\): set data.label_column; the columns"):
        open_source(config)
    config.label_column = "coarse"
    assert open_source(config).class_names == ["x", "y"]
    config.label_column = "img"
    with pytest.raises(UserError, match="data.label_column=img of .* does not hold one label per"):
        open_source(config)
    config.label_column = "absent"
    with pytest.raises(UserError, match="data.label_column=absent is not a column of"):
        open_source(config)


def test_numbers_without_names_are_classes(tmp_path):
    table = make_table(count=12).set_column(1, "label", pa.array(range(12)))
    save_parquet(tmp_path / "x.parquet", table.replace_schema_metadata(None))
    source = open_source(settings(name=f"hf:{tmp_path}"))
    assert source.class_names == [str(i) for i in range(12)]
    assert source.examples("").labels.tolist() == list(range(12))


def test_dictionaries_of_labels_are_classes(tmp_path):
    """As pandas writes categories."""
    table = make_table(names=None)
    values = table["label"].combine_chunks().dictionary_encode()
    save_parquet(tmp_path / "train.parquet", table.set_column(1, "label", values))
    source = open_source(settings(name=f"hf:{tmp_path}"))
    assert source.class_names == sorted(NAMES)
    assert source.examples("").labels.tolist() == [1, 0] * 10


def test_images_of_16_bits_have_a_level_range(tmp_path):
    cells = [{"bytes": png16(np.full((8, 8), 1023, np.uint16)), "path": None}] * 20
    table = make_table()
    table = table.set_column(0, "image", pa.array(cells, table.schema.field("image").type))
    save_parquet(tmp_path / "x.parquet", table)
    source = open_source(settings(name=f"hf:{tmp_path}"))
    assert source.level_range == (0, 1023)
    assert levels(source.examples("")) == [255] * 20


def test_images_outside_of_the_table_are_read(tmp_path):
    Image.fromarray(grey(7)).save(tmp_path / "7.png")
    table = make_table()
    for path in ("7.png", "absent.png"):
        cells = pa.array([{"bytes": None, "path": path}] * 20, table.schema.field("image").type)
        save_parquet(tmp_path / "x.parquet", table.set_column(0, "image", cells))
        examples = open_source(settings(name=f"hf:{tmp_path}")).examples("")
        if path == "7.png":
            assert levels(examples) == [7] * 20
    with pytest.raises(UserError, match="row 0 of .* names the file absent.png, which cannot"):
        levels(examples)


def test_unreadable_images_are_an_error_or_skipped(tmp_path, capsys):
    table = make_table(struct=False)
    cells = table["image"].to_pylist()
    cells[3] = b"damaged"
    table = table.set_column(0, "image", pa.array(cells))
    save_parquet(tmp_path / "x.parquet", table)
    config = settings(name=f"hf:{tmp_path}")
    with pytest.raises(UserError, match="row 3 of .* cannot be read as an image .*skip_corrupt"):
        levels(open_source(config).examples(""))
    config.skip_corrupt = True
    assert levels(open_source(config).examples("")) == [i for i in range(20) if i != 3]
    assert "skipped 1 unreadable of 20 files: 3" in capsys.readouterr().out


def change_labels(split, values):
    tables = both()
    column = tables[split].schema.field("label").type
    tables[split] = tables[split].set_column(1, "label", pa.array(values, column))
    return tables


PROBLEMS = {
    "unlabelled": (change_labels("test", [-1] * 6), "without a label .*data.test_split=hold_out"),
    "null": (change_labels("test", [None] * 6), "without a label .*data.test_split=hold_out"),
    "unknown": (change_labels("test", [5] * 6), "the label 5, which is not one of the 2 classes"),
    "other classes": (
        both() | {"test": make_table(names=["bee", "cat"])},
        "class names of .* .bee, cat. differ from those of the training split .zebra, ant.",
    ),
    "empty": (both() | {"test": make_table(0, 0)}, "split 'test' of .* is empty"),
    "no train": ({"test": make_table(), "x": make_table()}, "none of them train"),
    "one class": ({"train": make_table(names=["ant"])}, "fewer than two classes"),
    "no images": ({"train": make_table().drop_columns("image")}, "no column holds encoded images"),
    "lists": (
        {"train": make_table().set_column(1, "label", pa.array([[1]] * 20))},
        "no column holds one label per image",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problems_are_single_line_errors(tmp_path, problem):
    tables, message = PROBLEMS[problem]
    save_to_disk(tmp_path / "saved", tables)
    with pytest.raises(UserError, match=message) as caught:
        contents(settings(name=f"hf:{tmp_path / 'saved'}"))
    assert "\n" not in str(caught.value)


def test_splits_that_are_not_used_are_a_warning(tmp_path):
    save_to_disk(tmp_path / "saved", both() | {"unsupervised": make_table()})
    (warning,) = open_source(settings(name=f"hf:{tmp_path / 'saved'}")).warnings
    assert "the images of unsupervised are not used" in warning


def test_a_dataset_for_tests_only_is_evaluated_whole(tmp_path):
    save_parquet(tmp_path / "data/test-00000-of-00001.parquet", both()["test"])
    config = settings(name=f"hf:{tmp_path}")
    source = open_source(config, min_classes=1)
    assert only_split(source) == "test" and [len(one) for one in all_splits(source, config)] == [6]
    assert open_source(config).split_names == []  # a training holds test images out


def test_splits_whose_names_begin_alike_stay_apart(tmp_path):
    tables = both() | {"test_noisy": make_table(100)}
    for split, table in tables.items():
        save_parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", table)
    source = open_source(settings(name=f"hf:{tmp_path}"))
    assert sorted(source.split_names) == sorted(tables)
    assert len(source.examples("test")) == len(tables["test"])


def test_damaged_and_missing_files_are_errors(tmp_path):
    save_to_disk(tmp_path / "saved", both())
    config = settings(name=f"hf:{tmp_path / 'saved'}")
    file = tmp_path / "saved" / "train" / "data-00001-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"data-00001-of-00002.arrow cannot be read \("):
        contents(config)
    file.unlink()
    with pytest.raises(UserError, match="is incomplete: it has no data-00001-of-00002.arrow"):
        contents(config)
    first = tmp_path / "shards" / "train-00000-of-00002-0a.parquet"
    save_parquet(first, make_table())
    with pytest.raises(UserError, match="shards is incomplete: it has no train-00001-of-00002"):
        contents(settings(name=f"hf:{tmp_path / 'shards'}"))
    save_parquet(first.with_name("train-00001-of-00002-9f.parquet"), make_table(20))
    source = open_source(settings(name=f"hf:{tmp_path / 'shards'}"))
    assert levels(source.examples(source.train_split)) == list(range(40))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty contains no Parquet or Arrow files"):
        contents(settings(name=f"hf:{tmp_path / 'empty'}"))
    with pytest.raises(UserError, match="nowhere is not a folder"):
        contents(settings(name=f"hf:{tmp_path / 'nowhere'}"))


def test_a_configuration_is_named(tmp_path):
    for variant, start in (("a", 0), ("b", 100)):
        save_parquet(tmp_path / "sets" / variant / "train.parquet", make_table(start))
    with pytest.raises(UserError, match=r"several configurations \(a, b\): append one .*hf:NAME:b"):
        contents(settings(name=f"hf:{tmp_path / 'sets'}"))
    assert min(contents(settings(name=f"hf:{tmp_path / 'sets'}:b"))["train"]) >= 100


@pytest.mark.parametrize("cache", ["hub", "datasets"])
def test_mnist_is_read_from_the_caches_of_hugging_face(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for key in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(key, raising=False)
    for split, table in both().items():
        if cache == "hub":
            folder = tmp_path / "hub" / "datasets--ylecun--mnist" / "snapshots" / "77f3279"
            save_parquet(folder / "mnist" / f"{split}-00000-of-00001.parquet", table)
            newer = folder.with_name("88a0000")  # of which a download did not finish
            save_parquet(newer / "mnist" / f"{split}-00000-of-00002.parquet", make_table(50))
        else:
            folder = tmp_path / "datasets" / "ylecun___mnist" / "mnist" / "0.0.0" / "77f3279"
            save_arrow(folder / f"mnist-{split}.arrow", table)
            (folder / "dataset_info.json").write_text('{"splits": {"train": {}, "test": {}}}')
    assert_both(settings(name="hf:mnist"))
    assert_both(settings(name="hf:ylecun/mnist"))


def test_a_cached_dataset_without_a_training_split_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    folder = tmp_path / "hub" / "datasets--ylecun--mnist" / "snapshots" / "77f3279"
    save_parquet(folder / "mnist" / "test-00000-of-00001.parquet", both()["test"])
    open_source(settings(name="hf:mnist"))
    assert "has no training split, only test" in capsys.readouterr().err


def test_a_missing_dataset_is_an_error_that_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    config = settings(name="hf:cifar10", download=False)
    with pytest.raises(
        UserError, match="data.download=False forbids .*hf:FOLDER; data.name=cifar10"
    ):
        open_source(config)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    config.download = True
    with pytest.raises(UserError, match=r"cifar10 is neither .*pip install datasets pyarrow"):
        open_source(config)


def test_what_datasets_writes_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    made = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": table["image"].to_pylist(), "label": table["label"].to_pylist()},
                features=features,
            )
            for split, table in both().items()
        }
    )
    made.save_to_disk(tmp_path / "saved")
    for split in made:
        made[split].to_parquet(str(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet"))
    for name in ("saved", "parquet"):
        assert_both(settings(name=f"hf:{tmp_path / name}"))


def test_a_model_is_trained_and_evaluated(tmp_path):
    save_to_disk(tmp_path / "saved", both())
    keys = {"data.name": f"hf:{tmp_path / 'saved'}", "data.dir": "", "train.batch_size": 8}
    config = tiny_training(pathlib.Path(tmp_path / "x"), **keys)
    run = vit_jax.train(config, workdir=tmp_path / "runs").best_run
    model = vit_jax.load_model(run)
    assert model.class_names == NAMES
    own = model.evaluate()
    assert np.sum(own["confusion"]) == 6
    assert model.evaluate(f"hf:{tmp_path / 'saved'}")["confusion"] == own["confusion"]
