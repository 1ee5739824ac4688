"""Several labels per image in tables: separated, or columns of 0 and 1."""

import json

import numpy as np
import pytest
from tiny_images import folder_config
from tiny_labels import CLASSES, write_images
from tiny_runs import run

from vit_jax.data.doctor import diagnose
from vit_jax.data.examples import describe_label
from vit_jax.data.sources import open_source
from vit_jax.report.data_page import write_data_page
from vit_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")


def read_folder(root, **keys):
    config = folder_config(root, labels="labels.csv", multi_label=True, **keys)
    source = open_source(config)
    return source.class_names, source.examples("").labels


@pytest.mark.parametrize(("separator", "text"), [("|", "|"), (" ", " "), (";", " ; ")])
def test_a_column_of_separated_labels_is_read(tmp_path, separator, text):
    labels = write_images(tmp_path / "x")
    lines = ["file,tags"]
    for i, row in enumerate(labels):
        lines.append(f"{i}.png,{text.join(CLASSES[j] for j in np.flatnonzero(row))}")
    (tmp_path / "x" / "labels.csv").write_text("\n".join(lines))
    names, found = read_folder(tmp_path / "x", label_column="tags", label_separator=separator)
    assert names == sorted(CLASSES) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels[:, [2, 1, 0]])


def test_another_separator_in_the_labels_is_a_warning(tmp_path, capsys):
    write_images(tmp_path / "x", 4)
    lines = ["file,tags", "0.png,red", *(f'{i}.png,"red,blue"' for i in range(1, 4))]
    (tmp_path / "x" / "labels.csv").write_text("\n".join(lines))
    names, _ = read_folder(tmp_path / "x", label_column="tags")
    assert names == ["red", "red,blue"]
    assert "set data.label_separator=','" in capsys.readouterr().err


def test_combinations_are_no_classes(tmp_path):
    write_images(tmp_path / "x", 4)

    def read(*labels):
        lines = ["file,tags", *(f"{i}.png,{label}" for i, label in enumerate(labels))]
        (tmp_path / "x" / "labels.csv").write_text("\n".join(lines))
        return read_folder(tmp_path / "x", label_column="tags")[0]

    with pytest.raises(UserError, match="3 labels are combinations .*label_separator=' '"):
        read("clear", "water", "clear water", "clear")
    assert read("polar bear", "brown bear", "fox", "fox") == ["brown bear", "fox", "polar bear"]


def test_columns_of_0_and_1_are_classes(tmp_path, capsys):
    labels = write_images(tmp_path / "x")
    lines = ["file,red,green,blue,remark"]
    lines += [f"{i}.png,{','.join(map(str, row))},day {i}" for i, row in enumerate(labels)]
    (tmp_path / "x" / "labels.csv").write_text("\n".join(lines))
    names, found = read_folder(tmp_path / "x")
    assert names == sorted(CLASSES)
    np.testing.assert_array_equal(found, labels[:, [2, 1, 0]])
    captured = capsys.readouterr()
    assert "labels in red, green, blue" in captured.out and not captured.err
    (tmp_path / "x" / "labels.csv").write_text("\n".join([*lines[:-1], "39.png,1,-1,0,day 39"]))
    assert read_folder(tmp_path / "x")[0] == ["blue", "red"]
    expected = "column green is not a class, because line 41 has '-1' instead of 0 or 1"
    assert expected in capsys.readouterr().err


def test_a_model_learns_from_a_table(tmp_path):
    labels = write_images(tmp_path / "x", 80)
    lines = ["file,red,green,blue"]
    lines += [f"{i}.png,{','.join(map(str, row))}" for i, row in enumerate(labels)]
    (tmp_path / "x" / "labels.csv").write_text("\n".join(lines))
    keys = dict(data__name="folder", data__dir=str(tmp_path / "x"), data__labels="labels.csv")
    keys |= dict(data__channels=3, data__multi_label=True, train__batch_size=16)
    folder = run(tmp_path / "runs", **keys, train__epochs=8.0)
    assert json.loads((folder / "summary.json").read_text())["test_map"] > 0.9


def test_a_table_of_several_labels_is_checked(tmp_path):
    labels = write_images(tmp_path / "x", 60)
    lines = ["file,red,green,blue"]
    lines += [f"{i}.png,{','.join(map(str, row))}" for i, row in enumerate(labels)]
    other = np.flatnonzero((labels != labels[0]).any(1))[0]
    (tmp_path / "x" / "copy.png").write_bytes((tmp_path / "x" / "0.png").read_bytes())
    lines.append(f"copy.png,{','.join(map(str, labels[other]))}")
    (tmp_path / "x" / "labels.csv").write_text("\n".join(lines))
    config = folder_config(tmp_path / "x", labels="labels.csv", multi_label=True, channels=3)
    diagnosis = diagnose(config)
    texts = [finding.text for finding in diagnosis.findings]
    assert any("different labels: 1" in text for text in texts), texts
    order = [diagnosis.class_names.index(name) for name in CLASSES]
    total = sum(np.array(counts)[order] for counts in diagnosis.counts.values())
    np.testing.assert_array_equal(total, labels.sum(0) + labels[other])
    write_data_page(tmp_path / "data.html", "x", diagnosis)
    named = describe_label(labels[other][[2, 1, 0]], sorted(CLASSES))
    assert f"{named}: copy.png" in (tmp_path / "data.html").read_text()
