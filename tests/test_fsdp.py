"""FSDP trains like replication, saves memory, and restores on other numbers of devices."""

import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from tiny_configs import make_config
from tiny_steps import make_steps

from vit_jax import models
from vit_jax.config.rules import validate
from vit_jax.data import load_data
from vit_jax.evaluation.evaluate import evaluate
from vit_jax.evaluation.metrics import Sums
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.storage.checkpoint import Checkpoints, abstract
from vit_jax.training.setup import one_image

SETTINGS = dict(
    augment__kind="none",
    train__batch_size=256,
    train__accumulation_steps=2,
    optim__ema_decay=0.9,
    optim__learning_rate=1e-2,
    optim__eps=1e-3,  # so that rounding stays small
)


class Net(nn.Module):
    """A model with large arrays and little to compile."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train=False, keys=None):
        x = nn.relu(nn.Dense(256)(images.reshape(len(images), -1)))
        return nn.Dense(10, name="head")(nn.relu(nn.Dense(64)(x)))


@pytest.fixture(autouse=True, scope="module")
def small_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", lambda *args: Net())
        yield


def make_run(devices, fsdp):
    """Compile the steps and load the data."""
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    config = make_config(sharding__fsdp=fsdp, **SETTINGS)
    data = load_data(config.data, mesh)
    steps = make_steps(config, data, mesh)
    return types.SimpleNamespace(steps=steps, data=data, config=config)


def train(run, state, start, stop):
    """Train some steps; return the state and the loss of each step."""
    losses, before = [], float(state.sums.loss.total)
    for batch in run.data.train.train(0, start, stop, 256):
        state = sharding.block_on_cpu(run.steps.train(state, jax.random.key(1), batch))
        losses.append((float(state.sums.loss.total) - before) / 256)
        before = float(state.sums.loss.total)
    return state, losses


def first_state(run):
    return run.steps.init(jax.random.key(0), one_image(run.config))


def bytes_per_device(state):
    """Count the bytes of the state on each device."""
    bytes_of = dict.fromkeys(jax.devices(), 0)
    for array in jax.tree.leaves(state):
        for shard in array.addressable_shards:
            bytes_of[shard.device] += shard.data.nbytes
    return list(bytes_of.values())


@pytest.fixture(scope="module")
def runs(small_model):
    """Train two steps on eight devices: {fsdp: (run, state, losses)}."""
    made = {fsdp: make_run(8, fsdp) for fsdp in (False, True)}
    return {fsdp: (run, *train(run, first_state(run), 0, 2)) for fsdp, run in made.items()}


def test_sharded_weights_train_and_evaluate_like_replicated_ones(runs):
    (replicated, state, losses), (sharded, same, found) = runs[False], runs[True]
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert losses[0] != losses[1]
    for one, other in ((same.params, state.params), (same.ema, state.ema)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, other)
    results = [
        evaluate(
            run.steps.eval_step,
            one.eval_variables,
            sharding.replicate(run.steps.setup.mesh, Sums.empty()),
            run.data.val.evaluate(512),
        )
        for run, one in ((replicated, state), (sharded, same))
    ]
    assert results[0].count == results[1].count == len(replicated.data.val)
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)


def test_each_device_has_a_shard(runs):
    (replicated, state, _), (sharded, same, _) = runs[False], runs[True]
    (replicated_bytes,), (sharded_bytes,) = (set(bytes_per_device(one)) for one in (state, same))
    print(
        f"bytes of the state per device: {replicated_bytes:,} replicated, {sharded_bytes:,} sharded"
    )
    assert replicated_bytes / sharded_bytes > 5  # of 8; small arrays are replicated
    assert sharded_bytes == sharding.bytes_per_device(sharded.steps.shapes)
    kernel = same.ema["params"]["Dense_0"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "data")  # [64, 256]
    sizes = []
    for run, one in ((replicated, state), (sharded, same)):
        batch = next(run.data.train.train(0, 0, 1, 256))
        step = run.steps.train.lower(one, jax.random.key(1), batch).compile()
        sizes.append(step.memory_analysis())
    print("arguments per device:", *(size.argument_size_in_bytes for size in sizes))
    print("temporary per device:", *(size.temp_size_in_bytes for size in sizes))
    assert sizes[0].argument_size_in_bytes / sizes[1].argument_size_in_bytes > 4


def test_a_checkpoint_of_eight_devices_is_restored_on_fewer(runs, tmp_path):
    sharded, state, _ = runs[True]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, {}, 0.5)
    checkpoints.wait()
    host = jax.device_get(state)
    _, losses = train(sharded, jax.tree.map(lambda x: x.copy(), state), 2, 4)
    for devices in (1, 2, 4, 8):
        run = make_run(devices, fsdp=True) if devices < 8 else runs[False][0]
        target = abstract(host, jax.tree.map(lambda x: x.sharding, run.steps.shapes))
        restored = checkpoints.restore_latest(target).state  # verifies the checksum
        kernel = restored.params["Dense_0"]["kernel"]
        columns = 256 if devices == 8 else 256 // devices  # replicated on the last mesh
        assert kernel.sharding.shard_shape((64, 256)) == (64, columns)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), host)
        if devices in (1, 8):
            np.testing.assert_allclose(train(run, restored, 2, 4)[1], losses, rtol=1e-5)
    checkpoints.close()


def test_vectorised_seeds_are_incompatible_with_fsdp():
    settings = dict(train__vmap_seeds="always", train__num_seeds=2, sharding__fsdp=True)
    with pytest.raises(UserError, match="is incompatible with sharding.fsdp=True"):
        validate(make_config(**settings))
