"""The learning-rate sweep of a config."""

import json

import pytest

import vit_jax
from vit_jax.cli import train
from vit_jax.config.loading import load_config
from vit_jax.runtime.errors import UserError
from vit_jax.training.variants import make_variants

CONFIG = """
from vit_jax import config as defaults

def get_config():
    config = defaults.get_config()
    config.data.update(name="digits", image_size=8, channels=1)
    config.augment.kind = "none"
    config.model.update(patch_size=4, hidden_size=16, depth=1, num_heads=2, mlp_dim=32)
    config.optim.update(learning_rate=1e-3, end_learning_rate=1e-4)
    config.train.update(steps=20, batch_size=64, eval_every_epochs=0.0)
    config.log.update(tensorboard=False, explain_images=0, every_steps=0)
    return config
"""
VARIANTS = """
def sweep():
    return {"teacher": {}, "deep": {"optim.learning_rate": 0.3, "train.teacher": "teacher"}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "one.py").write_text(CONFIG)
    (tmp_path / "two.py").write_text(CONFIG + VARIANTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_three_points_around_the_learning_rate(config):
    experiment = vit_jax.sweep_learning_rate(load_config("one.py"))
    rates = {
        name: (changed["optim.learning_rate"], changed["optim.end_learning_rate"])
        for name, changed in experiment.variants.items()
    }
    assert vit_jax.sweep_learning_rate("one.py").variants == experiment.variants
    assert experiment.name == "one_learning_rate" and rates == {
        "lr_0.000333": (0.000333, 3.33e-5),
        "lr_0.001": (0.001, 0.0001),
        "lr_0.003": (0.003, 0.0003),
    }
    given = vit_jax.sweep_learning_rate(load_config("one.py", {"optim.learning_rate": 0.01}))
    assert list(given.variants) == ["lr_0.00333", "lr_0.01", "lr_0.03"]
    assert (
        make_variants(given.config, given.variants, set(given.given)).keys()
        == given.variants.keys()
    )


def test_variants_and_their_teachers_are_swept(config):
    experiment = vit_jax.sweep_learning_rate(load_config("two.py"), factor=10)
    found = {
        name: (changed["optim.learning_rate"], changed.get("train.teacher"))
        for name, changed in experiment.variants.items()
    }
    assert found == {
        "teacher_lr_0.0001": (0.0001, None),
        "deep_lr_0.03": (0.03, "teacher_lr_0.0001"),
        "teacher_lr_0.001": (0.001, None),
        "deep_lr_0.3": (0.3, "teacher_lr_0.001"),
        "teacher_lr_0.01": (0.01, None),
        "deep_lr_3": (3.0, "teacher_lr_0.01"),
    }
    make_variants(experiment.config, experiment.variants, set(experiment.given))
    end = {"optim.end_learning_rate": 1e-5}  # which the variants do not set
    given = vit_jax.sweep_learning_rate(load_config("two.py", end), factor=10)
    make_variants(given.config, given.variants, set(given.given))
    again = vit_jax.sweep_learning_rate(load_config("two.py", {"optim.learning_rate": 0.03}))
    assert "deep_lr_0.09" in again.variants  # as the command suggests at the end of the range
    make_variants(again.config, again.variants, set(again.given))


def test_the_command_names_the_best_by_validation_accuracy(config, one_device, no_figures, capsys):
    train.main(["--config=two.py", "--variant=teacher", "--sweep-learning-rate"])
    folder = config / "runs" / "two_teacher_learning_rate"
    rows = json.loads((folder / "results.json").read_text())["rows"]
    best = max(rows, key=lambda row: row["val_accuracy"]["mean"])
    rate, accuracy = best["overrides"]["optim.learning_rate"], best["val_accuracy"]["mean"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"teacher: optim.learning_rate={rate:g} has the best validation accuracy" in last
    assert f"{accuracy:.4f}" in last and ("end of the range" in last) == (rate != 0.001)


def test_smaller_learning_rates_are_compared_if_a_larger_one_diverges(
    config, one_device, no_figures, capsys
):
    keys = ("name=sgd", "learning_rate=10", "end_learning_rate=0", "momentum=0.9")
    keys = [f"--config.optim.{key}" for key in keys]
    with pytest.raises(SystemExit):
        train.main(["--config=one.py", "--sweep-learning-rate", *keys])
    rows = json.loads((config / "runs" / "one_learning_rate" / "results.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["lr_3.33", "lr_10"]
    captured = capsys.readouterr()
    assert "has the best validation accuracy" in captured.out.splitlines()[-1]
    message = "lr_30 could not be trained: lr_30 seed 0: the loss or its gradient became non-finite"
    assert captured.err.splitlines()[-1].startswith(f"error: {message}")


def test_a_pupil_is_not_trained_if_its_teacher_diverges(config, one_device, no_figures, capsys):
    wild = {"optim.name": "sgd", "optim.learning_rate": 100.0, "optim.momentum": 0.9}
    variants = {"wild": wild, "pupil": {"train.teacher": "wild"}, "calm": {}}
    (config / "three.py").write_text(f"{CONFIG}\ndef sweep(): return {variants}\n")
    with pytest.raises(SystemExit):
        train.main(["--config=three.py"])
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith("warning: wild seed 0: the loss or its gradient became non-finite")
    assert error[-1].startswith("error: wild, pupil could not be trained: wild seed 0: the loss")
    results = json.loads((config / "runs" / "three" / "results.json").read_text())
    assert [row["variant"] for row in results["rows"]] == ["calm"]
    assert results["diverged"] == ["wild", "pupil"]
    why = "because the loss of the variant or of its teacher became non-finite"
    text = f"Not in the table, {why}: wild, pupil."
    for name in ("report.html", "results.md"):
        assert text in (config / "runs" / "three" / name).read_text()


def test_some_variants_are_compared(config, one_device, no_figures, capsys):
    words = ["--config=digits_patch", "--config.train.steps=2", "--config.train.epochs=0"]
    words += ["--config.train.num_seeds=1", "--config.optim.warmup_epochs=0"]
    train.main([*words, "--variants=patch_4,patch_2"])
    rows = json.loads((config / "runs" / "digits_patch" / "results.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["patch_2", "patch_4"]
    capsys.readouterr()
    for wrong, message in (
        ("--variants=patch_4,patch_9", "variant='patch_9' is unknown: use one of patch_1, patch_2"),
        ("--variants=patch_4 --variant=patch_2", "give --variant or --variants, not both"),
    ):
        with pytest.raises(SystemExit):
            train.main([*words, *wrong.split()])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("factor", [0, 1, -3])
def test_factors_that_compare_nothing_are_refused(factor):
    with pytest.raises(UserError, match="must be above 1"):
        vit_jax.sweep_learning_rate(vit_jax.load_config("digits_patch"), factor)


@pytest.mark.parametrize("overrides", [None, {"optim.learning_rate": "1e-3"}])
def test_invalid_variants_are_refused(config, overrides):
    (config / "odd.py").write_text(f'{CONFIG}\ndef sweep(): return {{"odd": {overrides}}}\n')
    with pytest.raises(UserError, match="variant '?odd"):
        vit_jax.sweep_learning_rate(load_config("odd.py"))
    if overrides is None:
        with pytest.raises(UserError, match="variant 'odd' must be a dict of settings, not None"):
            load_config("odd.py", variant="odd")


def test_a_learning_rate_of_0_is_refused():
    experiment = vit_jax.load_config("digits_patch", {"optim.learning_rate": 0.0})
    with pytest.raises(UserError, match="cannot be swept"):
        vit_jax.sweep_learning_rate(experiment)
