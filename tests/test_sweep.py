"""The results table: mean, std, order and files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_sweep import summary, write_metrics

from vit_jax.evaluation.evaluate import make_report
from vit_jax.evaluation.metrics import kernel_magnitudes
from vit_jax.report import Sweep, results_table, write_figures, write_report
from vit_jax.training.sweep import make_row


def test_mean_and_std_over_seeds():
    row = make_row("a", {"model.depth": 1}, [summary(0, 0.8), summary(1, 0.9, 300.0)])
    assert row["test_accuracy"]["mean"] == pytest.approx(0.85)
    assert row["test_accuracy"]["std"] == pytest.approx(0.0707107)
    assert row["test_accuracy"]["values"] == [0.8, 0.9]
    assert (row["images_per_second"], row["num_params"]) == (200.0, 1234)
    assert make_row("a", {}, [summary(0, 0.8)])["test_accuracy"]["std"] is None


def test_stages_common_to_all_seeds_are_rows():
    longer = [summary(0, 0.9) | {"epochs": 20}, summary(1, 0.7) | {"epochs": 20}]
    longer[0]["stages"] = [summary(0, t) | {"epochs": e} for e, t in ((5, 0.5), (10, 0.6))]
    longer[1]["stages"] = [summary(1, 0.8) | {"epochs": 10}]  # a seed added later
    row = make_row("a", {}, longer)
    assert [(stage["epochs"], stage["test_accuracy"]["values"]) for stage in row["stages"]] == [
        (10, [0.6, 0.8])
    ]


def test_table():
    rows = [
        make_row("a", {}, [summary(0, 1)]),
        make_row("b", {}, [summary(0, 0.8), summary(1, 0.9)]),
    ]
    lines = results_table(rows).splitlines()
    assert lines[2] == "| a | 100.00 | 90.00 | 99.00 | 1,234 | 100 |"
    assert lines[3] == "| b | 85.00 ± 7.07 | 90.00 ± 0.00 | 99.00 ± 0.00 | 1,234 | 100 |"


def test_differences_within_the_std_are_marked():
    """Compared with 90 ± 1.41: 89 ± 1.41 is within sqrt(4), 87 ± 1.41 is not."""
    rows = [
        make_row(name, {}, [summary(0, mean - 0.01), summary(1, mean + 0.01)])
        for name, mean in (("a", 0.9), ("b", 0.89), ("c", 0.87))
    ]
    lines = results_table(rows).splitlines()
    assert "| 90.00 ± 1.41 |" in lines[2]
    assert "| ≈ 89.00 ± 1.41 |" in lines[3]
    assert "| 87.00 ± 1.41 |" in lines[4]


def test_report_files(tmp_path):
    groups = {"a": [summary(0, 0.8), summary(1, 0.9)], "b": [summary(0, 0.7), summary(1, 0.75)]}
    for name in groups:
        folder = tmp_path / name / "seed_0"
        folder.mkdir(parents=True)
        write_metrics(folder)
    results = {"experiment": "demo", "rows": [make_row(n, {}, g) for n, g in groups.items()]}
    results["rows"].reverse()
    table = write_report(Sweep(tmp_path, results, groups, {"A Paper": "b > a"}, "best"))
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# demo\n") and table in text and "seeds 0, 1" in text
    assert text.index("| a |") < text.index("| b |")  # best first
    assert "| A Paper | b > a |" in text and "| this run | a 85.0 > b 72.5 |" in text
    for name in ("results.png", "curves.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300


def test_a_single_seed_has_no_std(tmp_path):
    (tmp_path / "a" / "seed_0").mkdir(parents=True)
    groups = {"a": [summary(0, 0.8)]}
    results = {"experiment": "demo", "rows": [make_row("a", {}, groups["a"])]}
    write_report(Sweep(tmp_path, results, groups, {}, "last"))
    text = (tmp_path / "results.md").read_text()
    assert (
        "from the last checkpoint" in text
        and "of one run, seed 0" in text
        and "±" not in text
        and "this run" not in text
    )


def test_kernel_magnitudes_before_and_after(tmp_path):
    params = {
        "head": {"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.ones(2)},
        "conv1": {"kernel": jnp.full((2, 2), -0.5)},
        "layer10_0": {"conv1": {"kernel": jnp.zeros(3)}},
        "layer2_0": {"conv1": {"kernel": jnp.zeros(3)}},
    }
    found = kernel_magnitudes(params)
    assert list(found) == ["conv1", "layer2_0/conv1", "layer10_0/conv1", "head"]
    block = {
        "MlpBlock_0": {"Dense_0": {"kernel": jnp.zeros(1)}},
        "MultiHeadDotProductAttention_0": {
            name: {"kernel": jnp.zeros(1)} for name in ("key", "out", "query", "value")
        },
    }
    vit = {"Transformer": {"encoderblock_0": block}, "embedding": {"kernel": jnp.zeros(1)}}
    layers = [name.split("/")[-1] for name in kernel_magnitudes(vit)]
    assert layers == ["embedding", "query", "key", "value", "out", "Dense_0"]
    assert found["conv1"] == {"mean_abs": 0.5, "l2": 1.0}
    assert found["head"] == {"mean_abs": 3.5, "l2": 5.0}
    (tmp_path / "seed_0").mkdir()
    record = {"kernel_magnitudes": {"before": found, "after": found}}
    (tmp_path / "seed_0" / "summary.json").write_text(json.dumps(record))
    report = make_report(np.eye(2), np.array([0, 1]), ["a", "b"])
    (tmp_path / "seed_0" / "test_report.json").write_text(json.dumps(report))
    write_figures(tmp_path / "seed_0")
    with Image.open(tmp_path / "seed_0" / "figures" / "kernel_magnitudes.png") as image:
        assert min(image.size) > 300
