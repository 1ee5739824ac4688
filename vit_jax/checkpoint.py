"""Checkpoints of a run, the latest two and the best; weights alone. The only file knowing orbax."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vit_jax import processes
from vit_jax.errors import UserError


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
    """A checkpoint read back: the state, and what was noted beside it."""

    step: int
    state: Any
    notes: dict


class Checkpoints:
    """The checkpoints in one folder, written in the background.

    A checkpoint holds a state, notes (JSON) and, when it was evaluated, the validation accuracy,
    by which the best one is chosen; of equals, the latest.
    """

    def __init__(self, folder: pathlib.Path):
        """Opens or makes the folder; what a killed save left half-made is removed."""
        self._folder = folder
        policies = checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            best_fn=_accuracy,
            cleanup_tmp_directories=True,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(n=2),
                    policies.BestN(
                        get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state, notes: dict, val_accuracy: float | None) -> None:
        """Starts to save a state; one that exists at this step is replaced."""
        if step in self._manager.all_steps():
            self._manager.delete(step)
        notes = notes | {"checksum": int(checksum(state))}
        metrics = None if val_accuracy is None else {"val_accuracy": val_accuracy}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
        )
        if not self._manager.save(step, args=args, metrics=metrics, force=True):
            raise RuntimeError(f"orbax refused to save step {step} in {self._folder}")

    def restore_latest(self, abstract_state, upto: float = math.inf) -> Restored | None:
        """Returns the latest intact checkpoint; None if nothing was saved yet.

        A damaged one is passed over with a warning, and removed once an older one has been read.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with the shardings to restore into.
          upto: those of later steps are removed: what they hold is to be done again.

        Raises:
          UserError: checkpoints exist and none is intact.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            if step > upto:
                self._manager.delete(step)
                continue
            try:
                restored = self._restore(step, abstract_state)
            except MemoryError:
                raise
            except Exception as error:  # damage shows as many types in orbax and tensorstore
                damaged.append(step)
                print(
                    f"warning: {self._folder / str(step)} is damaged ({_first_line(error)}): going "
                    "back to the checkpoint before it",
                    file=sys.stderr,
                )
                continue
            for bad in damaged:  # only now: if none can be read, the fault may lie elsewhere
                self._manager.delete(bad)
            return restored
        if damaged:
            raise UserError(
                f"no checkpoint in {self._folder} could be read (see above): if they are beyond "
                "help, remove the run's folder to start it again"
            )
        return None

    def restore_best(self, abstract_state) -> Restored:
        """Returns the checkpoint with the highest validation accuracy.

        Raises UserError if it is damaged.
        """
        self.wait()
        step = self._manager.best_step()
        try:
            return self._restore(step, abstract_state)
        except Exception as error:
            raise UserError(
                f"the best checkpoint, {self._folder / str(step)}, is damaged "
                f"({_first_line(error)}): remove the run's folder to train it again"
            ) from None

    def _restore(self, step, abstract_state):
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state), notes=ocp.args.JsonRestore()
        )
        restored: Any = None
        failure = None
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:
            failure = error
        # All processes take the same checkpoint, or none could go on.
        if not processes.all_true(failure is None):
            raise failure or OSError("another process could not read it")
        notes = dict(restored["notes"])
        expected = notes.pop("checksum")
        # Catches flipped bits, and the casts that orbax makes silently.
        if int(checksum(restored["state"])) != expected:
            raise ValueError("its checksum does not match")
        return Restored(step, restored["state"], notes)

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self._manager.close()


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
            return [restored for restored in found if restored is not None] or None
        upto = min(steps)


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
            tree = checkpointer.restore(folder.absolute(), _on_one_device(stored.tree))
        if int(checksum(tree)) != expected:
            raise ValueError("its checksum does not match")
    except MemoryError:
        raise
    except Exception as error:  # damage shows as many types in orbax and tensorstore
        raise UserError(f"{folder} is damaged ({_first_line(error)})") from None
    return jax.tree.map(np.asarray, tree)


def load_run(folder: pathlib.Path, select: str) -> tuple[dict, int]:
    """Returns the evaluated variables of a run, NumPy arrays, and their checksum.

    Args:
      folder: of the run's checkpoints.
      select: "best" by validation accuracy, or "last".

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    options = ocp.CheckpointManagerOptions(
        read_only=True, best_fn=_accuracy, multiprocessing_options=_alone()
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()}
    manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)
    try:
        step = manager.best_step() if select == "best" else manager.latest_step()
        if step is None:
            raise ValueError("there is none")
        stored = manager.item_metadata(step)["state"]
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(_on_one_device(stored)), notes=ocp.args.JsonRestore()
        )
        restored = manager.restore(step, args=args)
        state = restored["state"]
        variables = state["ema"] or {key: state[key] for key in ("params", "batch_stats")}
        found = int(checksum(variables))
        if found != restored["notes"].get("variables_checksum", found):
            raise ValueError("its checksum does not match")
    except MemoryError:
        raise
    except Exception as error:  # damage shows as many types in orbax and tensorstore
        raise UserError(
            f"the {select} checkpoint in {folder} is damaged ({_first_line(error)})"
        ) from None
    finally:
        manager.close()
    return jax.tree.map(np.asarray, variables), found


def _alone():
    """Returns what lets orbax read in this process without the others."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})


def _on_one_device(metadata):
    """Returns what to restore an orbax tree of array metadata into."""
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), metadata)


def _accuracy(metrics) -> float:
    return metrics["val_accuracy"]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


def abstract(tree, shardings):
    """Returns the shapes, dtypes and shardings that a tree is to be restored into."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding),
        tree,
        shardings,
    )
