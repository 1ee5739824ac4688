"""The table: means, spread, order, and the files that show it."""

import json

import pytest
from PIL import Image

from vit_jax.report import results_table, write_report
from vit_jax.sweep import make_row


def summary(seed, test, speed=100.0):
    return {
        "seed": seed,
        "num_params": 1234,
        "train_accuracy": 0.99,
        "val_accuracy": 0.9,
        "test_accuracy": test,
        "images_per_second": speed,
        "wall_seconds": 30.0,
        "device": "1 x test",
    }


def test_mean_and_spread_over_seeds():
    row = make_row("a", {"model.depth": 1}, [summary(0, 0.8), summary(1, 0.9, 300.0)])
    assert row["test_accuracy"]["mean"] == pytest.approx(0.85)
    assert row["test_accuracy"]["std"] == pytest.approx(0.0707107)
    assert row["test_accuracy"]["values"] == [0.8, 0.9]
    assert (row["images_per_second"], row["num_params"]) == (200.0, 1234)
    assert make_row("a", {}, [summary(0, 0.8)])["test_accuracy"]["std"] is None


def test_table():
    rows = [
        make_row("a", {}, [summary(0, 0.8), summary(1, 0.9)]),
        make_row("b", {}, [summary(0, 1)]),
    ]
    lines = results_table(rows).splitlines()
    assert lines[2] == "| a | 1,234 | 99.00 ± 0.00 | 90.00 ± 0.00 | 85.00 ± 7.07 | 100 |"
    assert lines[3] == "| b | 1,234 | 99.00 | 90.00 | 100.00 | 100 |"


def test_report_files(tmp_path):
    groups = {"a": [summary(0, 0.8), summary(1, 0.9)], "b": [summary(0, 0.7), summary(1, 0.75)]}
    for name in groups:
        folder = tmp_path / name / "seed_0"
        folder.mkdir(parents=True)
        rows = [
            {"step": s, "epoch": s, f"{part}/loss": 1 / s, f"{part}/accuracy": 1 - 1 / s}
            for s in (1, 2, 3)
            for part in ("train", "val")
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = {"experiment": "demo", "rows": [make_row(n, {}, g) for n, g in groups.items()]}
    table = write_report(tmp_path, results, groups)
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# demo\n") and table in text and "seeds 0, 1" in text
    for name in ("results.png", "curves.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
