"""Several processes train one run as one process does, and stop, fail and go on together."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from vit_jax import config as settings
from vit_jax.checkpoint import load_run
from vit_jax.sweep import make_variants, run_sweep

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = """
from configs import common

def get_config():
    config = common.digits_vit()
    config.model.update(patch_size=4, hidden_size=64, depth=1, num_heads=2, mlp_dim=64)
    config.train.update(epochs=3.0, eval_every_epochs=1.0, num_seeds=1)
    config.optim.update(warmup_epochs=1.0, ema_decay=0.9)
    config.log.update(every_steps=7, explain_images=2)
    return config
"""
RUN = pathlib.Path("base", "seed_0")


class Never:
    """Stands for signals that do not come."""

    number = 0

    def asked(self):
        return False

    def deferred(self):
        import contextlib

        return contextlib.nullcontext()


def alone(workdir):
    """Trains in this process, on its eight devices, and returns the run's folder."""
    scope = {}
    exec(CONFIG, scope)
    config = settings.with_overrides(scope["get_config"](), {"log.explain_images": 0}, "a test")
    variants = make_variants(config, {}, set())
    run_sweep("digits", variants, {}, {}, workdir, None, Never())
    return workdir / RUN


def together(folder, count, *arguments, victim=()):
    """Runs the command in several processes and returns their statuses, outputs and errors."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    shared |= {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
    command = [f"--config={folder / 'digits.py'}", f"--workdir={folder / 'runs'}", *arguments]
    command += ["--config.sharding.distributed=True", "--config.sharding.cpu_devices=1"]
    started = []
    for rank in range(count):
        program = ("tests/kill_at.py", *victim) if victim and rank == 1 else ("-m", "vit_jax.main")
        started.append(
            subprocess.Popen(
                [sys.executable, *program, *command],
                cwd=ROOT,
                env=os.environ | shared | {"JAX_PROCESS_ID": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=240) for process in started]
    return [p.returncode for p in started], *zip(*outputs, strict=True)


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("wall_seconds", "train/images_per_second")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def assert_same_run(folder, other):
    """Every loss and rate, every accuracy, and the weights agree, up to rounding."""
    rows, expected = rows_of(folder), rows_of(other)
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, same in zip(rows, expected, strict=True):
        assert row == pytest.approx(same, rel=1e-3, abs=1e-6)
    one, two = (json.loads((f / "summary.json").read_text()) for f in (folder, other))
    for key in ("train_accuracy", "val_accuracy", "test_accuracy", "test_loss"):
        assert one[key] == pytest.approx(two[key], rel=1e-3), key
    reports = [json.loads((f / "test_report.json").read_text()) for f in (folder, other)]
    assert reports[0]["count"] == reports[1]["count"] == 359  # each test image once


def test_killed_stopped_and_resumed_processes_train_like_one(tmp_path):
    (tmp_path / "digits.py").write_text(CONFIG)
    expected, run = alone(tmp_path / "alone"), tmp_path / "runs" / RUN

    # One is killed: the other one ends, and says why.
    statuses, _, errors = together(tmp_path, 2, victim=("SIGKILL", "step", "25"))
    assert statuses == [1, -9], errors
    assert errors[0].strip().splitlines()[-1].startswith("error: another process of this run has")
    assert "Traceback" not in errors[0]

    # One gets SIGTERM: both stop at the same step with one checkpoint. With other settings of what
    # changes no result: streamed batches and split weights.
    free = ("--config.data.resident=never", "--config.sharding.fsdp=True")
    statuses, outputs, errors = together(tmp_path, 2, *free, victim=("SIGTERM", "step", "27"))
    assert statuses == [143, 143], errors
    step = int(outputs[0].split("stopped by SIGTERM at step ")[1].split(",")[0])
    steps = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(steps) == step > 27
    # The second process has written to the checkpoints alone, and said nothing.
    written = [line[6:] for line in errors[1].splitlines() if line.startswith("wrote ")]
    inside = [path for path in written if path.startswith(str(tmp_path))]
    assert all(pathlib.Path(path).is_relative_to(run / "checkpoints") for path in inside), inside
    assert outputs[1] == ""

    # From there one process goes on, with eight devices.
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    assert_same_run(alone(tmp_path / "copy"), expected)

    # And so do two, to the report.
    statuses, outputs, errors = together(tmp_path, 2, "--config.log.figures_every=1")
    assert statuses == [0, 0], errors
    assert f"going on from step {step}" in outputs[0]
    assert_same_run(run, expected)
    assert load_run(run / "checkpoints", "last")[0].keys() == {"params", "batch_stats"}
    for name in ("results.json", "results.md", "report.html"):
        assert (tmp_path / "runs" / name).stat().st_size > 100
    assert (run / "figures" / "explanation" / "scores.json").exists()
