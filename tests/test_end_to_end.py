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
    "--config.optim.ema_decay=0.99",
    "--config.optim.warmup_epochs=1",
    "--config.log.every_steps=7",
)
RUN = pathlib.Path("patch_4", "seed_0")
STEPS_PER_EPOCH = 20


def read_rows(folder):
    """Returns metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("wall_seconds", "train/images_per_second")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def read_state(folder):
    """Returns the arrays of the last checkpoint."""
    last = folder / "checkpoints" / str(3 * STEPS_PER_EPOCH) / "state"
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
    assert any("ema_params" in key for key in expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    one, other = (json.loads((f / "summary.json").read_text()) for f in (undisturbed, folder))
    for key in ("train_accuracy", "val_accuracy", "test_accuracy", "test_loss", "best_step"):
        assert one[key] == other[key]


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
    resumed = command("-m", "vit_jax.main", *arguments)
    assert resumed.returncode == 0, resumed.stderr
    if signal == "SIGTERM":
        assert f"going on from step {step}" in resumed.stdout
    assert_same_run(tmp_path / RUN, undisturbed)
