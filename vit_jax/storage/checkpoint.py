"""Checkpoints of a run, and of weights alone. The only file that knows orbax."""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from vit_jax.runtime import memory, processes
from vit_jax.runtime.errors import RESUMES, UserError, disk_problem, first_line
from vit_jax.runtime.files import first_damage, warn, write_sums

# tensorstore, up to 0.1.86 at least, never frees the lists and strings that it makes of JSON. orbax
# asks for some with every save: for each array, of where the checkpoint lies; and for its log, of
# all counters. A long run would grow by 150 KiB with each checkpoint of 300 arrays, so the first
# are made once for a checkpoint, and the others not at all.
_to_json = tensorstore.KvStore.Spec.to_json
_json_of = functools.lru_cache(4)(lambda url: _to_json(tensorstore.KvStore.Spec(url)))
tensorstore.KvStore.Spec.to_json = lambda self, include_defaults=False: dict(_json_of(self.url))
tensorstore.experimental_collect_matching_metrics = lambda *args, **options: []

_LOG = "metrics.jsonl"  # in a checkpoint: the lines of the run's up to there
_REPLACED = ".replaced"  # after the name of a checkpoint, while its successor is being written


@jax.jit
def checksum(tree) -> jax.Array:
    """Returns a uint32 that changes with any bit of a tree of 16- and 32-bit arrays.

    The sum of the bit patterns times odd weights, modulo 2^32: exact, and so the same however
    the arrays are laid out over devices.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        unsigned = {2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).reshape(-1)
        weights = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
        total = total * jnp.uint32(2654435761) + (bits * weights).sum(dtype=jnp.uint32)
    return total


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back: the state, what was noted beside it, and the log up to its step."""

    step: int
    state: Any
    notes: dict
    lines: list[str]  # of metrics.jsonl


@dataclasses.dataclass(frozen=True)
class _Best:
    """The evaluated checkpoint with the highest accuracy; of equals, the latest.

    If it is damaged, the run goes back to the checkpoint `before`, when another was the best.
    """

    step: int
    val_accuracy: float
    before: int | None
    best_before: int | None


