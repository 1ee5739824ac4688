"""Log entries survive kills, TensorBoard reads the events, progress is logged in lines."""

import contextlib
import json
import sys
import types

import jax
import numpy as np
import pytest
from damage import DAMAGE, damage_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vit_jax.runtime.errors import UserError
from vit_jax.runtime.progress import Progress, StartTimes
from vit_jax.storage.writers import make_writer, read_jsonl


def test_log_entries_after_the_checkpoint_are_dropped(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "train/loss": 1 / step} for step in (5, 10, 15)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 20, "tra')
    assert read_jsonl(path) == rows
    lines = [json.dumps(row) + "\n" for row in rows]
    writer = make_writer(tmp_path, 10, False, wandb=False, active=True, lines=lines[:2])
    writer.write_scalars(15, {"train/loss": 0.5})
    writer.close()
    assert read_jsonl(path) == [*rows[:2], {"step": 15, "train/loss": 0.5}]
    assert writer.lines == path.read_text().splitlines(keepends=True)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_log_entries_are_restored(tmp_path, how, capsys):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "train/loss": 1 / step} for step in (5, 10)]
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines))
    damage_file(path, how)
    make_writer(tmp_path, 10, False, wandb=False, active=True, lines=lines).close()
    assert path.read_text() == "".join(lines)
    assert f"warning: {path} is " in capsys.readouterr().err


def test_tensorboard_reads_scalars_and_hparams(tmp_path):
    writer = make_writer(tmp_path, step=0, tensorboard=True, wandb=False, active=True, lines=[])
    writer.write_hparams({"optim.learning_rate": 0.1, "model.pool": "cls", "data.mean": [0.5]})
    for step in (1, 2, 3):
        writer.write_scalars(step, {"train/loss": 1.0 / step})
    writer.close()
    # A run that resumes after step 1 hides the events that it repeats.
    writer = make_writer(tmp_path, step=1, tensorboard=True, wandb=False, active=True, lines=[])
    writer.write_scalars(2, {"train/loss": 9.0})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 9.0)]
    assert events.PluginTagToContent("hparams")["_hparams_/session_start_info"]


def test_tensorboard_reads_images(tmp_path):
    writer = make_writer(tmp_path, step=0, tensorboard=True, wandb=False, active=True, lines=[])
    writer.write_images(3, {"grey": np.zeros((4, 5, 1), np.uint8)})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images("grey")
    assert (image.step, image.height, image.width) == (3, 4, 5)


class FakeWandb:
    """A stand-in for the optional package wandb that records its calls."""

    errors = types.SimpleNamespace(Error=RuntimeError)

    def __init__(self, error=None):
        self.error, self.options, self.sent, self.status = error, [], [], None
        self.config, self.axes = {}, {}

    def init(self, **options):
        if self.error:
            raise RuntimeError(self.error)
        self.options.append(options)
        return self

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def Image(self, pixels):  # noqa: N802
        return ("image", pixels.shape)

    def log(self, row):
        self.sent.append(row)

    def finish(self, exit_code):
        self.status = exit_code


class Settings(dict):
    def update(self, settings, allow_val_change):
        assert allow_val_change  # a lengthened run has other epochs
        super().update(settings)


def test_wandb_gets_all_metrics_in_a_single_run(tmp_path, monkeypatch):
    wandb = FakeWandb()
    wandb.config = Settings()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    folder = tmp_path / "cifar_patch" / "patch_4" / "seed_1"
    folder.mkdir(parents=True)
    for step in (0, 5):  # a run, and the same one resumed
        writer = make_writer(folder, step, tensorboard=False, wandb=True, active=True, lines=[])
        writer.write_hparams({"optim.learning_rate": 0.1})
        writer.write_scalars(step + 1, {"train/loss": 0.5})
        writer.write_images(step + 1, {"grey": np.zeros((4, 5, 1), np.uint8)})
        writer.close()
        assert wandb.status == 0
    first, second = wandb.options
    assert first == second and first["resume"] == "allow" and first["dir"] == folder
    assert (first["project"], first["group"], first["name"]) == (
        *("cifar_patch", "patch_4", "patch_4/seed_1"),
    )
    assert wandb.sent[2:] == [
        {"step": 6, "train/loss": 0.5},
        {"step": 6, "grey": ("image", (4, 5))},
    ]
    assert wandb.axes == {"step": None, "*": "step"}
    assert wandb.config == {"optim.learning_rate": 0.1}
    writer = make_writer(folder, 6, tensorboard=False, wandb=True, active=True, lines=[])
    with pytest.raises(UserError):
        try:
            raise UserError("the loss became non-finite")
        finally:
            writer.close()
    assert wandb.status == 1


def test_wandb_errors_are_single_lines(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("no API key"))
    with pytest.raises(UserError, match="no API key; WANDB_MODE=offline"):
        make_writer(tmp_path, 0, tensorboard=False, wandb=True, active=True, lines=[])


def test_only_the_first_process_writes(tmp_path):
    writer = make_writer(tmp_path, step=0, tensorboard=True, wandb=False, active=False, lines=[])
    writer.write_scalars(1, {"train/loss": 1.0})
    writer.flush()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_progress_without_a_terminal_is_plain_lines(capsys):
    progress = Progress("run", start=0, total=10, active=True, line_seconds=3600)
    progress.update(1, "loss 2.0")
    progress.update(5, "loss 1.0", line=True)
    progress.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("run step 5/10: loss 1.0, 00:0") and line.endswith("left")


def test_concurrent_compilations_are_timed_once():
    """Otherwise more seconds of compilation would be logged than elapsed."""
    start, event = StartTimes("run"), "/jax/core/compile/backend_compile_duration"
    with contextlib.closing(start):
        for seconds in (10.0, 8.0, 11.0):  # that finish now
            jax.monitoring.record_event_duration_secs(event, seconds)
        with start.loading():
            pass
    expected = {"loading": 0, "tracing": 0, "lowering": 0, "compiling": 11}
    assert start.totals() == pytest.approx(expected, abs=0.5)
    jax.monitoring.record_event_duration_secs(event, 60.0)
    assert start.totals() == pytest.approx(expected, abs=0.5)
