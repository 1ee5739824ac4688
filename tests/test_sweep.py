"""The results table: mean, std, order and files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_configs import make_config
from tiny_sweep import summary, write_metrics

from vit_jax.evaluation.differences import (
    add_differences,
    compare_test_images,
    paired_difference,
)
from vit_jax.evaluation.evaluate import make_report
from vit_jax.evaluation.metrics import kernel_magnitudes
from vit_jax.report import Sweep, results_table, write_figures, write_report
from vit_jax.report.table import cross_validations, legend, orders
from vit_jax.training.rows import make_row


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
    compute = {"gflop_per_image": 0.58145, "pflop": 12.3456}
    rows = [
        make_row("a", {}, [summary(0, 1) | compute]),
        make_row("b", {}, [summary(0, 0.8), summary(1, 0.9)]),  # of an earlier version
    ]
    lines = results_table(rows).splitlines()
    head = "variant | test | val | train | parameters | GFLOP/image | PFLOP | minutes | images/s"
    assert lines[0] == f"| {head} |" and lines[1] == "|---" + "|--:" * 8 + "|"
    assert lines[2] == "| a | 100.00 | 90.00 | 99.00 | 1,234 | 0.581 | 12.3 | 0.5 | 100 |"
    assert (
        lines[3] == "| b | 85.00 ± 7.07 | 90.00 ± 0.00 | 99.00 ± 0.00 | 1,234 |  |  | 0.5 | 100 |"
    )


def test_rows_of_earlier_versions_have_no_new_columns():
    row = make_row("a", {}, [summary(0, 1)])
    for key in ("seeds", "gflop_per_image", "pflop", "wall_seconds"):
        del row[key]
    assert results_table([row]).splitlines()[2] == "| a | 100.00 | 90.00 | 99.00 | 1,234 | 100 |"
    assert paired_difference(row, row)["pairs"] == 1


def variants():
    """Variants whose paired differences from a are 0.01, 0.02, 0.03 lower (b), or vary (c)."""
    tests = {"a": (0.9, 0.8, 0.7), "b": (0.89, 0.78, 0.67), "c": (0.93, 0.79, 0.66)}
    rows = []
    for name, values in tests.items():
        rows.append(make_row(name, {}, [summary(seed, test) for seed, test in enumerate(values)]))
        rows[-1]["val_accuracy"]["mean"] = 0.95 if name == "a" else 0.9
    add_differences(rows)
    return rows


def test_differences_are_paired_by_seed():
    """Student's t of 2 degrees of freedom is 4.3027: half of 4.3027 * 0.01 / sqrt(3) = 0.024842."""
    best, near, far = variants()
    assert "difference" not in best and near["difference"]["from"] == "a"
    expected = {"mean": -0.02, "low": -0.044842, "high": 0.004842}
    found = near["difference"]
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    # Of 0.03, -0.01, -0.04: std sqrt(0.00246667 / 2) = 0.0351188, half 0.087241.
    expected = {"mean": -0.0066667, "low": -0.0939076, "high": 0.0805743}
    assert {key: far["difference"][key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert found["pairs"] == 3
    five = make_row("d", {}, [summary(seed, 0.5) for seed in range(5)])
    assert paired_difference(five, best)["pairs"] == 3  # the common seeds
    one = paired_difference(make_row("e", {}, [summary(1, 0.85)]), best)
    assert one == {"mean": pytest.approx(0.05), "low": None, "high": None, "pairs": 1}
    other = paired_difference(make_row("f", {}, [summary(7, 0.85)]), best)
    assert other == {"mean": pytest.approx(0.05), "low": None, "high": None, "pairs": 0}


def test_variants_tested_on_different_images_are_not_compared():
    tests = {"a": (0.9, 0.8), "b": (0.5, 0.4), "c": (0.7, 0.6)}
    rows = [make_row(k, {}, [summary(i, x) for i, x in enumerate(v)]) for k, v in tests.items()]
    rows[0]["val_accuracy"]["mean"] = 0.95
    configs = {name: make_config() for name in tests}
    assert compare_test_images(rows, configs, {"a": 5, "b": None, "c": 5}) == []
    assert "test_images" not in rows[0]  # a run of an earlier version has no checksum
    assert compare_test_images(rows, configs, {"a": 5, "b": 7, "c": 5}) == []
    add_differences(rows)
    assert [row["test_images"] for row in rows] == [0, 1, 0]
    assert ["difference" in row for row in rows] == [False, False, True]
    assert "tested on different images are not compared" in legend(rows, [0, 1], "best")
    assert orders(rows[:2], {"paper": ""})["this run"] == "a 85.0, b 45.0"
    same = [make_row(name, {}, [summary(0, 0.9)]) for name in ("a", "b")]
    compare_test_images(same, configs, {"a": 5, "b": 5})
    assert "test_images" not in same[0]


def test_folds_are_a_cross_validation():
    rows = [make_row(f"fold_{i}", {}, [summary(0, x)]) for i, x in enumerate((0.8, 0.6, 0.7))]
    configs = {f"fold_{i}": make_config(data__num_folds=3, data__fold=i) for i in range(3)}
    images = {name: i for i, name in enumerate(configs)}
    (found,) = compare_test_images(rows, configs, images)
    assert found["variants"] == ["fold_0", "fold_1", "fold_2"]
    assert found["test_accuracy"]["mean"] == pytest.approx(0.7)
    assert found["test_accuracy"]["std"] == pytest.approx(0.1)
    (sentence,) = cross_validations({"cross_validation": [found]})
    assert "fold_0 to fold_2: test accuracy 70.00 ± 10.00 %, mean" in sentence
    assert compare_test_images(rows[:2], configs, images) == []  # a fold is missing


def test_a_published_order_is_compared_with_a_ladder_from_the_bottom():
    low, high = (
        make_row(name, {}, [summary(seed, test + seed / 1000) for seed in range(3)])
        for name, test in (("plain", 0.7), ("more", 0.8))
    )
    found = orders([low, high], {"paper": "more > plain"})["this run"]
    assert found == "plain 70.1 < more 80.1"
    assert orders([high, low], {"paper": ""})["this run"] == "more 80.1 > plain 70.1"


def test_intervals_that_contain_0_are_marked():
    rows = variants()
    for row, values in zip(rows[1:], ((0.80, 0.70, 0.61), (0.93, 0.79, 0.66)), strict=True):
        row["test_accuracy"]["values"] = list(values)
    add_differences(rows)
    lines = results_table(rows).splitlines()
    assert "| difference from a, points, 95 % interval |" in lines[0]
    assert "± 10.00 |  | 95.00" in lines[2]
    assert "| -9.67 (-11.10 to -8.23) |" in lines[3]
    assert "| ≈ -0.67 (-9.39 to +8.06) |" in lines[4]
    text = legend(rows, [0, 1, 2], "best")
    assert "paired by seed" in text and "whose interval contains 0" in text


def test_one_seed_has_no_interval():
    rows = [make_row(name, {}, [summary(0, test)]) for name, test in (("a", 0.9), ("b", 0.8))]
    add_differences(rows)
    table = results_table(rows)
    assert "| difference from a, points |" in table and "| -10.00 |" in table
    assert "fewer than two common seeds: no interval" in legend(rows, [0], "best")


def test_a_row_of_fewer_seeds_is_said_to_have_no_interval():
    groups = {"a": [summary(i, 0.9) for i in (0, 1)], "b": [summary(i, 0.8) for i in (0, 1)]}
    rows = [make_row(name, {}, found) for name, found in groups.items()]
    rows.append(make_row("c", {}, [summary(0, 0.7)]))
    add_differences(rows)
    text = legend(rows, [0, 1], "best")
    assert "95 % interval" in text and "A difference without interval has fewer than two" in text


def test_checkpoints_that_differ_between_variants_are_not_named_alike():
    rows = [make_row(name, {}, [summary(0, test)]) for name, test in (("a", 0.9), ("b", 0.8))]
    assert "from the checkpoint that `train.select` of the variant names" in legend(
        rows, [0], "variant"
    )


def test_report_files(tmp_path):
    groups = {"a": [summary(0, 0.8), summary(1, 0.9)], "b": [summary(0, 0.7), summary(1, 0.8)]}
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
    assert "| A Paper | b > a |" in text and "| this run | a 85.0 > b 75.0 |" in text
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
    vit["MAPHead_0"] = {"pool": {"kernel": jnp.zeros(1)}}
    layers = [name.split("/")[-1] for name in kernel_magnitudes(vit)]
    assert layers == ["embedding", "query", "key", "value", "out", "Dense_0", "pool"]
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
