"""Checkpoints of runs and of converted weights. The only module that imports orbax."""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.runtime import memory, processes, upstream
from vit_jax.runtime.errors import RESUMES, UserError, disk_problem, first_line
from vit_jax.runtime.files import first_damage, read_json, warn, write_sums

_LOG = "metrics.jsonl"  # in a checkpoint: log entries up to its step


class _Damaged(UserError):
    """A checkpoint is damaged."""


def checksum(tree) -> int:
    """Compute 32 bits that change with any bit of a tree of 16- and 32-bit arrays.

    The sum of the bit patterns times odd weights, modulo 2^32: exact, and so independent of the
    sharding of the arrays.
    """
    # A program per shape instead of one per tree, which took seconds to compile for a ResNet.
    total = 0
    for one in jax.device_get([_array_sum(leaf) for leaf in jax.tree.leaves(tree)]):
        total = (total * 2654435761 + int(one)) % 2**32
    return total


@jax.jit
def _array_sum(array):
    unsigned = {2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32).reshape(-1)
    weights = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
    return (bits * weights).sum(dtype=jnp.uint32)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint: state, notes and log entries up to its step."""

    step: int
    state: Any
    notes: dict
    lines: list[str]  # of metrics.jsonl
    best: dict | None  # as `_Policy.best`


class _Policy:
    """Retain the latest two checkpoints, the best, and those from which to recreate the best."""

    # The evaluated checkpoint with the highest accuracy; the latest of ties. A run whose best
    # checkpoint is damaged resumes from "before", the checkpoint preceding it, when "best_before"
    # was the best.
    best: dict | None = None

    def should_preserve(self, checkpoints, *, context):
        steps, best = [checkpoint.step for checkpoint in checkpoints], self.best or {}
        preserved = [*steps[-2:], *(best.get(key) for key in ("step", "before", "best_before"))]
        return [step in preserved for step in steps]


class Checkpoints:
    """The checkpoints in one folder, written in the background.

    A checkpoint holds a state, notes (JSON) that include the best step so far, and metrics.jsonl
    up to its step. SHA256SUMS lists the digests of its files.
    """

    def __init__(self, folder: pathlib.Path, needs_best: bool = True):
        """Open or create the folder; with `needs_best`, the best checkpoint must be intact."""
        upstream.stop_tensorstore_leaks()
        self._folder, self._needs_best = folder, needs_best
        self._policy = _Policy()
        self._lines: list[str] = []  # log of the checkpoint being written
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
            preservation_policy=self._policy,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            # A shared disk may show the latest checkpoint to some processes only.
            single_host_load_and_broadcast=processes.count() > 1,
        )
        with self._writing():
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def _seal(self):
        """Write the log and the digests of a checkpoint before it is renamed to its final name."""
        if not processes.is_first():
            return
        for folder in self._folder.glob("*.orbax-checkpoint-tmp*"):
            # Line by line: the memory pool of each writing thread would retain the whole string.
            with (folder / _LOG).open("w") as file:
                file.writelines(self._lines)
            # orbax still changes the top-level files, which only contain timestamps.
            items = (path for path in folder.glob("*/**/*") if path.is_file())
            write_sums(folder, [*(str(path.relative_to(folder)) for path in items), _LOG])

    @contextlib.contextmanager
    def _writing(self):
        """Raise UserError if the disk is full or not writable."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many types
            if problem := disk_problem(error):
                raise UserError(
                    f"{self._folder}: a checkpoint cannot be written: {problem}; {RESUMES}"
                ) from None
            raise

    def save(
        self, step: int, state, notes: dict, val_accuracy: float | None, lines: Sequence[str] = ()
    ) -> None:
        """Start saving a tree of arrays; replace an existing checkpoint of this step.

        The only checkpoint is kept, saved before its evaluation was interrupted: deleting it first
        would leave none after a kill. Without its evaluation, a run that resumes repeats that.

        `val_accuracy` selects the best checkpoint, None if the state was not evaluated; `notes` are
        JSON; `lines` are those of metrics.jsonl. Raises UserError if the disk is full, perhaps
        since the previous checkpoint.
        """
        self.wait()
        with self._writing():
            best = self._policy.best
            if val_accuracy is not None and (best is None or val_accuracy >= best["val_accuracy"]):
                best = {
                    "step": step,
                    "val_accuracy": val_accuracy,
                    "before": max((one for one in self.steps if one < step), default=None),
                    "best_before": best and best["step"],
                }
                self._policy.best = best
            if step in self.steps:
                if len(self.steps) == 1:
                    return
                self._manager.delete(step)
            notes = notes | {"checksum": checksum(state), "best": best}
            self._lines = list(lines)
            items = {"state": ocp.args.StandardSave(state), "notes": ocp.args.JsonSave(notes)}
            saved = self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            assert saved, f"orbax refused to save step {step} in {self._folder}"

    def restore_latest(self, abstract_state, upto: float = math.inf) -> Restored | None:
        """Restore the latest intact checkpoint; return None if there are no checkpoints.

        Skips damaged checkpoints with a warning, and checkpoints after step `upto` silently. If the
        best one so far is damaged, restores one before it, from which training recreates it.
        `abstract_state` is a tree of `jax.ShapeDtypeStruct` with the shardings to restore into.
        Raises UserError if checkpoints exist and none is intact.
        """
        found_damage = False
        for step in sorted(self.steps, reverse=True):
            if step > upto:
                continue
            try:
                restored = self._restore(step, abstract_state)
                best = self._policy.best = restored.best
                if best and self._needs_best:
                    try:
                        _check_in_all(self._folder / str(best["step"]))
                    except _Damaged as error:
                        upto = best["step"] - 1
                        raise _Damaged(f"{error}, and belongs to the best checkpoint") from None
                return restored
            except _Damaged as error:
                found_damage = True
                warn(f"{error}: falling back to the previous checkpoint")
        if found_damage:
            raise UserError(
                f"no checkpoint in {self._folder} could be read (see above). To train from "
                "scratch, remove the run's folder"
            )
        self._policy.best = None  # of a checkpoint after `upto`, found before
        return None

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, intact or not."""
        return [int(step) for step in self._manager.all_steps()]

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints after `step`."""
        for later in self.steps:
            if later > step:
                self._manager.delete(later)

    def restore_best(self, abstract_state) -> Restored:
        """Restore the checkpoint with the highest validation accuracy; UserError if damaged."""
        self.wait()
        assert self._policy.best is not None, "no checkpoint was evaluated"
        try:
            return self._restore(self._policy.best["step"], abstract_state)
        except _Damaged as error:
            raise UserError(
                f"{error}, and belongs to the best checkpoint. Run the same command again to "
                "resume from the one before it"
            ) from None

    def _restore(self, step, abstract_state) -> Restored:
        folder = self._folder / str(step)

        def read():
            state, notes = ocp.args.StandardRestore(abstract_state), ocp.args.JsonRestore()
            args = ocp.args.Composite(state=state, notes=notes)
            restored: Any = self._manager.restore(step, args=args)
            notes = dict(restored["notes"])
            best, expected = notes.pop("best"), notes.pop("checksum")
            lines = (folder / _LOG).read_text().splitlines(keepends=True)
            return Restored(step, restored["state"], notes, lines, best), expected

        _check_in_all(folder)
        restored, expected = _read_in_all(folder, read)
        # Detects silent casts by orbax, and flipped bits where SHA256SUMS is missing.
        if checksum(restored.state) != expected:
            raise _Damaged(f"{folder} is damaged (its checksum does not match)")
        return restored

    def wait(self) -> None:
        """Wait until every checkpoint is on disk; raise UserError if the disk is full."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then stop the background threads."""
        with self._writing():
            self._manager.close()


