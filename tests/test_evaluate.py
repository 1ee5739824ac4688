"""The test report: metrics, text and figures, checked by hand."""

import numpy as np
import pytest
from PIL import Image

from vit_jax.evaluation.evaluate import calibration_error, make_report, softmax, wilson_interval
from vit_jax.plots import save_confusion, save_prediction
from vit_jax.report import find_plateaus, write_test_report

NAMES = ["a", "b", "c", "d", "e", "f", "g"]
LABELS = np.array([0, 0, 0, 1, 1, 2, 3, 4, 5])
PREDICTED = np.array([0, 0, 1, 1, 0, 2, 0, 0, 4])


def test_report_by_hand():
    report = make_report(5.0 * np.eye(7)[PREDICTED], LABELS, NAMES)
    assert report["count"] == 9 and report["accuracy"] == pytest.approx(4 / 9)
    # Ties go to the lower class index: all except f, the sixth, are in the top 5.
    assert report["top5_accuracy"] == pytest.approx(8 / 9)
    a = report["classes"]["a"]
    assert (a["precision"], a["support"]) == (pytest.approx(2 / 5), 3)
    assert a["recall"] == a["accuracy"] == pytest.approx(2 / 3)
    assert a["f1"] == pytest.approx(0.5)
    assert report["classes"]["d"] == dict(precision=0, recall=0, f1=0, accuracy=0, support=1)
    assert report["classes"]["g"] == dict.fromkeys(("precision", "recall", "f1", "accuracy")) | {
        "support": 0
    }
    assert report["macro_f1"] == pytest.approx((0.5 + 0.5 + 1 + 0 + 0 + 0) / 6)
    confusion = np.zeros((7, 7), int)
    np.add.at(confusion, (LABELS, PREDICTED), 1)
    assert report["confusion"] == confusion.tolist()
    confidence = np.exp(5) / (np.exp(5) + 6)
    mistakes = report["mistakes"]
    assert [mistake["index"] for mistake in mistakes] == [2, 4, 6, 7, 8]
    assert mistakes[1] == {
        "index": 4,
        "label": 1,
        "predicted": 0,
        "probability": pytest.approx(confidence),
    }
    calibration = report["calibration"]
    assert sum(calibration["count"]) == calibration["count"][-1] == 9
    assert calibration["accuracy"] == [None] * 14 + [pytest.approx(4 / 9)]
    assert calibration["confidence"][-1] == pytest.approx(confidence)


def test_most_confident_mistakes_come_first():
    logits = np.array([[2.0, 0], [9, 0], [5, 0], [0, 1]])
    mistakes = make_report(logits, np.array([1, 0, 1, 1]), ["a", "b"])["mistakes"]
    assert [mistake["index"] for mistake in mistakes] == [2, 0]


def test_intervals_and_calibration():
    # 8 of 10, as in Brown, Cai & DasGupta 2001.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    # Two of confidence 0.8, one right: |0.5 - 0.8|; two of 0.6, both right: |1 - 0.6|.
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]])
    labels = np.array([0, 1, 0, 1])
    assert calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.3 + 0.5 * 0.4)
    assert calibration_error(np.eye(2), np.array([0, 1])) == 0
    np.testing.assert_allclose(softmax(np.array([[1e4, 1e4]], np.float32)), [[0.5, 0.5]])


def test_report_as_text(tmp_path):
    rows = [{"epoch": i, "val/accuracy": a} for i, a in enumerate([0.1, 0.5] + 6 * [0.4], 1)]
    rows += [{"epoch": 9, "val/accuracy": 0.6}]
    rows += [{"epoch": 1, "train/learning_rate": rate} for rate in (1e-4, 1e-7)]
    report = make_report(5.0 * np.eye(7)[PREDICTED], LABELS, NAMES)
    write_test_report(tmp_path / "r.txt", "demo", report, rows)
    text = (tmp_path / "r.txt").read_text()
    for message in (
        "accuracy        44.44 % (95 % interval 18.88 to 73.33)",
        "Classes with recall 100 %: c.",
        "Classes with recall 0 %: d, e, f.",
        "No pair of classes is confused more than once.",
        "Best validation accuracy: 60.00 % at epoch 9",
        "the first evaluation (epoch 1) it was 10.00 %",
        "No higher validation accuracy during epochs 3 to 8.",
        "Learning rate: 1e-07 to 0.0001.",
    ):
        assert message in text
    assert [line.split() for line in text.splitlines() if line.startswith("g ")] == [
        ["g", "-", "-", "-", "0"]
    ]


def test_one_image_does_not_make_classes_confused(tmp_path):
    report = make_report(np.eye(3)[[1, 1, 0, 0]], np.array([0, 0, 0, 2]), ["a", "b", "c"])
    write_test_report(tmp_path / "r.txt", "demo", report, [])
    text = (tmp_path / "r.txt").read_text()
    assert "Most often confused: a as b (2 of 3).\n" in text and "c as a" not in text


def test_plateaus():
    val = [(1, 0.5), (2, 0.5), (3, 0.4), (4, 0.6), (5, 0.6), (6, 0.6)]
    assert find_plateaus(val, length=2) == [(2, 3), (5, 6)]
    assert find_plateaus(val, length=3) == []


@pytest.mark.parametrize("count", [10, 100])
def test_confusion_is_drawn_class_by_class(tmp_path, count):
    save_confusion(tmp_path / "c.png", "demo", np.eye(count, dtype=int), ["class"] * count)
    with Image.open(tmp_path / "c.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    dark = (pixels[..., 2] - pixels[..., 0] > 50) & (pixels[..., 0] < 60)  # cells of 100 %
    columns = dark[:, : int(0.8 * dark.shape[1])].any(0).sum()
    assert columns > 4 * count  # the diagonal crosses all columns


def test_a_confusion_matrix_of_many_classes_is_of_bounded_size(tmp_path):
    names = [f"class {i}" for i in range(1000)]
    save_confusion(tmp_path / "c.png", "demo", np.eye(1000, dtype=int), names)
    with Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 2500


def test_prediction_is_drawn(tmp_path):
    image = np.full((8, 8, 3), 200, np.uint8)
    save_prediction(tmp_path / "p.png", "demo", image, {"a": 0.9, "b": 0.1})
    with Image.open(tmp_path / "p.png") as figure:
        assert min(figure.size) > 300
