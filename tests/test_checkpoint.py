"""Checkpoints: retention, detection of damage, and recovery."""

import gc
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from damage import DAMAGE, damage_file

from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.storage import checkpoint
from vit_jax.storage.checkpoint import Checkpoints, abstract, checksum, restore_common

MESH = sharding.make_mesh()


def make_state(value):
    tree = {"w": jnp.arange(3000.0).reshape(60, 50) + value, "n": jnp.int32(value)}
    return sharding.replicate(MESH, tree)


TARGET = abstract(make_state(0), sharding.state_sharding(MESH, make_state(0), fsdp=False))


LINES = {step: [f'{{"step": {i}}}\n' for i in range(1, step + 1)] for step in range(5)}


@pytest.fixture
def saved(tmp_path):
    """Four checkpoints, of which the second is the best."""
    checkpoints = Checkpoints(tmp_path)
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.6), (4, 0.7)):
        checkpoints.save(step, make_state(step), {"evaluated": True}, accuracy, LINES[step])
    checkpoints.wait()
    yield checkpoints, tmp_path
    checkpoints.close()


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_the_latest_two_the_best_and_its_predecessor_are_preserved(saved):
    checkpoints, folder = saved
    checkpoints.save(5, make_state(5), {"evaluated": False}, None)
    checkpoints.wait()
    assert steps_in(folder) == [1, 2, 4, 5]
    latest = checkpoints.restore_latest(TARGET)
    assert (latest.step, latest.notes, latest.lines) == (5, {"evaluated": False}, [])
    jax.tree.map(np.testing.assert_array_equal, latest.state, make_state(5))
    best = checkpoints.restore_best(TARGET)
    assert (best.step, best.notes, best.lines) == (2, {"evaluated": True}, LINES[2])
    jax.tree.map(np.testing.assert_array_equal, best.state, make_state(2))


def test_a_kill_while_a_checkpoint_is_replaced_leaves_the_previous_one(saved, monkeypatch):
    checkpoints, folder = saved

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(4, make_state(4), {"evaluated": "again"}, 0.7, LINES[4])
    assert restored_from(folder).step == 3


def test_checkpoints_leave_nothing_in_memory(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {str(i): np.ones(2, np.float32) for i in range(100)}
    allocated = {}
    for step in range(1, 19):
        checkpoints.save(step, state, {}, None)
        checkpoints.wait()
        if step in (6, 18):
            gc.collect()
            allocated[step] = sys.getallocatedblocks()
    checkpoints.close()
    assert allocated[18] - allocated[6] < 12 * 50  # half a block per array; leaks take five


def test_tensorstore_specs_are_cached_correctly(saved):
    """They are converted to JSON once and then cached."""
    spec = {"driver": "file", "path": f"{saved[1]}/50 % \N{SNOWMAN}/#1?/"}
    for _ in range(2):
        assert tensorstore.KvStore.Spec(spec).to_json() == spec


def restored_from(folder):
    """Restore the checkpoint from which a run would resume."""
    checkpoints = Checkpoints(folder)
    try:
        found = restore_common([checkpoints], TARGET)
        return found and found[0]
    finally:
        checkpoints.close()


def test_damage_of_the_latest_is_named_and_the_previous_one_restored(saved, tmp_path, capsys):
    """For every file and kind of damage; unneeded files change nothing."""
    _, folder = saved
    harmless = set()
    for path in sorted(p.relative_to(folder) for p in (folder / "4").rglob("*") if p.is_file()):
        for how in DAMAGE:
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("copy"))
            damage_file(copy / path, how)
            restored = restored_from(copy)
            warning = capsys.readouterr().err
            if restored.step == 4:
                harmless.add(str(path))
            else:
                assert restored.step == 3, (path, how)
                named = copy / path if path.name != "SHA256SUMS" else path.name
                assert str(named) in warning and warning.startswith("warning: ")
                assert steps_in(copy) == [1, 2, 3]
            assert restored.lines == LINES[restored.step]
            jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(restored.step))
            shutil.rmtree(copy)
    # orbax's own metadata; without digests, the checksum of the state still applies.
    assert harmless == {"4/_CHECKPOINT_METADATA", "4/commit_success.txt", "4/SHA256SUMS"}


def test_flipped_bits_are_detected_without_digests(saved, capsys):
    _, folder = saved
    (folder / "4" / "SHA256SUMS").unlink()
    damage_file(largest(folder / "4" / "state"), "flip")
    assert restored_from(folder).step == 3
    assert "4 is damaged (its checksum does not match)" in capsys.readouterr().err


def test_the_best_before_a_checkpoint_is_preserved_with_it(tmp_path):
    """So that the run can fall back to before the one that surpassed it."""
    checkpoints = Checkpoints(tmp_path)
    for step, accuracy in ((1, 0.5), (2, 0.4), (3, 0.3), (4, 0.9), (5, 0.8), (6, 0.7)):
        checkpoints.save(step, make_state(step), {}, accuracy)
    checkpoints.close()
    assert steps_in(tmp_path) == [1, 3, 4, 5, 6]
    damage_file(largest(tmp_path / "4" / "state"), "flip")
    assert restored_from(tmp_path).step == 3
    assert restored_from(tmp_path).step == 3 and steps_in(tmp_path) == [1, 3]


@pytest.mark.parametrize("how", ["flip", "delete", "folder"])
def test_a_damaged_best_is_recreated_from_its_predecessor(saved, how, capsys):
    _, folder = saved
    path = largest(folder / "2" / "state")
    if how == "folder":
        path = folder / "2"
        shutil.rmtree(path)
    else:
        damage_file(path, how)
    restored = restored_from(folder)
    assert restored.step == 1 and restored.lines == LINES[1]
    assert steps_in(folder) == [1]
    assert f"warning: {path} " in capsys.readouterr().err


