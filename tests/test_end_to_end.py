"""The main command, from the config to the results table, with kills in between."""

import fcntl
import json
import os
import shutil
import subprocess

import pytest
import storm as storms
from tiny_configs import make_config
from tiny_runs import run_configs
from tiny_stop import Stop

from vit_jax.config.loading import load_config
from vit_jax.runtime.errors import UserError
from vit_jax.storage import run_folder
from vit_jax.training.sweep import run_sweep
from vit_jax.training.variants import make_variants


@pytest.fixture(scope="module")
def storm(command, tmp_path_factory):
    """Run a sweep undisturbed and with five kills; return the folder and the output."""
    folder = tmp_path_factory.mktemp("storm")
    done = command("tests/storm.py", "--short", f"--workdir={folder / 'storm'}", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "storm", done.stdout


@pytest.fixture(scope="module")
def finished(storm):
    """The folder of the undisturbed sweep of two seeds."""
    return storm[0] / "undisturbed" / "sweep"


def start(folder, workdir, **overrides):
    """Start the sweep in this process, as the command would."""
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    found = load_config(folder / "storm_config.py", changed)
    configs = make_variants(found.config, found.variants, set(found.given))
    run_sweep(found, configs, workdir, Stop())


def test_a_sweep_killed_five_times_loses_nothing(storm):
    """States, log entries and results are bit-identical to the undisturbed ones (see storm.py)."""
    _, output = storm
    for location in ("inside a save", "before results.json is replaced"):
        assert f"SIGKILL  {location}" in output
    assert output.count("SIGTERM ") >= 2 and "5 kills in" in output
    assert "of 2 runs are bit-identical" in output


def test_the_learning_rate_drops_on_a_plateau_and_the_best_checkpoint_is_evaluated(finished):
    run = finished / "seeds_0" / "seed_0"
    rows = storms.read_rows(run)
    rates = {row["step"]: row["train/learning_rate"] for row in rows if "train/loss" in row}
    assert (
        rates[20] == rates[40] == pytest.approx(10 * rates[60])
    )  # the first evaluation is not a plateau
    val = {row["step"]: row["val/accuracy"] for row in rows if "val/loss" in row}
    assert list(val) == [20, 40, 60]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_step"] == max(val, key=lambda step: (val[step], step))
    assert summary["val_accuracy"] == val[summary["best_step"]]


def test_sweep_leaves_the_documented_files(storm, finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["experiment"] == "storm_config"
    assert [row["variant"] for row in results["rows"]] == ["seeds_0"]
    for row in results["rows"]:
        assert row["overrides"]["seed"] == int(row["variant"][-1])
        for part in ("train", "val", "test"):
            assert len(row[f"{part}_accuracy"]["values"]) == 2
            assert 0 <= row[f"{part}_accuracy"]["mean"] <= 1
    for name in ("results.md", "results.png", "curves.png", "report.html"):
        assert (finished / name).stat().st_size > 100
    output = (storm[0] / "log.txt").read_text()
    assert f"\nreport: {finished / 'report.html'}\n" in output
    assert "python -m vit_jax.main --config=" in (finished / "report.html").read_text()
    folder = finished / "seeds_0" / "seed_1"
    assert 0 < storms.read_rows(folder)[0]["lambda/block_1"] < 1
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["model.patch_size"] == 4 and config["config"]["seed"] == 1
    assert "jax" in config["versions"] and "git_commit" in config
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == [
        *("name", "seed", "num_params", "num_trainable_params", "epochs", "steps"),
        *("gflop_per_image", "pflop"),
        *("train_accuracy", "val_accuracy", "test_accuracy", "test_loss", "best_step"),
        *("wall_seconds", "images_per_second", "device"),
    ]
    assert (folder / "figures" / "curves" / "metrics.png").exists()
    assert list(folder.glob("events.out.tfevents.*"))
    assert "encoderblock" in output and "position embedding" in output  # parameter table
    assert "| seeds_0 |" in output


def test_nothing_imports_tensorflow_or_torch(storm):
    modules = (storm[0] / "modules.txt").read_text().split()
    assert {"jax", "tensorboard"} <= set(modules)
    assert not {"tensorflow", "torch"} & set(modules)


def test_finished_runs_are_not_trained_again(storm, finished, command):
    before = (finished / "results.json").read_text()
    arguments = f"--config={storm[0] / 'storm_config.py'}", f"--workdir={finished}"
    again = command("-m", "vit_jax.main", *arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already finished, skipped") == 2
    assert (finished / "results.json").read_text() == before


def test_other_settings_in_the_same_workdir_are_refused(storm, finished):
    with pytest.raises(UserError, match="trained with model.mlp_dim=16, now model.mlp_dim=32"):
        start(storm[0], finished, model__mlp_dim=32)


def test_other_images_in_the_same_workdir_are_refused(storm, finished, tmp_path):
    """An unfinished run does not resume with other data."""
    shutil.copytree(finished / "seeds_0", tmp_path / "seeds_0")
    folder = tmp_path / "seeds_0" / "seed_1"
    changed = json.loads((folder / "config.json").read_text())
    changed["data"]["checksum"] += 1
    (folder / "config.json").write_text(json.dumps(changed))
    for name in ("summary.json", "SHA256SUMS"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="seed_1 was started with other images"):
        start(storm[0], tmp_path)


def test_the_workdir_of_another_experiment_is_refused(finished):
    with pytest.raises(UserError, match="holds the results of storm_config, which cifar_patch"):
        run_configs({"base": make_config()}, finished, name="cifar_patch")


def test_a_run_without_a_checkpoint_may_start_with_other_settings(tmp_path):
    for mlp_dim in (16, 32):
        config = make_config(model__mlp_dim=mlp_dim)
        assert run_folder.read_summary(tmp_path, config, 0) is None
        run_folder.write_config(tmp_path, config, {}, 20, "base", 0)
        record = json.loads((tmp_path / "config.json").read_text())
        assert record["config"]["model.mlp_dim"] == mlp_dim


def test_an_image_folder_may_be_given_by_any_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    ways = ("photos", f"{tmp_path}/photos", f"{tmp_path}/photos/", "./run/../photos")
    configs = [make_config(data__name="folder", data__dir=way) for way in ways]
    run_folder.write_config(tmp_path / "run", configs[0], {}, 20, "base", 0)
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    for config in configs:
        assert run_folder.read_summary(tmp_path / "run", config, 0) is None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # as if everything had moved
    assert run_folder.read_summary(tmp_path / "run", configs[0], 0) is None
    assert not run_folder.has_moved(tmp_path / "run", configs[0])
    elsewhere = make_config(data__name="folder", data__dir="x")
    assert run_folder.read_summary(tmp_path / "run", elsewhere, 0) is None
    assert run_folder.has_moved(tmp_path / "run", elsewhere)  # its contents are compared


def test_uncommitted_code_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    for key in [key for key in os.environ if key.startswith("GIT_")]:
        monkeypatch.delenv(key)  # set in git hooks, for another repository

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert run_folder.provenance()["git_commit"] is None
    git("init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "Begin")
    commit = run_folder.provenance()["git_commit"]
    assert len(commit) == 40
    (tmp_path / "notes.txt").touch()
    assert run_folder.provenance()["git_commit"] == commit
    (tmp_path / "config.py").touch()
    assert run_folder.provenance()["git_commit"] == f"{commit}-dirty"


def test_a_run_folder_in_use_is_refused(tmp_path):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by another process"):
            run_folder.lock(tmp_path).__enter__()
