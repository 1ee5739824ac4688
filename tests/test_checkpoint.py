"""Checkpoints: what is kept, what is found damaged, and what is then done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.checkpoint import Checkpoints, abstract, checksum
from vit_jax.errors import UserError

MESH = sharding.make_mesh()


def make_state(value):
    tree = {"w": jnp.arange(3000.0).reshape(60, 50) + value, "n": jnp.int32(value)}
    return sharding.put_replicated(MESH, tree)


TARGET = abstract(make_state(0), sharding.of_state(MESH, make_state(0), fsdp=False))


@pytest.fixture
def saved(tmp_path):
    """Four checkpoints, the second of which is the best."""
    checkpoints = Checkpoints(tmp_path)
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.6), (4, 0.7)):
        checkpoints.save(step, make_state(step), {"evaluated": True}, accuracy)
    checkpoints.wait()
    yield checkpoints, tmp_path
    checkpoints.close()


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def damage(folder, how):
    """Harms the largest file below a folder."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == "truncate":
        content = content[: len(content) // 2]
    elif how == "flip":
        content[len(content) // 2] ^= 1
    path.unlink()
    if how != "delete":
        path.write_bytes(content)


def test_latest_two_and_best_are_kept(saved):
    checkpoints, folder = saved
    assert steps_in(folder) == [2, 3, 4]
    latest = checkpoints.restore_latest(TARGET)
    assert (latest.step, latest.notes) == (4, {"evaluated": True})
    jax.tree.map(np.testing.assert_array_equal, latest.state, make_state(4))
    best = checkpoints.restore_best(TARGET)
    assert best.step == 2
    jax.tree.map(np.testing.assert_array_equal, best.state, make_state(2))


@pytest.mark.parametrize("how", ["truncate", "flip", "delete"])
def test_damaged_latest_falls_back_with_a_warning(saved, how, capsys):
    checkpoints, folder = saved
    damage(folder / "4" / "state", how)
    assert checkpoints.restore_latest(TARGET).step == 3
    warning = capsys.readouterr().err
    assert str(folder / "4") in warning and "damaged" in warning
    checkpoints.save(4, make_state(4), {"evaluated": True}, 0.7)  # its place is free again
    assert checkpoints.restore_latest(TARGET).step == 4


def test_nothing_readable_is_refused_and_nothing_saved_is_none(saved, tmp_path):
    checkpoints, folder = saved
    for step in steps_in(folder):
        damage(folder / str(step) / "state", "truncate")
    for _ in range(2):  # and nothing is removed: the fault may lie elsewhere
        with pytest.raises(UserError, match="no checkpoint in .* could be read"):
            checkpoints.restore_latest(TARGET)
        assert steps_in(folder) == [2, 3, 4]
    assert Checkpoints(tmp_path / "new").restore_latest(TARGET) is None


def test_damaged_best_is_refused(saved):
    checkpoints, folder = saved
    damage(folder / "2" / "state", "flip")
    with pytest.raises(UserError, match="the best checkpoint, .*2, is damaged"):
        checkpoints.restore_best(TARGET)


def test_saving_a_step_again_replaces_it(saved):
    checkpoints, _ = saved
    checkpoints.save(4, make_state(40), {"evaluated": False}, None)
    checkpoints.wait()
    latest = checkpoints.restore_latest(TARGET)
    assert int(latest.state["n"]) == 40 and latest.notes == {"evaluated": False}


def test_saved_values_are_those_at_the_time_of_the_call(tmp_path):
    """The next step donates the state's buffers while the save goes on in the background."""
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


def test_checksum_sees_every_bit_and_no_layout():
    tree = {"a": np.arange(64, dtype=np.float32).reshape(8, 8), "b": np.ones(8, jnp.bfloat16)}
    expected = int(checksum(tree))
    assert int(checksum(sharding.put_split(MESH, tree))) == expected
    changed = tree["a"].copy()
    changed.view(np.uint32)[3, 5] ^= 1
    assert int(checksum(tree | {"a": changed})) != expected
    assert int(checksum(tree | {"a": tree["a"].T.copy()})) != expected
