"""Suspect labels are found, corrected in a CSV file, and never confused with the given ones."""

import csv
import re
import shutil

import numpy as np
import pytest
from tiny_datasets import make_folder, settings
from tiny_images import folder_config, save_noise, tiny_training, train_on_noise
from tiny_runs import run_configs

from vit_jax.cli import evaluate, suspects
from vit_jax.config import presets
from vit_jax.data import load_data, relabel
from vit_jax.data.sources import open_source
from vit_jax.data.splits import assign_folds, make_splits, open_splits
from vit_jax.evaluation.suspects import find_wrong, score
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.training.variants import make_variants

pytestmark = pytest.mark.usefixtures("one_device", "no_figures")
CLASSES = ["ant", "bee", "<b>cat"]


def write_labels(path, config, changed, **columns):
    """Write a file of corrected labels: {example: class}, or {index: class}."""
    source = open_source(config)
    opened, names = open_splits(source, config), source.class_names
    key = relabel.key_of(names, opened)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, relabel.COLUMNS)
        writer.writeheader()
        for examples in opened.values():
            for i, (name, label) in enumerate(zip(examples.names, examples.labels, strict=True)):
                row = {"example": name, "given": names[label], "dataset": key}
                row["label"] = changed.get(name, changed.get(i, row["given"]))
                writer.writerow(row | columns)
    return path


def labels_of(config):
    examples = make_splits(open_source(config), config)
    return {
        name: int(label)
        for one in (examples.train, examples.val, examples.test)
        for name, label in zip(one.names, one.labels, strict=True)
    }


def flip(path, config, fraction):
    """Write a file that gives a fraction of the labels another class; return those examples."""
    source = open_source(config)
    labels, rng = source.examples("").labels, np.random.default_rng(0)
    rows = rng.choice(len(labels), round(fraction * len(labels)), replace=False).tolist()
    names = source.class_names
    write_labels(path, config, {i: names[(labels[i] + rng.integers(1, 10)) % 10] for i in rows})
    return set(map(str, rows))


def train(config, workdir):
    """Train without a report; return the folder of the run."""
    run_configs(make_variants(config, {}, set()), workdir)
    return workdir / "base" / "seed_0"


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """The run of a small ViT on the digits, 5 % of their labels flipped, and the flipped ones."""
    root = tmp_path_factory.mktemp("suspects")
    config = presets.digits_vit()
    config.model.update(patch_size=4, depth=2)
    config.train.update(num_seeds=1, epochs=15.0, eval_every_epochs=15.0)
    config.log.update(explain_images=0, tensorboard=False)
    flipped = flip(root / "flipped.csv", config.data, 0.05)
    config.data.relabel = str(root / "flipped.csv")
    run = train(config, root / "runs")
    assert suspects.main([str(run), "--cross-validate=2"]) == 0
    return run, flipped