def restore_common(runs: Sequence[Checkpoints], abstract_state) -> list[Restored] | None:
    """Restore the runs at the latest step for which all have an intact checkpoint.

    After a kill, some runs may be ahead; their later checkpoints are deleted. Returns None if there
    is no such step; arguments and exceptions are as in `Checkpoints.restore_latest`.
    """
    upto = math.inf
    while True:
        found = [run.restore_latest(abstract_state, upto) for run in runs]
        steps = {-1 if restored is None else restored.step for restored in found}
        if len(steps) == 1:
            break
        upto = min(steps)
    if min(steps) < 0 and any(run.steps for run in runs):
        warn("the seeds have no intact checkpoint of the same step: training from scratch")
    for run in runs:  # last, because unreadable checkpoints may have a temporary cause
        run.delete_after(min(steps))
    return [restored for restored in found if restored is not None] or None


def save_arrays(folder: pathlib.Path, tree) -> int:
    """Write a tree of arrays and return its checksum."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree)
    return checksum(tree)


def load_arrays(folder: pathlib.Path, expected: int | None = None):
    """Read the tree of NumPy arrays in a folder, in this process only.

    Raises UserError if it is damaged, or its checksum is not the expected one.
    """
    with _reading(folder):
        own = jax.process_index()
        single = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
        with ocp.StandardCheckpointer(multiprocessing_options=single) as checkpointer:
            stored = checkpointer.metadata(folder.absolute()).item_metadata.tree
            # NumPy arrays, because they may not fit into device memory.
            target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored)
            tree = checkpointer.restore(folder.absolute(), target)
        if expected is not None and checksum_on_cpu(tree) != expected:
            raise ValueError("its checksum does not match")
    return tree


def load_run(folder: pathlib.Path, step: int | Literal["last"]) -> tuple[dict, int]:
    """Read the evaluated variables in a folder of checkpoints as NumPy arrays, and their checksum.

    Raises UserError if the checkpoint is missing or damaged.
    """
    if step == "last":
        names = (path.name for path in folder.glob("[0-9]*"))
        step = max((int(name) for name in names if name.isdigit()), default=0)
    folder /= str(step)
    if not folder.is_dir():
        raise UserError(f"the checkpoint {folder} does not exist")
    if problem := first_damage(folder):
        raise UserError(f"the checkpoint in {folder} is damaged ({problem})")
    state = load_arrays(folder / "state")
    variables = state["ema"] or {key: state[key] for key in ("params", "batch_stats")}
    found = checksum_on_cpu(variables)
    with _reading(folder):
        notes = json.loads((folder / "notes" / "metadata").read_text())
        if found != notes.get("variables_checksum", found):
            raise ValueError("its checksum does not match")
    return variables, found


def recorded_checksum(folder: pathlib.Path, step: int) -> int | None:
    """Read the checksum of the evaluated variables of a checkpoint, without the variables.

    None if it is damaged, or of an earlier version.
    """
    return read_json(folder / str(step) / "notes" / "metadata").get("variables_checksum")


def checksum_on_cpu(tree) -> int:
    """Compute the checksum of NumPy arrays on the CPU if that backend is available."""
    try:
        device = jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # e.g. JAX_PLATFORMS=cuda
        device = contextlib.nullcontext()
    with device:
        return checksum(tree)


@contextlib.contextmanager
def _reading(folder):
    """Raise `_Damaged` for every error except out of memory."""
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many types
        if isinstance(error, _Damaged) or memory.ran_out(error):
            raise
        raise _Damaged(f"{folder} is damaged ({first_line(error)})") from None


def _check_in_all(folder):
    """Compare the digests of a checkpoint in every process; raise `_Damaged` if one fails."""

    def check():
        if problem := first_damage(folder):
            raise _Damaged(problem)

    _read_in_all(folder, check)


def _read_in_all(folder, read: Callable[[], Any]) -> Any:
    """Read in every process; raise `_Damaged` in all of them if one fails.

    Processes that restored different checkpoints could not continue.
    """
    try:
        with _reading(folder):
            result, problem = read(), None
    except _Damaged as error:
        result, problem = None, error
    if not processes.all_true(problem is None):
        raise problem or _Damaged(f"{folder} could not be read by another process")
    return result


def abstract(tree, shardings):
    """Build the shapes, dtypes and shardings to restore a tree into."""

    def of_leaf(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(of_leaf, tree, shardings)
