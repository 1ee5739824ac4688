"""The commands that people type, from the config to the table, with kills in between."""

import json
import pathlib

import numpy as np
import orbax.checkpoint as ocp
import pytest

TINY = (
    "--config=configs/digits_patch.py",
    "--variant=patch_4",
    "--config.model.hidden_size=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.model.mlp_dim=16",
    "--config.model.dropout_rate=0.1",
    "--config.train.num_seeds=1",
    "--config.train.epochs=3",
    "--config.train.eval_every_epochs=1",
    "--config.train.accumulation_steps=2",
    "--config.log.explain_images=0",
    "--config.optim.ema_decay=0.99",
    "--config.optim.warmup_epochs=1",
    "--config.optim.schedule=reduce_on_plateau",
    "--config.optim.plateau_patience=0",
    "--config.optim.plateau_threshold=0.9",  # so that every evaluation is a plateau
    "--config.log.every_steps=7",
)
RUN = pathlib.Path("patch_4", "seed_0")
STEPS_PER_EPOCH = 20


def read_rows(folder):
    """Returns metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("wall_seconds", "train/images_per_second")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def read_state(folder, step=3 * STEPS_PER_EPOCH):
    """Returns the arrays of the last checkpoint."""
    last = folder / "checkpoints" / str(step) / "state"
    import jax

    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(last.absolute())
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(tree)}


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    """Returns the folder of a tiny run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = command("-m", "vit_jax.main", *TINY, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir / RUN


def assert_same_run(folder, undisturbed):
    """Parameters, optimizer, averages and rows are the same to the bit."""
    rows = read_rows(undisturbed)
    assert read_rows(folder) == rows
    steps = [(row["step"], "val/loss" in row) for row in rows]
    assert steps == sorted(set(steps))  # neither gap nor repeat
    assert {step for step, is_val in steps if is_val} == {20, 40, 60}
    expected, found = read_state(undisturbed), read_state(folder)
    assert expected.keys() == found.keys()
    assert any("ema" in key for key in expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    one, other = (json.loads((f / "summary.json").read_text()) for f in (undisturbed, folder))
    for key in ("train_accuracy", "val_accuracy", "test_accuracy", "test_loss", "best_step"):
        assert one[key] == other[key]


def test_the_rate_falls_on_a_plateau_and_the_best_checkpoint_is_evaluated(undisturbed):
    rows = read_rows(undisturbed)
    rates = {row["step"]: row["train/learning_rate"] for row in rows if "train/loss" in row}
    assert rates[20] == rates[40] == pytest.approx(10 * rates[60])  # the first is no plateau
    val = {row["step"]: row["val/accuracy"] for row in rows if "val/loss" in row}
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["best_step"] == max(val, key=lambda step: (val[step], step))
    assert summary["val_accuracy"] == val[summary["best_step"]]


@pytest.mark.parametrize(
    ("signal", "moment", "step", "status"),
    [
        ("SIGKILL", "step", 9, -9),  # before the first checkpoint
        ("SIGKILL", "step", 33, -9),  # in mid-epoch
        ("SIGKILL", "save", 40, -9),  # while a checkpoint is written
        ("SIGTERM", "step", 9, 143),
        ("SIGTERM", "step", 35, 143),  # at a log row
        ("SIGTERM", "eval", 40, 143),
    ],
)
def test_killed_run_resumes_exactly(command, undisturbed, tmp_path, signal, moment, step, status):
    arguments = (*TINY, f"--workdir={tmp_path}")
    killed = command("tests/kill_at.py", signal, moment, step, *arguments)
    assert killed.returncode == status, killed.stderr
    assert not (tmp_path / RUN / "summary.json").exists()
    if signal == "SIGTERM":
        assert f"stopped by SIGTERM at step {step}, saved" in killed.stdout
    if moment == "eval":  # and once more, between the row of the repeated evaluation and its save
        killed = command("tests/kill_at.py", "SIGKILL", "row", step, *arguments)
        assert killed.returncode == -9, killed.stderr
    # Streamed batches are the same as resident ones: once, the run goes on with them.
    resident = "never" if step == 33 else "always"
    resumed = command("-m", "vit_jax.main", *arguments, f"--config.data.resident={resident}")
    assert resumed.returncode == 0, resumed.stderr
    if signal == "SIGTERM":
        assert f"going on from step {step}" in resumed.stdout
    assert_same_run(tmp_path / RUN, undisturbed)


RESNET = (
    "--config=configs/cifar_resnet18_overfit.py",
    *("--config.data.name=digits", "--config.data.image_size=8", "--config.data.channels=1"),
    *("--config.data.mean=(0.5,)", "--config.data.std=(0.5,)", "--config.model.hidden_size=4"),
    *("--config.data.examples_per_class=10", "--config.optim.ema_decay=0.9"),
    "--config.sharding.cpu_devices=1",
    *("--config.train.epochs=2", "--config.train.eval_every_epochs=1"),  # of five steps
)


def test_resnet_resumes_exactly_and_records_its_kernels(command, tmp_path):
    """The statistics of BatchNorm and their average are a part of the state."""
    folders = tmp_path / "whole", tmp_path / "stopped"
    done = command("-m", "vit_jax.main", *RESNET, f"--workdir={folders[0]}")
    assert done.returncode == 0, done.stderr
    stopped = command("tests/kill_at.py", "SIGTERM", "step", 7, *RESNET, f"--workdir={folders[1]}")
    assert stopped.returncode == 143, stopped.stderr
    done = command("-m", "vit_jax.main", *RESNET, f"--workdir={folders[1]}")
    assert done.returncode == 0, done.stderr
    states = [read_state(folder / "base" / "seed_0", 10) for folder in folders]
    assert any("batch_stats" in key and "ema" in key for key in states[0])
    for key, value in states[0].items():
        np.testing.assert_array_equal(states[1][key], value, err_msg=key)
    summary = json.loads((folders[1] / "base" / "seed_0" / "summary.json").read_text())
    magnitudes = summary["kernel_magnitudes"]
    assert list(magnitudes["before"])[0] == "conv1" and list(magnitudes["after"])[-1] == "head"
    assert magnitudes["before"] != magnitudes["after"]
    assert summary["best_step"] == summary["steps"] == 10  # train.select=last
    assert "from the last checkpoint" in (folders[1] / "results.md").read_text()
    assert (folders[1] / "base" / "seed_0" / "figures" / "kernel_magnitudes.png").exists()


SWEEP = (
    *("--config.train.num_seeds=2", "--config.train.seeds_at_once=always"),
    *("--config.train.epochs=1", "--config.optim.warmup_epochs=0"),
    "--config.model.attention=differential",
)


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """Returns the folder and the output of a finished sweep of three variants and two seeds."""
    workdir = tmp_path_factory.mktemp("sweep")
    arguments = [
        argument for argument in TINY if "variant" not in argument and "seeds" not in argument
    ]
    arguments = [*arguments, *SWEEP, f"--workdir={workdir}"]
    # Runs the command and then tells what it imported.
    listing = (
        "import sys, atexit; from vit_jax import main; "
        "atexit.register(lambda: print('modules:', *sys.modules)); "
        "sys.argv = ['main', *sys.argv[1:]]; main.run()"
    )
    done = command("-c", listing, *arguments)
    assert done.returncode == 0, done.stderr
    return workdir, arguments, done.stdout


def test_sweep_leaves_the_documented_files(finished):
    workdir, _, output = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["experiment"] == "digits_patch"
    assert [row["variant"] for row in results["rows"]] == ["patch_1", "patch_2", "patch_4"]
    for row in results["rows"]:
        assert row["overrides"] == {"model.patch_size": int(row["variant"][-1])}
        for part in ("train", "val", "test"):
            assert len(row[f"{part}_accuracy"]["values"]) == 2
            assert 0 <= row[f"{part}_accuracy"]["mean"] <= 1
    for name in ("results.md", "results.png", "curves.png", "report.html"):
        assert (workdir / name).stat().st_size > 100
    assert output.splitlines()[-2] == str(workdir / "report.html")  # before the list of modules
    assert "python -m vit_jax.main --config=configs/" in (workdir / "report.html").read_text()
    folder = workdir / "patch_2" / "seed_1"
    assert 0 < read_rows(folder)[0]["lambda/encoderblock_0"] < 1
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["model.patch_size"] == 2 and config["config"]["seed"] == 1
    assert "jax" in config["versions"] and "git_commit" in config
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == [
        *("name", "seed", "num_params", "num_trainable_params", "epochs", "steps"),
        *("train_accuracy", "val_accuracy", "test_accuracy", "test_loss", "best_step"),
        *("wall_seconds", "images_per_second", "device"),
    ]
    assert (folder / "figures" / "curves" / "metrics.png").exists()
    assert list(folder.glob("events.out.tfevents.*"))
    assert "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel" in output  # parameter table
    assert "| patch_4 |" in output


def test_nothing_imports_tensorflow_or_torch(finished):
    modules = finished[2].split("modules:")[1].split()
    assert "jax" in modules
    assert not {"tensorflow", "torch"} & set(modules)


def test_finished_runs_are_not_trained_again(finished, command):
    workdir, arguments, _ = finished
    before = (workdir / "results.json").read_text()
    again = command("-m", "vit_jax.main", *arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before, not trained again") == 6
    assert (workdir / "results.json").read_text() == before


def test_other_settings_in_the_same_workdir_are_refused(finished, command):
    _, arguments, _ = finished
    done = command("-m", "vit_jax.main", *arguments, "--config.model.mlp_dim=32")
    assert done.returncode == 1
    assert "was trained with model.mlp_dim=16, now model.mlp_dim=32" in done.stderr


def test_other_images_in_the_same_workdir_are_refused(finished, command):
    """A run that is not finished does not go on with data other than it began with."""
    workdir, arguments, _ = finished
    config = workdir / "patch_4" / "seed_1" / "config.json"
    record, summary = config.read_text(), config.with_name("summary.json").read_text()
    changed = json.loads(record)
    changed["data"]["checksum"] += 1
    config.write_text(json.dumps(changed))
    config.with_name("summary.json").unlink()
    done = command("-m", "vit_jax.main", *arguments)
    config.write_text(record)
    config.with_name("summary.json").write_text(summary)
    assert done.returncode == 1
    assert "began with other images" in done.stderr and "Traceback" not in done.stderr


def test_the_workdir_of_another_experiment_is_refused(finished, command):
    workdir, _, _ = finished
    done = command("-m", "vit_jax.main", "--config=configs/cifar_patch.py", f"--workdir={workdir}")
    assert done.returncode == 1
    assert "holds the results of digits_patch, which cifar_patch would overwrite" in done.stderr


def test_a_run_that_saved_nothing_may_be_started_with_other_settings(command, tmp_path):
    options = (f"--workdir={tmp_path}", "--config.train.epochs=1", "--config.optim.warmup_epochs=0")
    killed = command("tests/kill_at.py", "SIGKILL", "step", 3, *TINY, *options)
    assert killed.returncode == -9
    done = command("-m", "vit_jax.main", *TINY, *options, "--config.model.mlp_dim=32")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / RUN / "config.json").read_text())
    assert config["config"]["model.mlp_dim"] == 32


def test_a_run_folder_in_use_is_refused(command, tmp_path):
    import fcntl

    (tmp_path / RUN).mkdir(parents=True)
    with (tmp_path / RUN / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = command("-m", "vit_jax.main", *TINY, f"--workdir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("is in use by another process")


def test_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(command, tmp_path):
    options = ("--config.optim.name=sgd", "--config.optim.learning_rate=1e6")
    done = command(
        *("-m", "vit_jax.main", *TINY, *options, f"--workdir={tmp_path}"),
        *("--config.train.eval_every_epochs=0", "--config.train.eval_every_steps=1"),
    )
    assert done.returncode == 1
    assert "became non-finite at step" in done.stderr and "Traceback" not in done.stderr
    step = int(done.stderr.split("at step ")[1].split(";")[0])
    kept = [int(p.name) for p in (tmp_path / RUN / "checkpoints").iterdir() if p.name.isdigit()]
    assert max(kept) == step - 1