def read_rows(run):
    with (run / "suspects" / "suspects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_flipped_labels_are_in_the_worst_tenth(ranked):
    run, flipped = ranked
    rows = read_rows(run)
    assert len(rows) == 1797 and len(flipped) == 90
    assert len({row["example"] for row in rows}) == 1797
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    confidence = [float(row["self_confidence"]) for row in rows]
    assert confidence == sorted(confidence)
    assert {row["example"] for row in rows if row["label"] != row["given"]} == flipped
    worst = {row["example"] for row in rows[:179]}
    assert len(worst & flipped) >= 0.8 * len(flipped)
    suspect = {row["example"] for row in rows if row["suspect"]}
    assert len(suspect & flipped) >= 0.7 * len(flipped)


def test_cross_validation_resumes_and_edits_are_not_overwritten(ranked, capsys, tmp_path):
    run, flipped = ranked
    assert suspects.main([str(run), "--cross-validate=2", "--rank-by=margin"]) == 0
    assert capsys.readouterr().out.count("already finished, skipped") == 2
    margins = [float(row["margin"]) for row in read_rows(run)]
    assert margins == sorted(margins)
    table = run / "suspects" / "suspects.csv"
    text, example = table.read_text(), min(flipped)
    old = re.search(rf"^{example},(\d),", table.read_text(), re.MULTILINE)
    assert old is not None
    table.write_text(text.replace(old[0], f"{example},{(int(old[1]) + 1) % 10},"))
    edited = table.read_text()
    assert suspects.main([str(run)]) == 1
    assert "labels that you edited (1): rename it" in capsys.readouterr().err
    assert table.read_text() == edited
    table.write_text(text)
    assert suspects.main([str(run), f"--out={tmp_path}"]) == 0  # validation and test images only
    with (tmp_path / "suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # The run's own corrections of training images are in the file too.
    assert {row["example"] for row in rows if row["label"] != row["given"]} == flipped
    assert {row["split"] for row in rows if row["self_confidence"]} == {"val", "test"}


def test_page_is_self_contained(ranked):
    page = (ranked[0] / "suspects" / "suspects.html").read_text()
    assert page.count("data:image/png;base64,") == 60
    assert "<script" not in page and not re.search(r"(src|href)=\"(?!data:)", page)


def test_scores_by_hand():
    probabilities = np.array([[0.9, 0.1, 0], [0.3, 0.6, 0.1], [0.2, 0.8, 0], [0.4, 0.1, 0.5]])
    own, margin = score(probabilities, np.array([0, 0, 1, 2]))
    assert own == pytest.approx([0.9, 0.3, 0.8, 0.5])
    assert margin == pytest.approx([0.8, -0.3, 0.6, 0.1])
    # Thresholds 0.6, 0.8 and 0.5: the second image reaches none of them.
    assert not find_wrong(probabilities, np.array([0, 0, 1, 2])).any()
    probabilities[1] = 0.05, 0.9, 0.05
    assert find_wrong(probabilities, np.array([0, 0, 1, 2])).tolist() == [False, True, False, False]


def test_folds_partition_the_training_examples():
    labels = np.repeat([0, 1, 2], [9, 6, 4])
    folds = assign_folds(labels, 3, 0)
    assert sorted(np.bincount(folds).tolist()) == [6, 6, 7]
    for label, count in enumerate((9, 6, 4)):
        sizes = np.bincount(folds[labels == label], minlength=3)
        assert sizes.sum() == count and np.ptp(sizes) <= 1
    with pytest.raises(UserError, match="data.num_folds=20 is larger"):
        assign_folds(labels, 20, 0)


def test_folds_replace_the_test_split(tmp_path):
    root = make_folder(tmp_path, ("train", "valid", "test"), per_class=4)
    whole = make_splits(open_source(folder_config(root)), folder_config(root))
    held_out = []
    for fold in range(3):
        config = folder_config(root, num_folds=3, fold=fold)
        splits = make_splits(open_source(config), config)
        assert splits.val.names == whole.val.names
        assert not set(splits.train.names) & set(splits.test.names)
        assert {*splits.train.names, *splits.test.names} == set(whole.train.names)
        held_out += splits.test.names
    assert sorted(held_out) == sorted(whole.train.names)


# data.relabel


def test_labels_change_but_splits_do_not(tmp_path):
    config = folder_config(save_noise(tmp_path / "photos", CLASSES, 10))
    before = labels_of(config)
    path = write_labels(tmp_path / "new.csv", config, {"ant/3.png": "bee"})
    path.write_text("\ufeff" + path.read_text().replace(",", ";"))  # as spreadsheets do
    after = labels_of(folder_config(config.dir, relabel=str(path)))
    assert after == before | {"ant/3.png": 2}
    assert list(after) == list(before)


@pytest.mark.parametrize("resident", ["always", "never"])
def test_fingerprint_and_images_of_relabelled_data(tmp_path, resident, capsys):
    config = folder_config(save_noise(tmp_path / "photos", CLASSES, 10), device_resident=resident)
    mesh = sharding.make_mesh()
    before = load_data(config, mesh)
    changed = {f"ant/{i}.png": "bee" for i in range(10)}
    config.relabel = str(write_labels(tmp_path / "new.csv", config, changed))
    data = load_data(config, mesh)
    assert before.fingerprint != data.fingerprint and "relabel" not in before.fingerprint
    assert data.fingerprint["relabel"]["changed"] == 10
    assert "corrects labels of images: 10" in capsys.readouterr().out
    found = [
        batch["label"]
        for split in (data.train, data.val, data.test)
        for batch in split.evaluate(30)
    ]
    assert np.bincount(np.concatenate(found), minlength=3).tolist()[1] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("ant/1.png", "ant/99.png"),
            "examples that the dataset does not",
        ),
        (
            lambda text: text.replace("bee/1.png,bee", "bee/1.png,be"),
            "class 'be'; did you mean bee",
        ),
        (lambda text: text.replace("bee/1.png,bee,bee", "bee/1.png,ant,ant"), "the class in the"),
        (lambda text: text.replace("bee/1.png,bee,bee", "bee/1.png,bee,ant"), "the class in the"),
        (lambda text: re.sub("[0-9a-f]{16}", "0" * 16, text), "written for another dataset"),
        (lambda text: re.sub("[0-9a-f]{16}", "0" * 16, text, count=1), "of different datasets"),
        (lambda text: text.replace("label,", "class,", 1), "lacks columns .label.: it needs"),
        (lambda text: text + text.splitlines()[-1].replace(",bee", ",ant", 1) + "\n", "two labels"),
        (
            lambda text: text.replace("ant/1.png", '"ant/1.png'),
            "row that begins on line 7 .*: close its quotation mark",
        ),
        (
            lambda text: text.replace("label,", "label,label,", 1),
            "has 4 cells, the first line has 5",
        ),
        (lambda text: re.sub("^", "label,", text, flags=re.M)[:-6], "several columns 'label'"),
        (lambda text: text + "ant/2.png,bee\n", "has 2 cells, the first line has 4"),
        (lambda text: "\0", "zero byte"),
    ],
)
def test_file_that_does_not_fit_is_refused(tmp_path, change, message):
    config = folder_config(save_noise(tmp_path / "photos", CLASSES, 4))
    path = write_labels(tmp_path / "new.csv", config, {"ant/0.png": "bee"})
    config.relabel = str(path)
    make_splits(open_source(config), config)
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message):
        make_splits(open_source(config), config)


