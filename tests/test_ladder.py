"""A ladder trains its teacher first, keeps its order and compares neighbours."""

import pytest
from tiny_sweep import summary

import vit_jax
from vit_jax.config import flatten
from vit_jax.config.loading import select_variants
from vit_jax.evaluation.differences import add_differences
from vit_jax.training.rows import make_row
from vit_jax.training.variants import make_variants

SHORT = {
    "data.train_examples": 256,
    "model.depth": 1,
    "train.epochs": 2.0,
    "train.num_seeds": 1,
    "train.eval_every_epochs": 1.0,
    "train.batch_size": 128,
    "optim.warmup_epochs": 1.0,
    "log.tensorboard": False,
    "log.explain_images": 0,
}


@pytest.mark.parametrize("name", ["digits_ladder", "cifar_ladder", "cifar_ladder:cpu"])
def test_every_rung_adds_to_the_one_before(name):
    experiment = vit_jax.load_config(name)
    variants = make_variants(experiment.config, experiment.variants, set())
    flat = [flatten(config) for config in variants.values()][1:]  # the first one is the teacher
    plain = flat[0]
    for below, above in zip(flat, flat[1:], strict=False):
        changed = {key for key in plain if below[key] != above[key]}
        assert changed and all(below[key] == plain[key] for key in changed)
    assert experiment.ladder and list(variants)[0] == flat[-1]["train.teacher"] == "resnet18"


def test_a_part_of_a_ladder_compares_only_neighbours():
    names = ["resnet18", "plain", "crop_flip", "distilled"]
    experiment = vit_jax.load_config("cifar_ladder:cpu")
    experiment = select_variants(experiment, names[:3])
    assert list(experiment.variants) == names[:3] and experiment.ladder[0] == "plain"
    rows = [make_row(name, {}, [summary(0, 0.5 + i / 10)]) for i, name in enumerate(names)]
    add_differences(rows, experiment.ladder)
    assert [row.get("difference", {}).get("from") for row in rows] == [None, None, "plain", None]


def test_digits(one_device, no_figures, tmp_path):
    results = vit_jax.train(vit_jax.load_config("digits_ladder", SHORT), tmp_path / "ladder")
    names = list(vit_jax.load_config("digits_ladder").variants)
    assert [row["variant"] for row in results.rows] == names
    assert "difference" not in results.rows[0] | results.rows[1]  # the teacher and the first rung
    for row, before in zip(results.rows[2:], names[1:], strict=False):
        assert row["difference"]["from"] == before
    assert "difference from the variant before, points" in results.table
    rows = (results.workdir / "report.html").read_text().split("<tbody>")[1].split("<tr")[1:]
    tests = [row["test_accuracy"]["mean"] for row in results.rows]
    assert ['class="best"' in row.split(">")[0] for row in rows[: len(tests)]] == [
        i == tests.index(max(tests)) for i in range(len(tests))
    ]
    lines = [line.split(" | ")[0].strip("| ") for line in results.table.splitlines()]
    assert lines[2:] == names
    assert (
        "in test accuracy from the variant before" in (results.workdir / "results.md").read_text()
    )