def test_a_damaged_best_does_not_matter_with_select_last(saved):
    _, folder = saved
    damage_file(largest(folder / "2" / "state"), "flip")
    checkpoints = Checkpoints(folder, needs_best=False)
    assert checkpoints.restore_latest(TARGET).step == 4
    checkpoints.close()


def test_restoring_a_damaged_best_is_an_error(saved):
    checkpoints, folder = saved
    damage_file(largest(folder / "2" / "state"), "flip")
    with pytest.raises(
        UserError, match="2/state/.* does not match SHA256SUMS, and belongs to the best"
    ):
        checkpoints.restore_best(TARGET)


def test_restore_raises_without_intact_checkpoints_and_returns_none_without_any(saved, tmp_path):
    _, folder = saved
    for step in steps_in(folder):
        damage_file(largest(folder / str(step) / "state"), "truncate")
    for _ in range(2):  # and nothing is deleted: the cause may be temporary
        with pytest.raises(UserError, match="no checkpoint in .* could be read"):
            restored_from(folder)
        assert steps_in(folder) == [1, 2, 3, 4]
    assert restored_from(tmp_path / "new") is None


def test_seeds_fall_back_to_a_common_step(tmp_path, capsys):
    runs = [Checkpoints(tmp_path / str(seed)) for seed in (0, 1)]
    for step in (1, 2, 3):
        for run in runs:
            run.save(step, make_state(step), {}, 0.1 * step)
    for run in runs:
        run.close()
    damage_file(largest(tmp_path / "1" / "3" / "state"), "flip")
    runs = [Checkpoints(tmp_path / str(seed)) for seed in (0, 1)]
    assert [one.step for one in restore_common(runs, TARGET)] == [2, 2]
    assert [steps_in(tmp_path / str(seed)) for seed in (0, 1)] == [[2], [2]]
    for run in runs:
        run.close()
    shutil.rmtree(tmp_path / "0" / "2")
    runs = [Checkpoints(tmp_path / str(seed)) for seed in (0, 1)]
    assert restore_common(runs, TARGET) is None
    assert "training from scratch" in capsys.readouterr().err
    for run in runs:
        run.close()


def test_a_full_disk_is_a_single_line_error(saved, monkeypatch):
    """In the background, like all writes of orbax."""
    checkpoints, folder = saved

    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: x: No space left on device [os_error_code='28']")

    monkeypatch.setattr(checkpoint, "write_sums", full)
    checkpoints.save(5, make_state(5), {"evaluated": True}, 0.5)
    with pytest.raises(
        UserError, match=f"{folder}: a checkpoint cannot be written: No space left on"
    ):
        checkpoints.wait()
    monkeypatch.undo()
    assert restored_from(folder).step == 4


def test_out_of_memory_is_not_damage(saved, monkeypatch):
    """For example, while another program uses the device."""
    checkpoints, folder = saved

    def fail(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    for orbax_class in (ocp.CheckpointManager, ocp.StandardCheckpointer):
        monkeypatch.setattr(orbax_class, "restore", fail)
    for restore in (lambda like: restore_common([checkpoints], like), checkpoints.restore_best):
        with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
            restore(TARGET)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        checkpoint.load_run(folder, "last")
    assert steps_in(folder) == [1, 2, 3, 4]


def test_saving_a_step_again_replaces_it(saved):
    checkpoints, _ = saved
    checkpoints.save(4, make_state(40), {"evaluated": False}, None)
    checkpoints.wait()
    latest = checkpoints.restore_latest(TARGET)
    assert int(latest.state["n"]) == 40 and latest.notes == {"evaluated": False}


def test_the_only_checkpoint_is_never_missing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, make_state(5), {"evaluated": False}, None)
    checkpoints.wait()
    before = {path: path.stat() for path in (tmp_path / "5").rglob("*")}
    checkpoints.save(5, make_state(5), {"evaluated": True}, 0.99, LINES[4])
    checkpoints.wait()
    # A kill now repeats the evaluation.
    assert {path: path.stat() for path in (tmp_path / "5").rglob("*")} == before
    assert checkpoints.restore_best(TARGET).step == 5
    checkpoints.save(6, make_state(6), {"evaluated": True}, 0.1)
    checkpoints.close()
    assert restored_from(tmp_path).best["step"] == 5


def test_saved_values_are_those_at_the_time_of_the_call(tmp_path):
    """The next step donates the state's buffers while the save is still running."""
    checkpoints = Checkpoints(tmp_path)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = make_state(1)
    checkpoints.save(1, state, {}, 0.5)
    for _ in range(20):
        state = step(state)
    checkpoints.wait()
    jax.tree.map(
        np.testing.assert_array_equal, checkpoints.restore_latest(TARGET).state, make_state(1)
    )
    checkpoints.close()


def test_checksum_depends_on_every_bit_but_not_on_sharding():
    tree = {"a": np.arange(64, dtype=np.float32).reshape(8, 8), "b": np.ones(8, jnp.bfloat16)}
    expected = checksum(tree)
    assert checksum(sharding.shard_batch(MESH, tree)) == expected
    changed = tree["a"].copy()
    changed.view(np.uint32)[3, 5] ^= 1
    assert checksum(tree | {"a": changed}) != expected
    assert checksum(tree | {"a": tree["a"].T.copy()}) != expected
