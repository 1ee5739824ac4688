"""Rows survive kills, TensorBoard can read what is written, progress is told in lines."""

import json

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vit_jax.metrics import Progress, make_writer, read_jsonl


def test_rows_after_the_restored_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "train/loss": 1 / step} for step in (5, 10, 15)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 20, "tra')
    assert read_jsonl(path) == rows
    writer = make_writer(tmp_path, step=10, tensorboard=False, active=True)
    writer.write_scalars(15, {"train/loss": 0.5})
    writer.close()
    assert read_jsonl(path) == [*rows[:2], {"step": 15, "train/loss": 0.5}]


def test_tensorboard_reads_scalars_and_hparams(tmp_path):
    writer = make_writer(tmp_path, step=0, tensorboard=True, active=True)
    writer.write_hparams({"optim.learning_rate": 0.1, "model.pool": "cls", "data.mean": [0.5]})
    for step in (1, 2, 3):
        writer.write_scalars(step, {"train/loss": 1.0 / step})
    writer.close()
    # A run that goes on after step 1 hides the events that it repeats.
    writer = make_writer(tmp_path, step=1, tensorboard=True, active=True)
    writer.write_scalars(2, {"train/loss": 9.0})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 9.0)]
    assert events.PluginTagToContent("hparams")["_hparams_/session_start_info"]


def test_tensorboard_reads_images_and_texts(tmp_path):
    writer = make_writer(tmp_path, step=0, tensorboard=True, active=True)
    writer.write_images(3, {"grey": np.zeros((4, 5, 1), np.uint8)})
    writer.write_texts(3, {"note": "a text"})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images("grey")
    assert (image.step, image.height, image.width) == (3, 4, 5)
    (text,) = events.Tensors("note")
    assert text.tensor_proto.string_val[0] == b"a text"


def test_only_the_first_process_writes(tmp_path):
    writer = make_writer(tmp_path, step=0, tensorboard=True, active=False)
    writer.write_scalars(1, {"train/loss": 1.0})
    writer.flush()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_progress_off_a_terminal_is_plain_lines(capsys):
    progress = Progress("run", start=0, total=10, active=True, line_seconds=3600)
    progress.update(1, "loss 2.0")
    progress.update(5, "loss 1.0", line=True)
    progress.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("run step 5/10: loss 1.0, 00:0") and line.endswith("left")
