"""Multi-process training equals single-process training, and stops, fails and resumes jointly."""

import json
import math
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from conftest import QUICK
from tiny_runs import run_configs

from vit_jax.runtime import processes
from vit_jax.training.variants import make_variants

ROOT = pathlib.Path(__file__).parent.parent
COUNT = int(os.environ.get("PROCESSES", 2))  # `make processes` takes four
CONFIG = """
from vit_jax.config import presets

def get_config():
    config = presets.digits_vit()
    config.model.update(patch_size=4, hidden_size=64, depth=1, num_heads=2, mlp_dim=64)
    config.train.update(epochs=3.0, eval_every_epochs=1.0, num_seeds=1)
    config.optim.update(warmup_epochs=1.0, ema_decay=0.9)
    config.log.update(every_steps=7, explain_images=0)
    return config
"""
RUN = pathlib.Path("base", "seed_0")


def test_the_cpu_quota_of_a_container_is_read(tmp_path):
    path = tmp_path / "cpu.max"
    for text, count in (("50000 100000", 1), ("250000 100000", 3)):
        path.write_text(text + "\n")
        assert processes.cpu_quota(str(path)) == count
    path.write_text("max 100000\n")
    assert processes.cpu_quota(str(path)) > 1000 and processes.cpu_quota("none") > 1000


@pytest.mark.parametrize("rank", [0, 1])
def test_the_devices_decide_which_process_is_the_first(monkeypatch, rank):
    """On a TPU, the runtime numbers the processes, whatever JAX_PROCESS_ID says."""
    state = types.SimpleNamespace(process_id=rank, num_processes=2)
    monkeypatch.setattr(processes, "distributed_state", lambda: state)
    assert jax.process_index() == 0 and processes.is_first()  # the devices are started


def train_here(workdir):
    """Train in this process on eight devices; return the run's folder."""
    scope = {}
    exec(CONFIG, scope)
    config = scope["get_config"]()
    run_configs(make_variants(config, {}, set()), workdir, name="digits")
    return workdir / RUN


def train_processes(folder, victim, signal, step, *arguments):
    """Train in several processes, one of which gets a signal after a step.

    Returns exit statuses, outputs and errors.
    """
    with socket.socket() as found:
        # Below the ports that the system gives to others before JAX binds this one again.
        found.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(COUNT)}
    shared |= {"XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}
    command = [f"--config={folder / 'digits.py'}", f"--workdir={folder / 'runs'}", *arguments]
    command += ["--config.sharding.distributed=True", "--config.sharding.cpu_devices=1"]
    killed = ["tests/kill_at.py", signal, "step", str(step)]
    started, began = [], time.monotonic()
    for rank in range(COUNT):
        program = killed if rank == victim else ["-m", "vit_jax.main"]
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
    outputs = [process.communicate(timeout=400) for process in started]
    statuses = [process.returncode for process in started]
    print(f"{signal} to process {victim} of {COUNT}: {statuses}, {time.monotonic() - began:.0f} s")
    return statuses, *zip(*outputs, strict=True)


def log_entries(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("wall_seconds", "train/images_per_second")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def assert_same_run(folder, other):
    """Losses, learning rates and accuracies agree up to rounding; each test image counts once."""
    rows, expected = log_entries(folder), log_entries(other)
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, same in zip(rows, expected, strict=True):
        assert row == pytest.approx(same, rel=1e-3, abs=1e-6)
    one, two = (json.loads((f / "summary.json").read_text()) for f in (folder, other))
    for key in ("train_accuracy", "val_accuracy", "test_accuracy", "test_loss"):
        assert one[key] == pytest.approx(two[key], rel=1e-3), key
    reports = [json.loads((f / "test_report.json").read_text()) for f in (folder, other)]
    assert reports[0]["count"] == reports[1]["count"] == 359


def test_killed_stopped_and_resumed_processes_train_like_one(command, tmp_path):
    (tmp_path / "digits.py").write_text(CONFIG)
    run = tmp_path / "runs" / RUN

    # One process is killed (of four, also the first): the others exit with an error. That takes
    # ten seconds, in which this process trains the reference.
    expected = None
    for victim in (1,) if COUNT == 2 else (1, 0):
        with ThreadPoolExecutor(1) as pool:
            killed = pool.submit(train_processes, tmp_path, victim, "SIGKILL", 25)
            expected = expected or train_here(tmp_path / "single")
        statuses, _, errors = killed.result()
        assert statuses[victim] == -9
        for rank in set(range(COUNT)) - {victim}:
            if victim == 0 and statuses[rank] == -6:  # JAX aborts processes that lose the first one
                assert "another task died" in errors[rank]
                continue
            assert statuses[rank] == 1, errors
            (*_, last) = errors[rank].strip().splitlines()
            assert last.startswith("error: another process of this run has ended"), errors[rank]
            assert "Traceback" not in errors[rank]

    # One gets SIGTERM: all stop at the same step with one checkpoint. This stage streams batches
    # and shards weights, which does not change results; every step is saved, because it takes
    # longer than the time between checkpoints.
    free = ("--config.data.device_resident=never", "--config.sharding.fsdp=True")
    free += ("--config.train.save_every_minutes=1e-9",)
    statuses, outputs, errors = train_processes(tmp_path, 1, "SIGTERM", 27, *free)
    assert statuses == [143] * COUNT, errors
    step = int(outputs[0].split("stopped by SIGTERM at step ")[1].split(",")[0])
    steps = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(steps) == step > 27 and step - 1 in steps
    # The others have only written checkpoints, and printed nothing.
    written = [line[6:] for line in errors[1].splitlines() if line.startswith("wrote ")]
    inside = {pathlib.Path(path) for path in written if path.startswith(str(tmp_path))}
    inside -= {tmp_path / "runs"}  # an unnamed file, to check that the folder is writable
    assert all(path.is_relative_to(run / "checkpoints") for path in inside), inside
    assert set(outputs[1:]) == {""}

    # A single process resumes from the step before, on eight devices.
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / RUN / "checkpoints" / str(step))
    assert_same_run(train_here(tmp_path / "copy"), expected)

    # Several processes resume as well, launched on one machine, up to the report.
    arguments = (f"--config={tmp_path / 'digits.py'}", f"--workdir={tmp_path / 'runs'}")
    several = ("scripts/launch_local.py", "-n", COUNT, "--")
    drawn = ("--config.log.figures_every=1", "--config.log.explain_images=2") if COUNT > 2 else ()
    done = command(*several, *arguments, *drawn, timeout=400)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {step}" in done.stdout
    assert_same_run(run, expected)
    for name in ("results.json", "results.md", "report.html"):
        assert (tmp_path / "runs" / name).stat().st_size > 100
    assert (run / "figures" / "explanation" / "scores.json").exists() == bool(drawn)
    cores = min(len(processes.usable_cores()), processes.cpu_quota())
    devices = COUNT * math.gcd(64 // COUNT, max(1, cores // COUNT))  # for a batch of 64
    assert json.loads((run / "summary.json").read_text())["device"].startswith(f"{devices} x cpu")