class _Policy:
    """Keeps the latest two checkpoints, the best, and what is needed to make that again."""

    best: _Best | None = None

    def should_preserve(self, checkpoints, *, context):
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = steps[-2:]
        if self.best:
            kept += [self.best.step, self.best.before, self.best.best_before]
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints in one folder, written in the background.

    A checkpoint holds a state, notes (JSON) with which one was the best so far, and the lines of
    metrics.jsonl up to it. SHA256SUMS tells whether its files are what was written. The latest two
    are kept, the best one, the one before that, and the best one until then.
    """

    def __init__(self, folder: pathlib.Path, needs_best: bool = True):
        """Opens or makes the folder; what a killed save left half-made is removed.

        `needs_best` is whether the best one will be restored, and so has to be intact.
        """
        self._folder, self._needs_best = folder, needs_best
        self._policy = _Policy()
        self._lines: list[str] = []  # of the checkpoint that is being written
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
            preservation_policy=self._policy,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        with self._explaining():
            self._settle_replaced()
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def _replace(self, step):
        """Makes room for another checkpoint of this step; until that is there, the old one stays.

        So a run that was stopped before it evaluated its state, and then saves it once more with
        the accuracy, may be killed meanwhile.
        """
        with processes.first_before_others():
            if processes.is_first():
                old = self._folder / str(step)
                old.rename(old.with_name(old.name + _REPLACED))
        self._manager.reload()
        self._replacing = True

    def _settle_replaced(self):
        """Removes a checkpoint whose successor is there; brings it back if there is none."""
        with processes.first_before_others():
            for old in self._folder.glob(f"*{_REPLACED}") if processes.is_first() else ():
                new = old.with_suffix("")
                shutil.rmtree(old) if new.exists() else old.rename(new)
        self._replacing = False

    def _seal(self):
        """Writes the lines and the digests of a checkpoint that is about to get its name."""
        if processes.is_first():
            for unfinished in self._folder.glob("*.orbax-checkpoint-tmp*"):
                # Line by line: each of many threads' pools of memory would keep room for the text.
                with (unfinished / _LOG).open("w") as file:
                    file.writelines(self._lines)
                # Not of its own files, which only tell when it was saved: orbax changes them still.
                items = (path for path in unfinished.glob("*/**/*") if path.is_file())
                names = [str(path.relative_to(unfinished)) for path in items]
                write_sums(unfinished, [*names, _LOG])

    @contextlib.contextmanager
    def _explaining(self):
        """Tells in one sentence of a disk that is full, or does not take a checkpoint."""
        try:
            yield
        except Exception as error:  # a full disk shows as many types in orbax and tensorstore
            if problem := disk_problem(error):
                raise UserError(
                    f"{self._folder}: a checkpoint cannot be written: {problem}; {RESUMES}"
                ) from None
            raise

    def save(
        self, step: int, state, notes: dict, val_accuracy: float | None, lines: Sequence[str] = ()
    ) -> None:
        """Starts to save a state; one that exists at this step is replaced.

        Args:
          step: of the state.
          state: tree of arrays.
          notes: to be found beside it.
          val_accuracy: by which the best one is chosen; None if it was not evaluated.
          lines: of metrics.jsonl.

        Raises:
          UserError: the disk is full, perhaps since the checkpoint before this one.
        """
        self.wait()
        with self._explaining():
            if step in self.steps:
                self._replace(step)
            best = self._policy.best
            if val_accuracy is not None and (best is None or val_accuracy >= best.val_accuracy):
                before = self._manager.latest_step()
                self._policy.best = _Best(step, val_accuracy, before, best and best.step)
            best = self._policy.best and dataclasses.asdict(self._policy.best)
            notes = notes | {"checksum": int(checksum(state)), "best": best}
            self._lines = list(lines)
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
            )
            if not self._manager.save(step, args=args, force=True):
                raise RuntimeError(f"orbax refused to save step {step} in {self._folder}")

    def restore_latest(self, abstract_state, upto: float = math.inf) -> Restored | None:
        """Returns the latest intact checkpoint; None if there is none.

        A damaged one is passed over with a warning. If the best one so far is damaged, a checkpoint
        before that is returned, from which it will be made again.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with the shardings to restore into.
          upto: later steps are passed over.

        Raises:
          UserError: checkpoints exist and none is intact.
        """
        found_damage = False
        for step in sorted(self.steps, reverse=True):
            if step > upto:
                continue
            try:
                restored, best = self._restore(step, abstract_state)
                if self._needs_best and best and (problem := self._problem(best.step)):
                    upto = best.step - 1
                    raise ValueError(f"{problem}, and is of the best checkpoint")
            except Exception as error:  # damage shows as many types in orbax and tensorstore
                if memory.ran_out(error):
                    raise
                found_damage = True
                warn(f"{first_line(error)}: going back to the checkpoint before it")
                continue
            self._policy.best = best
            return restored
        if found_damage:
            raise UserError(
                f"no checkpoint in {self._folder} could be read (see above): if they are beyond "
                "help, remove the run's folder to start it again"
            )
        return None

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, intact or not."""
        return list(self._manager.all_steps())

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: what they hold is to be done again."""
        for later in [other for other in self.steps if other > step]:
            self._manager.delete(later)

    def restore_best(self, abstract_state) -> Restored:
        """Returns the checkpoint with the highest validation accuracy.

        Raises UserError if it is damaged.
        """
        self.wait()
        assert self._policy.best is not None, "no checkpoint was evaluated"
        try:
            return self._restore(self._policy.best.step, abstract_state)[0]
        except Exception as error:
            if memory.ran_out(error):
                raise
            raise UserError(
                f"{first_line(error)}, and is of the best checkpoint: the same command goes "
                "back to the one before it"
            ) from None

    def _problem(self, step) -> str | None:
        """Returns which file of a checkpoint is damaged, by its digests alone."""
        folder = self._folder / str(step)
        return first_damage(folder) if folder.is_dir() else f"{folder} is missing"

    def _restore(self, step, abstract_state) -> tuple[Restored, _Best | None]:
        problem = self._problem(step)
        self._agree_on(problem, step)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state), notes=ocp.args.JsonRestore()
        )
        restored: Any = None
        try:
            restored = self._manager.restore(step, args=args)
            notes = dict(restored["notes"])
            best, expected = notes.pop("best"), notes.pop("checksum")
            if "rows" in notes:  # as earlier versions stored the lines
                lines = [json.dumps(row) + "\n" for row in notes.pop("rows")]
            else:
                lines = (self._folder / str(step) / _LOG).read_text().splitlines(keepends=True)
        except Exception as error:
            if memory.ran_out(error):
                raise
            problem = f"{self._folder / str(step)} is damaged ({first_line(error)})"
        self._agree_on(problem, step)
        # Catches the casts that orbax makes silently, and flipped bits where digests are missing.
        if int(checksum(restored["state"])) != expected:
            raise ValueError(f"{self._folder / str(step)} is damaged (its checksum does not match)")
        return Restored(step, restored["state"], notes, lines), _Best(**best) if best else None

    def _agree_on(self, problem, step):
        """Raises ValueError in all processes if one has a problem with a checkpoint."""
        # All processes take the same checkpoint, or none could go on.
        if not processes.all_true(problem is None):
            place = self._folder / str(step)
            raise ValueError(problem or f"{place} could not be read by another process")

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; raises UserError if that is full."""
        with self._explaining():
            self._manager.wait_until_finished()
            if self._replacing:
                self._settle_replaced()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        with self._explaining():
            self._manager.close()
            if self._replacing:
                self._settle_replaced()


