"""Several labels per image: metrics, thresholds, splits, training and prediction."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from tiny_configs import make_config
from tiny_datasets import settings
from tiny_images import encode, tfds_config
from tiny_labels import CLASSES, stripes, write_images, write_stripes
from tiny_runs import MESH, last_state, run

import vit_jax
from vit_jax import pretrained
from vit_jax.augment import augment
from vit_jax.cli.predict import main as predict
from vit_jax.cli.suspects import main as suspects
from vit_jax.data import load_data
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits, stratified
from vit_jax.evaluation.labels import (
    average_precision,
    choose_thresholds,
    make_label_report,
    mean_average_precision,
)
from vit_jax.evaluation.metrics import binary_losses
from vit_jax.explanation import analysis
from vit_jax.report import table
from vit_jax.report.run import class_note
from vit_jax.runtime.errors import UserError
from vit_jax.storage import run_folder

pytestmark = pytest.mark.usefixtures("one_device")

VALUES = dict(
    data__name="shapes", data__channels=3, data__label_key="labels", data__multi_label=True
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("stripes")
    write_stripes(root)
    return root


@pytest.fixture(scope="module")
def trained(stored, tmp_path_factory):
    keys = VALUES | dict(data__dir=str(stored), train__batch_size=32, train__epochs=12.0)
    keys |= dict(log__explain_images=4)
    return run(tmp_path_factory.mktemp("runs"), report=True, **keys)


def random_scores(seed, ties):
    rng = np.random.default_rng(seed)
    labels = (rng.random((200, 5)) < (0.5, 0.1, 0.9, 0.02, 0.3)).astype(np.uint8)
    scores = rng.normal(size=labels.shape) + labels
    return (scores.round(1) if ties else scores), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_scikit_learn(seed, ties):
    scores, labels = random_scores(seed, ties)
    expected = metrics.average_precision_score(labels, scores, average=None)
    np.testing.assert_allclose(average_precision(scores, labels), expected, rtol=1e-12)
    expected = metrics.average_precision_score(labels, scores, average="macro")
    np.testing.assert_allclose(mean_average_precision(scores, labels), expected, rtol=1e-12)


def test_a_class_without_images_is_not_in_the_map():
    scores, labels = random_scores(0, False)
    labels[:, 3] = 0
    found = average_precision(scores, labels)
    assert np.isnan(found[3]) and np.isfinite(np.delete(found, 3)).all()
    expected = metrics.average_precision_score(labels[:, [0, 1, 2, 4]], scores[:, [0, 1, 2, 4]])
    assert mean_average_precision(scores, labels) == pytest.approx(expected, rel=1e-12)


def test_thresholds_have_the_highest_f1_of_all_thresholds():
    scores, labels = random_scores(1, True)
    probabilities = 1 / (1 + np.exp(-scores))
    for i, threshold in enumerate(choose_thresholds(probabilities, labels)):
        column = probabilities[:, i]
        chosen = metrics.f1_score(labels[:, i], column >= threshold)
        others = [metrics.f1_score(labels[:, i], column >= t) for t in np.unique(column)]
        assert chosen == pytest.approx(max(others), rel=1e-12)
    assert choose_thresholds(probabilities, np.zeros_like(labels)) == [0.5] * 5


def test_the_report_is_that_of_scikit_learn():
    scores, labels = random_scores(2, False)
    report = make_label_report(scores, labels, list("abcde"), [0.5] * 5)
    predicted = scores >= 0
    for average in ("micro", "macro"):
        expected = metrics.f1_score(labels, predicted, average=average)
        assert report[f"{average}_f1"] == pytest.approx(expected, rel=1e-12)
    assert report["exact_match"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert report["label_accuracy"] == pytest.approx(1 - metrics.hamming_loss(labels, predicted))
    expected = metrics.precision_recall_fscore_support(labels, predicted, zero_division=0.0)
    found = [[c[k] for c in report["classes"].values()] for k in ("precision", "recall", "f1")]
    np.testing.assert_allclose(found, expected[:3], rtol=1e-12)


def test_loss_is_the_binary_cross_entropy():
    scores, labels = random_scores(0, False)
    found = binary_losses(scores.astype(np.float32), labels).mean()
    expected = metrics.log_loss(labels.ravel(), 1 / (1 + np.exp(-scores.ravel())))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    smooth = binary_losses(np.zeros((1, 4), np.float32) + 20, np.ones((1, 4)), 0.2)
    assert float(smooth[0]) == pytest.approx(0.1 * 20, rel=1e-5)  # targets of 0.9


def test_splits_are_stratified_by_every_label():
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 4)) < (0.5, 0.05, 0.2, 0.9)).astype(np.uint8)
    chosen, rest = stratified(labels, 100, 0)
    assert len(chosen) == 100 and sorted([*chosen, *rest]) == list(range(400))
    assert np.abs(labels[chosen].sum(0) - labels.sum(0) / 4).max() <= 1
    assert (stratified(labels, 100, 0)[0] == chosen).all()
    assert (stratified(labels, 100, 1)[0] != chosen).any()


def test_sequences_of_class_labels_are_read(stored):
    config = tfds_config(stored, label_key="labels", multi_label=True)
    source = open_source(config)
    examples, (images, labels) = source.examples("train"), stripes(120)
    assert source.class_names == CLASSES
    np.testing.assert_array_equal(examples.labels, labels)
    assert examples.labels.dtype == np.uint8
    for (image, label), *expected in zip(examples.read(range(120)), images, labels, strict=True):
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(label, expected[1])


def test_resident_and_streamed_batches_are_the_same(stored):
    config = tfds_config(stored, label_key="labels", multi_label=True)
    resident = load_data(config, MESH)
    config.device_resident = "never"
    streamed = load_data(config, MESH)
    assert run_folder.is_same_data(resident.fingerprint, streamed.fingerprint)
    pairs = zip(resident.train.train(3, 0, 4, 16), streamed.train.train(3, 0, 4, 16), strict=True)
    for one, other in pairs:
        assert one["label"].shape == (16, 3) and one["label"].dtype == np.uint8
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_mixed_targets_keep_every_label():
    config = make_config(augment__mixup_alpha=1.0, augment__mix_rate=1.0, data__channels=3)
    images, labels = stripes(8)
    targets = np.asarray(augment(jax.random.key(0), images, labels, 3, config)[1])
    both = labels & np.roll(labels, -1, 0)
    either = labels | np.roll(labels, -1, 0)
    np.testing.assert_allclose(targets[both == 1], 1, rtol=1e-6)
    assert (targets[either == 0] == 0).all() and ((targets > 0) & (targets < 1)).any()


def test_orders_are_those_of_the_map(trained):
    (row,) = json.loads((trained.parents[1] / "results.json").read_text())["rows"]
    found = table.orders([row | {"variant": "a"}, row | {"variant": "b"}], {"paper": "a > b"})
    mean = 100 * row["test_map"]["mean"]
    assert found == {"paper": "a > b", "this run": f"a {mean:.1f}, b {mean:.1f}"}
    assert table.published_head([row])[1] == "test mAP, %, neighbours compared"


def test_a_model_learns_several_labels(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["test_map"] > 0.9 and "test_accuracy" not in summary
    report = json.loads((trained / "test_report.json").read_text())
    assert report["map"] == summary["test_map"]
    assert [one["threshold"] for one in report["classes"].values()] == summary["thresholds"]
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert max(row["val/map"] for row in rows if "val/map" in row) == summary["val_map"]
    assert not any("train/accuracy" in row for row in rows)
    results = json.loads((trained.parents[1] / "results.json").read_text())
    assert results["rows"][0]["test_map"]["mean"] == summary["test_map"]
    page = (trained.parents[1] / "report.html").read_text()
    assert "Test mAP" in page and "accuracy" not in page.replace("label accuracy", "")
    assert "Accurac" not in page
    assert "AP: average precision" in (trained / "test_report.txt").read_text()


def test_the_best_checkpoint_has_the_highest_validation_map(trained, stored):
    """The evaluation of the finished run gives what the run measured."""
    model = vit_jax.load_model(trained)
    found = model.evaluate(split="val")
    summary = json.loads((trained / "summary.json").read_text())
    assert found["map"] == pytest.approx(summary["val_map"], abs=1e-6)
    config = tfds_config(stored, label_key="labels", multi_label=True)
    splits = make_splits(open_source(config), config)
    images, labels = splits.test.decode_all(1)
    expected = metrics.average_precision_score(labels, model.predict(images))
    assert summary["test_map"] == pytest.approx(expected, abs=1e-6)


def test_a_run_of_tfds_is_evaluated_on_a_folder(trained, tmp_path):
    labels = write_images(tmp_path / "x")
    lines = ["file,red,green,blue"]
    lines += [f"{i}.png,{','.join(map(str, row))}" for i, row in enumerate(labels)]
    (tmp_path / "x" / "labels.csv").write_text("\n".join(lines))
    overrides = {"data.labels": "labels.csv"}
    model = vit_jax.load_model(trained)
    report = model.evaluate(tmp_path / "x", split="all", overrides=overrides)
    assert report["count"] == 40 and report["map"] > 0.9


def test_prediction_applies_the_thresholds(trained, tmp_path, capsys):
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., (0, 2)] = 170
    image[..., 1] = 50
    Image.fromarray(image).save(tmp_path / "purple.png")
    predict([str(trained), str(tmp_path / "purple.png"), "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert set(answer["labels"]) == {"red", "blue"} and len(answer["top5"]) == 3
    predict([str(trained), str(tmp_path / "purple.png")])
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[-1] for line in lines if line.startswith("*")) == ["blue", "red"]


def test_analyses_of_one_class_per_image_refuse_several(trained):
    model, (images, _) = vit_jax.load_model(trained), stripes(4)
    for analyse in (analysis.ablation, analysis.logit_lens):
        with pytest.raises(UserError, match="needs one class per image"):
            analyse(model, images)


@pytest.mark.parametrize("kind", ["hf", "timm"])
def test_an_export_keeps_several_labels_or_says_that_it_does_not(trained, tmp_path, kind):
    out = tmp_path / "out"
    notes = pretrained.export(pretrained.load(trained), kind, out)
    assert "the file cannot record the thresholds of the labels" in notes
    lost = "the file cannot record data.multi_label=True: apply a sigmoid"
    model, images = vit_jax.load_model(out / "model.safetensors"), stripes(4)[0]
    rows = model.predict(images)
    if kind == "timm":
        assert lost in notes
        np.testing.assert_allclose(rows.sum(1), 1)
    else:
        with pytest.raises(UserError, match="predicts several labels per image: use another"):
            run(tmp_path / "runs", train__teacher=str(out / "model.safetensors"))
        assert lost not in notes and model.thresholds == [0.5] * 3
        report = make_label_report(np.zeros((4, 3)), stripes(4)[1], ["a", "b", "c"], [0.5] * 3)
        assert "Thresholds are not fitted" in class_note(report)
        np.testing.assert_allclose(rows, vit_jax.load_model(trained).predict(images), atol=1e-6)
        assert [name for name, _ in model.labels_of(np.array([0.2, 0.6, 0.9]))] == [
            model.class_names[2],
            model.class_names[1],
        ]


def test_predictions_of_several_labels_are_written_and_not_sorted(trained, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    images, labels = stripes(12, 5)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{i:02d}.png")
    table = tmp_path / "out.csv"
    arguments = [str(trained), str(tmp_path / "images")]
    assert not predict([*arguments, f"--csv={table}"])
    rows = list(csv.DictReader(table.read_text().splitlines()))
    expected = [{name for name, on in zip(CLASSES, row, strict=True) if on} for row in labels]
    found = [set(filter(None, row["predicted"].split(";"))) for row in rows]
    right = [one == other for one, other in zip(found, expected, strict=True)]
    assert np.mean(right) > 0.8
    assert predict([*arguments, f"--sort-into={tmp_path / 'sorted'}"]) == 1
    assert "use --csv" in capsys.readouterr().err
    for row in rows:  # of the labels that apply, none or several
        names = list(filter(None, row["predicted"].split(";")))
        assert row["probability"] == ";".join(row[name] for name in names)
    assert suspects([str(trained)]) == 1
    assert "several labels per image" in capsys.readouterr().err


def test_explanations_are_drawn(trained):
    model = vit_jax.load_model(trained)
    images, _ = stripes(2, 5)
    for method in ("rise", "gradient_rollout"):
        maps = model.explain(images, method, target=["red", "blue"])
        assert maps.shape == (2, 2, 2) and np.isfinite(maps).all()


def test_a_run_resumes_exactly(stored, tmp_path):
    keys = VALUES | dict(data__dir=str(stored), train__batch_size=32, log__every_steps=2)
    keys |= dict(data__device_resident="never", optim__schedule="constant")
    whole = last_state(run(tmp_path / "whole", **keys, train__epochs=4.0))
    run(tmp_path / "parts", **keys, train__epochs=2.0)
    parts = last_state(run(tmp_path / "parts", **keys, train__epochs=4.0))
    jax.tree.map(np.testing.assert_array_equal, whole["params"], parts["params"])


NO_TFDS = {"data__label_key": "label"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (NO_TFDS | {"data__name": "digits"}, "has one class per image"),
        (NO_TFDS | {"data__name": "folder", "data__dir": "x"}, "set data.labels, a table of them"),
        ({"data__examples_per_class": 3}, "use data.train_examples"),
        ({"train__teacher": "run"}, "the distillation loss compares one distribution"),
        ({"train__class_weights": "balanced"}, "class_weights=balanced needs one class per image"),
        ({"train__focal_gamma": 2.0}, "focal_gamma=2.0 needs one class per image"),
        ({"train__sampling": "balanced"}, "sampling=balanced needs one class per image"),
        ({"data__relabel": "suspects.csv"}, "relabel=suspects.csv needs one class per image"),
        ({"data__num_folds": 4}, "num_folds=4 needs one class per image"),
    ],
)
def test_contradictions_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        make_config(**VALUES | keys)


def test_sequences_without_the_setting_are_refused_with_a_hint(stored):
    with pytest.raises(UserError, match="set data.multi_label=True"):
        open_source(tfds_config(stored, label_key="labels"))
    with pytest.raises(UserError, match="several labels each"):
        open_source(tfds_config(stored, label_key="image", multi_label=True))


@pytest.mark.parametrize("form", ["Sequence", "List", "list", "names"])
def test_lists_of_a_hugging_face_dataset_are_read(tmp_path, form):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images, labels = stripes(20)
    rows = [np.flatnonzero(row).tolist() for row in labels]
    one = {"names": CLASSES, "_type": "ClassLabel"}
    feature = [one] if form == "list" else {"feature": one, "_type": form}
    if form == "names":
        rows, feature = [[CLASSES[i] for i in row] for row in rows], {"_type": "Sequence"}
    cells = [{"bytes": encode(image), "path": None} for image in images]
    table = arrow.table({"image": cells, "tags": rows})
    info = {"info": {"features": {"image": {"_type": "Image"}, "tags": feature}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(table, tmp_path / "train.parquet")
    config = settings(name=f"hf:{tmp_path}", multi_label=True)
    source = open_source(config)
    found = source.examples("")
    order = [2, 1, 0] if form == "names" else [0, 1, 2]
    assert source.class_names == [CLASSES[i] for i in order]
    np.testing.assert_array_equal(found.labels, labels[:, order])
    image, label = found.read([3])[0]
    np.testing.assert_array_equal(image, images[3])
    np.testing.assert_array_equal(label, labels[3, order])
    config.multi_label = False
    with pytest.raises(UserError, match="set data.multi_label=True"):
        open_source(config)
