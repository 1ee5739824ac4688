"""Writers of metrics: JSON lines, TensorBoard, Weights & Biases."""

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
    """Returns the rows of a JSON-lines file; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class JsonlWriter:
    """One row per call in `metrics.jsonl`: {"step": int, name: number, ...}.

    Attributes:
      lines: all of them, those included that are not on disk yet.
    """

    def __init__(self, path: pathlib.Path, lines: list[str]):
        """Makes the file hold these lines alone; warns if it has lost some of them."""
        text = "".join(lines).encode()
        before = path.read_bytes() if path.exists() else None
        if lines and (before is None or not before.startswith(text)):
            what = "missing" if before is None else "damaged"
            warn(f"{path} is {what}: its rows are written again from the checkpoint")
        if before != text:
            write_atomically(path, text.decode())
        self.lines = list(lines)
        self._path, self._written = path, len(lines)
        self._file = path.open("ab", buffering=0)

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Appends a row."""
        self.lines.append(json.dumps({"step": step} | scalars) + "\n")

    def write_images(self, step: int, images: dict) -> None:
        """Leaves images to TensorBoard."""

    def write_hparams(self, hparams: dict) -> None:
        """Leaves hyperparameters to TensorBoard and config.json."""

    def flush(self) -> None:
        """Returns when the rows are on disk."""
        with naming_file(self._path):
            append(self._file, "".join(self.lines[self._written :]).encode())
            os.fsync(self._file.fileno())
        self._written = len(self.lines)

    def close(self) -> None:
        """Flushes and closes the file."""
        with self._file:
            self.flush()


class TensorBoardWriter:
    """Event files, written with the `tensorboard` package without TensorFlow."""

    def __init__(self, folder: pathlib.Path, step: int):
        """Opens a new event file; TensorBoard will hide earlier files' events after `step`."""
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

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Writes numbers; "train/loss" and "val/loss" land in groups of their own."""
        self._add(
            step,
            [self._summary.Summary.Value(tag=k, simple_value=float(v)) for k, v in scalars.items()],
        )

    def write_images(self, step: int, images: dict) -> None:
        """Writes pictures: uint8 [height, width, 3 or 1] each."""
        from PIL import Image

        values = []
        for tag, pixels in images.items():
            buffer = io.BytesIO()
            Image.fromarray(np.squeeze(pixels)).save(buffer, "png")
            picture = self._summary.Summary.Image(
                height=pixels.shape[0],
                width=pixels.shape[1],
                encoded_image_string=buffer.getvalue(),
            )
            values.append(self._summary.Summary.Value(tag=tag, image=picture))
        self._add(step, values)

    def write_hparams(self, hparams: dict) -> None:
        """Writes the hyperparameters, numbers, strings and bools, of this run."""
        plain = {k: v if isinstance(v, int | float | bool) else str(v) for k, v in hparams.items()}
        summary = self._hparams.hparams_pb(plain)
        self._add(0, list(summary.value))

    def flush(self) -> None:
        """Leaves it to the system: every event is written at once."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class WandbWriter:
    """A run on Weights & Biases, by its package; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, folder: pathlib.Path):
        """Opens the run, or goes on with it; its project is the experiment's folder.

        Raises UserError if the package cannot, for want of a key or of the network.
        """
        import wandb  # pyright: ignore[reportMissingImports]  (optional)

        *_, project, variant, seed = folder.absolute().parts
        number = folder / "wandb_id"  # the same run after a kill, and no other's
        if not number.exists():
            write_atomically(number, uuid.uuid4().hex)
        self._wandb: Any = wandb
        try:
            self._run = wandb.init(
                project=project,
                group=variant,
                name=f"{variant}/{seed}",
                id=number.read_text(),
                resume="allow",
                dir=folder,
            )
        except wandb.errors.Error as error:
            reason = str(error).rstrip(".")
            raise UserError(
                f"Weights & Biases: {reason}; WANDB_MODE=offline keeps the run on this machine"
            ) from None
        # Their own count never goes back, as ours may where the last rows are done again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Sends numbers."""
        self._run.log({"step": step} | scalars)

    def write_images(self, step: int, images: dict) -> None:
        """Sends pictures: uint8 [height, width, 3 or 1] each."""
        sent = {tag: self._wandb.Image(np.squeeze(pixels)) for tag, pixels in images.items()}
        self._run.log({"step": step} | sent)

    def write_hparams(self, hparams: dict) -> None:
        """Sends the settings of the run."""
        self._run.config.update(hparams, allow_val_change=True)

    def flush(self) -> None:
        """Leaves it to the package, which writes in the background."""

    def close(self) -> None:
        """Returns when everything is sent or, offline, written; tells if the run has failed."""
        self._run.finish(exit_code=int(isinstance(sys.exception(), Exception)))


class MultiWriter:
    """Passes every call on to several writers."""

    def __init__(self, writers: list):
        """Takes the writers; none at all is fine, as in all but the first process."""
        self._writers = writers

    @property
    def lines(self) -> list[str]:
        """The lines of metrics.jsonl; none in all but the first process."""
        return next((w.lines for w in self._writers if isinstance(w, JsonlWriter)), [])

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Passes numbers on."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: dict) -> None:
        """Passes uint8 images on."""
        for writer in self._writers:
            writer.write_images(step, images)

    def write_hparams(self, hparams: dict) -> None:
        """Passes hyperparameters on."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        """Returns when everything is on disk."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Closes all, also if one fails."""
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
    """Returns the writer of a run that goes on after `step`.

    Args:
      folder: of the run.
      step: the last one that is done.
      tensorboard: whether to write event files too.
      wandb: whether to send all to Weights & Biases too.
      active: False in all processes but the first, which then write nothing.
      lines: of metrics.jsonl up to there.

    Raises:
      UserError: Weights & Biases cannot be reached.
    """
    writers = []
    if active and wandb:  # first, because it may fail
        writers.append(WandbWriter(folder))
    if active:
        writers.append(JsonlWriter(folder / "metrics.jsonl", lines))
    if active and tensorboard:
        writers.append(TensorBoardWriter(folder, step))
    return MultiWriter(writers)
