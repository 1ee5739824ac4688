"""Metric writers: JSON lines, TensorBoard, Weights & Biases."""

import contextlib
import io
import json
import os
import pathlib
import socket
import sys
import time
import uuid
from typing import Any

import numpy as np

from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import append, naming_file, warn, write_atomically


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """Read the entries of a JSON-lines file, without a last line that a kill cut off."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class MetricWriter:
    """Base class of the writers; each overrides what it supports."""

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Write {name: number}."""

    def write_images(self, step: int, images: dict) -> None:
        """Write {name: uint8 image [height, width, 3 or 1]}."""

    def write_hparams(self, hparams: dict) -> None:
        """Write the hyperparameters of the run: numbers, strings and bools."""

    def flush(self) -> None:
        """Wait until everything is on disk."""

    def close(self) -> None:
        """Flush and close."""


class JsonlWriter(MetricWriter):
    """Scalars in `metrics.jsonl`, a line per call: {"step": int, name: number, ...}.

    Attributes:
      lines: all lines, including those that are not on disk yet.
    """

    def __init__(self, path: pathlib.Path, lines: list[str]):
        """Make the file hold exactly these lines; warn if it has lost some of them."""
        text = "".join(lines).encode()
        before = path.read_bytes() if path.exists() else None
        if lines and (before is None or not before.startswith(text)):
            problem = "missing" if before is None else "damaged"
            warn(f"{path} is {problem}: its lines are restored from the checkpoint")
        if before != text:
            write_atomically(path, text.decode())
        self.lines = list(lines)
        self._path, self._written = path, len(lines)
        self._file = path.open("ab", buffering=0)

    def write_scalars(self, step, scalars):
        """Append a line."""
        self.lines.append(json.dumps({"step": step} | scalars) + "\n")

    def flush(self):
        """Write and sync the lines that are not on disk yet."""
        with naming_file(self._path):
            append(self._file, "".join(self.lines[self._written :]).encode())
            os.fsync(self._file.fileno())
        self._written = len(self.lines)

    def close(self):
        """Flush and close the file."""
        with self._file:
            self.flush()


class TensorBoardWriter(MetricWriter):
    """Event files, written with the `tensorboard` package and without TensorFlow.

    Every event is written at once.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        """Open a new event file; TensorBoard will hide earlier files' events after `step`."""
        # Imported here, because it costs half a second.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import summary_v2 as hparams_summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = event_pb2
        self._summary, self._hparams, self._record = summary_pb2, hparams_summary, RecordWriter
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._file = self._path.open("xb", buffering=0)
        self._write(file_version="brain.Event:2")
        started = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(step=step + 1, session_log=started)

    def _write(self, **fields):
        # Not by the package's own writer, whose thread dies with a traceback on a full disk.
        event, buffer = self._event.Event(wall_time=time.time(), **fields), io.BytesIO()
        self._record(buffer).write(event.SerializeToString())
        with naming_file(self._path):
            append(self._file, buffer.getvalue())

    def _add(self, step, values):
        self._write(step=step, summary=self._summary.Summary(value=values))

    def write_scalars(self, step, scalars):
        """Write numbers; TensorBoard groups them by the part of the name before "/"."""
        self._add(
            step,
            [self._summary.Summary.Value(tag=k, simple_value=float(v)) for k, v in scalars.items()],
        )

    def write_images(self, step, images):
        """Write images as PNG."""
        from PIL import Image

        values = []
        for tag, pixels in images.items():
            buffer = io.BytesIO()
            Image.fromarray(np.squeeze(pixels)).save(buffer, "png")
            image = self._summary.Summary.Image(
                height=pixels.shape[0],
                width=pixels.shape[1],
                encoded_image_string=buffer.getvalue(),
            )
            values.append(self._summary.Summary.Value(tag=tag, image=image))
        self._add(step, values)

    def write_hparams(self, hparams):
        """Write hyperparameters for TensorBoard's HParams page."""
        plain = {k: v if isinstance(v, int | float | bool) else str(v) for k, v in hparams.items()}
        summary = self._hparams.hparams_pb(plain)
        self._add(0, list(summary.value))

    def close(self):
        """Close the file."""
        self._file.close()


class WandbWriter(MetricWriter):
    """A run on Weights & Biases; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, folder: pathlib.Path):
        """Start or resume the run; its project is the name of the experiment's folder.

        Raises UserError without a key or network.
        """
        import wandb  # pyright: ignore[reportMissingImports]  (optional)

        *_, project, variant, seed = folder.absolute().parts
        run_id = folder / "wandb_id"  # resumes the same run after a kill
        if not run_id.exists():
            write_atomically(run_id, uuid.uuid4().hex)
        self._wandb: Any = wandb
        try:
            self._run = wandb.init(
                project=project,
                group=variant,
                name=f"{variant}/{seed}",
                id=run_id.read_text(),
                resume="allow",
                dir=folder,
            )
        except wandb.errors.Error as error:
            reason = str(error).rstrip(".")
            raise UserError(
                f"Weights & Biases: {reason}; WANDB_MODE=offline keeps the run on this machine"
            ) from None
        # Their own step never goes back, but a resumed run repeats the steps after its checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step, scalars):
        """Send numbers."""
        self._run.log({"step": step} | scalars)

    def write_images(self, step, images):
        """Send images."""
        sent = {tag: self._wandb.Image(np.squeeze(pixels)) for tag, pixels in images.items()}
        self._run.log({"step": step} | sent)

    def write_hparams(self, hparams):
        """Send the settings of the run."""
        self._run.config.update(hparams, allow_val_change=True)

    def close(self):
        """Wait until everything is sent or, offline, written; report whether the run failed."""
        self._run.finish(exit_code=int(isinstance(sys.exception(), Exception)))


class MultiWriter(MetricWriter):
    """Forwards every call to several writers; to none in all but the first process."""

    def __init__(self, writers: list[MetricWriter]):
        self._writers = writers

    @property
    def lines(self) -> list[str]:
        """The lines of metrics.jsonl; none in all but the first process."""
        return next((w.lines for w in self._writers if isinstance(w, JsonlWriter)), [])

    def write_scalars(self, step, scalars):
        """Forward numbers."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step, images):
        """Forward images."""
        for writer in self._writers:
            writer.write_images(step, images)

    def write_hparams(self, hparams):
        """Forward hyperparameters."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self):
        """Flush all."""
        for writer in self._writers:
            writer.flush()

    def close(self):
        """Close all, even if one fails."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self._writers):
                stack.callback(writer.close)


def make_writer(
    folder: pathlib.Path,
    step: int,
    tensorboard: bool,
    wandb: bool,
    active: bool,
    lines: list[str],
) -> MultiWriter:
    """Make the writer of a run that resumes after `step`.

    Args:
      folder: of the run.
      step: the last completed one.
      tensorboard: whether to write event files.
      wandb: whether to log to Weights & Biases.
      active: whether to write anything: True in the first process only.
      lines: of metrics.jsonl up to `step`.

    Raises:
      UserError: Weights & Biases cannot be reached.
    """
    writers: list[MetricWriter] = []
    if active and wandb:  # first, because it may fail
        writers.append(WandbWriter(folder))
    if active:
        writers.append(JsonlWriter(folder / "metrics.jsonl", lines))
    if active and tensorboard:
        writers.append(TensorBoardWriter(folder, step))
    return MultiWriter(writers)
