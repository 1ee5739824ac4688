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
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import append, naming_file, warn, write_atomically


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """Read the entries of a JSON-lines file, ignoring a last line truncated by a kill."""
    entries = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


class MetricWriter:
    """Forward every call to its writers; without writers, do nothing.

    Attributes:
      lines: all lines of metrics.jsonl, including those that are not on disk yet.
    """

    def __init__(self, writers: Sequence["MetricWriter"] = ()):
        self._writers = writers
        self.lines: list[str] = next((w.lines for w in writers if isinstance(w, _Jsonl)), [])

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Write {name: number}."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: dict) -> None:
        """Write {name: uint8 image [height, width, 3 or 1]}."""
        for writer in self._writers:
            writer.write_images(step, images)

    def write_hparams(self, hparams: dict) -> None:
        """Write the hyperparameters of the run: numbers, strings and bools."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        """Wait until everything is on disk."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Flush and close all writers, even if one fails."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self._writers):
                stack.callback(writer.close)


class _Jsonl(MetricWriter):
    """Scalars in `metrics.jsonl`, a line per call: {"step": int, name: number, ...}."""

    def __init__(self, path, lines):
        """Rewrite the file to exactly these lines; warn if some of them were lost."""
        super().__init__()
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
        self.lines.append(json.dumps({"step": step} | scalars) + "\n")

    def flush(self):
        with naming_file(self._path):
            append(self._file, "".join(self.lines[self._written :]).encode())
            os.fsync(self._file.fileno())
        self._written = len(self.lines)

    def close(self):
        with self._file:
            self.flush()


class _TensorBoard(MetricWriter):
    """Event files, written unbuffered with the `tensorboard` package, without TensorFlow."""

    def __init__(self, folder, step):
        """Open a new event file; TensorBoard will hide earlier files' events after `step`."""
        super().__init__()
        # Imported here, because it takes half a second.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = event_pb2
        self._summary, self._hparams, self._record = summary_pb2, summary_v2, RecordWriter
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._file = self._path.open("xb", buffering=0)
        self._write(file_version="brain.Event:2")
        started = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(step=step + 1, session_log=started)

    def _write(self, **fields):
        # Not with the package's writer, whose thread dies with a traceback on a full disk.
        event, buffer = self._event.Event(wall_time=time.time(), **fields), io.BytesIO()
        self._record(buffer).write(event.SerializeToString())
        with naming_file(self._path):
            append(self._file, buffer.getvalue())

    def _add(self, step, values):
        values = [self._summary.Summary.Value(tag=tag, **value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary.Summary(value=values))

    def write_scalars(self, step, scalars):
        self._add(step, {tag: {"simple_value": float(x)} for tag, x in scalars.items()})

    def write_images(self, step, images):
        from PIL import Image

        values = {}
        for tag, pixels in images.items():
            (height, width, _), buffer = pixels.shape, io.BytesIO()
            Image.fromarray(np.squeeze(pixels)).save(buffer, "png")
            encoded = {"encoded_image_string": buffer.getvalue()}
            image = self._summary.Summary.Image(height=height, width=width, **encoded)
            values[tag] = {"image": image}
        self._add(step, values)

    def write_hparams(self, hparams):
        plain = {k: v if isinstance(v, int | float | bool) else str(v) for k, v in hparams.items()}
        self._write(step=0, summary=self._hparams.hparams_pb(plain))

    def close(self):
        self._file.close()


class _Wandb(MetricWriter):
    """A Weights & Biases run; WANDB_MODE=offline stores it locally."""

    def __init__(self, folder):
        """Start or resume the run; its project is the name of the experiment's folder."""
        super().__init__()
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
                f"Weights & Biases: {reason}; WANDB_MODE=offline stores the run locally"
            ) from None
        # W&B's own step is monotonic, but a resumed run repeats the steps after its checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step, scalars):
        self._run.log({"step": step} | scalars)

    def write_images(self, step, images):
        converted = {tag: self._wandb.Image(np.squeeze(pixels)) for tag, pixels in images.items()}
        self._run.log({"step": step} | converted)

    def write_hparams(self, hparams):
        self._run.config.update(hparams, allow_val_change=True)

    def close(self):
        """Wait until everything is uploaded or written; report whether the run failed."""
        self._run.finish(exit_code=int(isinstance(sys.exception(), Exception)))


def make_writer(
    folder: pathlib.Path, step: int, tensorboard: bool, wandb: bool, active: bool, lines: list[str]
) -> MetricWriter:
    """Make the writer of a run that resumes after `step` with these lines of metrics.jsonl.

    Writes only if `active`, as in the first process. Raises UserError if Weights & Biases cannot be
    reached.
    """
    if not active:
        return MetricWriter()
    writers: list[MetricWriter] = [_Wandb(folder)] if wandb else []  # first, because it may fail
    writers.append(_Jsonl(folder / "metrics.jsonl", lines))
    if tensorboard:
        writers.append(_TensorBoard(folder, step))
    return MetricWriter(writers)