def restore_common(runs: Sequence[Checkpoints], abstract_state) -> list[Restored] | None:
    """Returns each run's checkpoint of the latest step at which all have an intact one.

    A kill may leave some of the runs ahead; their later checkpoints are removed.

    Args:
      runs: that are trained together.
      abstract_state: of one run, as for `Checkpoints.restore_latest`.

    Returns:
      None if there is no such step.

    Raises:
      UserError: a run has checkpoints and none is intact.
    """
    upto = math.inf
    while True:
        found = [run.restore_latest(abstract_state, upto) for run in runs]
        steps = {-1 if restored is None else restored.step for restored in found}
        if len(steps) == 1:
            break
        upto = min(steps)
    if min(steps) < 0 and any(run.steps for run in runs):
        warn("the seeds have no intact checkpoint at the same step: starting again")
    for run in runs:  # only now: if none can be read, the fault may lie elsewhere
        run.forget_after(min(steps))
    return [restored for restored in found if restored is not None] or None


def save_arrays(folder: pathlib.Path, tree) -> int:
    """Writes a tree of arrays and returns its checksum."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree)
    return int(checksum(tree))


def load_arrays(folder: pathlib.Path, expected: int):
    """Returns the tree of NumPy arrays in a folder.

    Raises UserError if it is damaged, or its checksum is not the expected one.
    """
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
            stored = checkpointer.metadata(folder.absolute()).item_metadata
            tree = checkpointer.restore(folder.absolute(), _as_numpy(stored.tree))
        if _checksum_here(tree) != expected:
            raise ValueError("its checksum does not match")
    except Exception as error:  # damage shows as many types in orbax and tensorstore
        if memory.ran_out(error):
            raise
        raise UserError(f"{folder} is damaged ({first_line(error)})") from None
    return tree


def load_run(folder: pathlib.Path, step: int | Literal["last"]) -> tuple[dict, int]:
    """Returns the evaluated variables of a run, NumPy arrays, and their checksum.

    Args:
      folder: of the run's checkpoints.
      step: of the checkpoint.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    options = ocp.CheckpointManagerOptions(
        read_only=True, lightweight_initialize=True, multiprocessing_options=_alone()
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()}
    manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)
    place = folder / str(step)
    try:
        at = manager.latest_step() if step == "last" else step
        if at is None or at not in manager.all_steps():
            raise ValueError("there is none")
        place = folder / str(at)
        if problem := first_damage(place):
            raise ValueError(problem)
        stored = manager.item_metadata(at)["state"]
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(_as_numpy(stored)), notes=ocp.args.JsonRestore()
        )
        restored = manager.restore(at, args=args)
        state = restored["state"]
        variables = state["ema"] or {key: state[key] for key in ("params", "batch_stats")}
        found = _checksum_here(variables)
        if found != restored["notes"].get("variables_checksum", found):
            raise ValueError("its checksum does not match")
    except Exception as error:  # damage shows as many types in orbax and tensorstore
        if memory.ran_out(error):
            raise
        raise UserError(f"the checkpoint in {place} is damaged ({first_line(error)})") from None
    finally:
        manager.close()
    return variables, found


def _alone():
    """Returns what lets orbax read in this process without the others."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})


def _as_numpy(metadata):
    """Returns what to restore an orbax tree of array metadata into: no device may hold it."""
    return jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata)


def _checksum_here(tree) -> int:
    """Returns the checksum of NumPy arrays, taken on a CPU where JAX has one: see `_as_numpy`."""
    try:
        place = jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # as with JAX_PLATFORMS=cuda
        place = contextlib.nullcontext()
    with place:
        return int(checksum(tree))


def abstract(tree, shardings):
    """Returns the shapes, dtypes and shardings that a tree is to be restored into."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding),
        tree,
        shardings,
    )