def test_file_of_other_images_or_missing_is_refused(tmp_path):
    config = folder_config(save_noise(tmp_path / "photos", CLASSES, 4))
    config.relabel = str(write_labels(tmp_path / "new.csv", config, {}))
    make_splits(open_source(config), config)
    (tmp_path / "photos/ant/3.png").unlink()
    with pytest.raises(UserError, match="written for another dataset"):
        make_splits(open_source(config), config)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        labels_of(settings(name="digits", relabel=str(tmp_path / "none.csv")))


def test_a_run_of_other_classes_is_refused(tmp_path, capsys):
    run = train_on_noise(tmp_path, ["ant", "bee", "cat"])
    shutil.rmtree(tmp_path / "photos" / "bee")
    assert suspects.main([str(run)]) == 1
    assert "classes ant, cat, but base/seed_0 was trained with ant, bee, cat" in (
        capsys.readouterr().err
    )


def test_runs_of_other_labels_are_not_confused(tmp_path, capsys):
    photos = save_noise(tmp_path / "photos", CLASSES, 20)
    path = write_labels(tmp_path / "a.csv", folder_config(photos), {"ant/0.png": "bee"})

    def run_of(name, relabel=""):
        config = tiny_training(photos, **{"data.relabel": str(relabel)}).config
        return train(config, tmp_path / "runs" / name)

    run = run_of("one", path)
    run_of("two")
    assert "reused" not in capsys.readouterr().out
    with pytest.raises(UserError, match="other corrected labels"):
        run_of("one")
    with pytest.raises(UserError, match="other corrected labels"):
        run_of("two", path)
    moved = shutil.copy(path, tmp_path / "b.csv")
    run_of("one", moved)  # the same contents
    path.write_text(path.read_text().replace("bee/1.png,bee", "bee/1.png,ant"))
    with pytest.raises(UserError, match="other corrected labels"):
        run_of("one", path)
    # The evaluation of another dataset has nothing to correct.
    out, other = tmp_path / "out", save_noise(tmp_path / "other", CLASSES, 3, start=500)
    arguments = [str(run), "--split=all", f"--out={out}", f"--config.data.dir={other}"]
    assert evaluate.main(arguments) == 0
