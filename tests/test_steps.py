"""A training step gives the same result on any number of devices and micro-batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from tiny_configs import make_config

from vit_jax import data, models
from vit_jax.augment import normalize
from vit_jax.evaluation.evaluate import evaluate
from vit_jax.evaluation.metrics import Sums
from vit_jax.evaluation.steps import make_eval_step
from vit_jax.models.resnet import BasicBlock
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.training import optim
from vit_jax.training.setup import make_setup
from vit_jax.training.step import make_init, make_train_step

RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (32, 8, 8, 1), np.uint8),
    "label": RNG.integers(0, 10, 32).astype(np.int32),
}


def sgd(**overrides):
    return make_config(optim__name="sgd", optim__learning_rate=0.1, **overrides)


def make_mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def train(config, devices=1, num_steps=3, model=None):
    """Train on one batch; return the states before and after each step, and the losses."""
    mesh = make_mesh(devices)
    model = model or models.build(config.model, 10)
    optimizer = optim.make_optimizer(config.optim, lambda step: config.optim.learning_rate)
    whole = sharding.replicated(mesh)
    init = jax.jit(make_init(model, optimizer, config), out_shardings=whole)
    micro_batches = config.train.accumulation_steps or 1
    step = make_train_step(model, optimizer, config, micro_batches=micro_batches, mesh=mesh)
    step = jax.jit(step, out_shardings=whole)
    states = [init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))]
    for _ in range(num_steps):
        batch = sharding.shard_batch(mesh, BATCH)
        states.append(sharding.block_on_cpu(step(states[-1], jax.random.key(1), batch)))
    totals = [float(state.sums.loss.total) for state in states]
    return states, np.diff(totals) / len(BATCH["label"])


def assert_close(one, other, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), one, other)


def test_eight_devices_train_like_one():
    config = sgd(model__dropout_rate=0.2, train__accumulation_steps=2)
    ((*_, one), losses), ((*_, eight), same) = train(config), train(config, devices=8)
    assert len(eight.params["cls"].sharding.device_set) == 8
    np.testing.assert_allclose(losses, same, rtol=1e-5)
    assert_close(one.params, eight.params)
    assert len(set(losses)) == 3


class OneBlock(nn.Module):
    """ResNet18 with one of its eight blocks, to save compile time."""

    axis_name: str | None = None
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train=False, keys=None):
        block = BasicBlock(4, 2, False, frozenset(), self.axis_name, jnp.float32, name="block")
        return nn.Dense(self.num_classes, name="head")(block(images, train).mean((1, 2)))


def test_batch_statistics_are_over_all_devices():
    config = sgd(optim__ema_decay=0.9, train__accumulation_steps=2)
    (_, *ones), losses = train(config, model=OneBlock())
    (_, *fours), same = train(config, devices=4, model=OneBlock())
    np.testing.assert_allclose(losses, same, rtol=1e-5)
    assert_close(ones[-1].batch_stats, fours[-1].batch_stats)
    assert_close(ones[-1].ema, fours[-1].ema)
    means = [np.asarray(state.batch_stats["block"]["bn2"]["mean"]) for state in ones]
    assert np.abs(means[-1] - means[0]).min() > 0


def test_plateau_scales_the_updates():
    config = sgd(optim__schedule="reduce_on_plateau", augment__kind="none")
    plateau = optim.make_plateau(config.optim)
    model = models.build(config.model, 10)
    optimizer = optim.make_optimizer(config.optim, lambda step: 0.1)
    init = make_init(model, optimizer, config, plateau)
    state = jax.jit(init)(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    step = jax.jit(make_train_step(model, optimizer, config))
    whole = step(state, jax.random.key(1), BATCH).params
    state = state.replace(plateau=state.plateau._replace(scale=jnp.float32(0.25)))
    quarter = step(state, jax.random.key(1), BATCH).params
    expected = jax.tree.map(lambda a, b: a + 0.25 * (b - a), state.params, whole)
    assert_close(quarter, expected, 1e-6)
    assert np.abs(whole["head"]["bias"]).sum() > 0


def test_when_multi_step_dispatch_is_used():
    def multi_step(**overrides):
        config = make_config(**{"data__device_resident": "always"} | overrides)
        loaded = data.load_data(config.data, make_mesh(1))
        return make_setup(config, loaded, make_mesh(1)).multi_step

    assert multi_step()
    assert not multi_step(train__multi_step="never")
    assert not multi_step(sharding__fsdp=True)
    assert not multi_step(data__device_resident="never")
    # The cached features are device-resident.
    assert multi_step(data__device_resident="never", freeze="head", augment__kind="none")
    with pytest.raises(
        UserError, match="train.multi_step=always cannot be combined with streamed data"
    ):
        multi_step(data__device_resident="never", train__multi_step="always")


@pytest.mark.parametrize("kind", [data.ResidentBatches, data.StreamingBatches])
def test_every_example_is_evaluated_once_on_one_device_and_on_eight(kind, compiled):
    config = sgd()
    splits = data.make_splits(data.open_source(config.data), config.data)
    model = models.build(config.model, 10)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    variables["params"]["head"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 10))
    step = jax.jit(make_eval_step(model, config))
    found = {}
    for devices in (1, 8):
        mesh = make_mesh(devices)
        if kind is data.ResidentBatches:
            batches = kind(*splits.test.load_all(2), mesh)
        else:
            batches = kind(splits.test, mesh, 2)
        on_mesh = (sharding.replicate(mesh, tree) for tree in (variables, Sums.empty()))
        found[devices] = evaluate(step, *on_mesh, batches.evaluate(50 * devices))
        print(f"{kind.__name__} on {devices} devices: {found[devices].count} examples counted")
    assert compiled.count("jit(eval_step)") == 2, "a mesh has one program"
    images, labels = splits.test.decode_all(1)
    assert len(labels) % 50 and len(labels) % 400  # the last batch is incomplete for both
    assert found[1].count == found[8].count == len(labels) == 359
    logits = jax.jit(model.apply)(variables, normalize(images, config))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    for result in found.values():
        assert result.loss == pytest.approx(float(losses.mean()), rel=1e-5)
        assert result.accuracy == pytest.approx(float((logits.argmax(1) == labels).mean()))


def test_accumulation_changes_nothing():
    rates = {"model__dropout_rate": 0.2, "model__drop_path_rate": 0.2, "model__depth": 2}
    ((*_, one), losses), ((*_, four), same) = (
        train(sgd(train__accumulation_steps=steps, **rates)) for steps in (1, 4)
    )
    np.testing.assert_allclose(losses, same, rtol=1e-5)
    assert_close(one.params, four.params)
    assert int(one.sums.loss.count) == int(four.sums.loss.count) == 3 * 32


def test_label_smoothing_and_loss():
    config = sgd(augment__kind="none", train__label_smoothing=0.1)
    states, losses = train(config, num_steps=2)
    assert losses[0] == pytest.approx(np.log(10), rel=1e-5)  # the head starts at zero
    images = normalize(BATCH["image"], config)
    logits = models.build(config.model, 10).apply({"params": states[1].params}, images)
    targets = 0.9 * np.eye(10)[BATCH["label"]] + 0.1 / 10
    expected = -(targets * np.asarray(jax.nn.log_softmax(logits))).sum(1).mean()
    assert losses[1] == pytest.approx(expected, rel=1e-4)


def test_moving_average_follows_the_weights():
    states, _ = train(sgd(optim__ema_decay=0.9))
    expected = states[0].params
    assert_close(states[0].ema["params"], expected, 0)
    for n, state in enumerate(states[1:], 1):
        decay = min(0.9, n / (9 + n))
        expected = jax.tree.map(
            lambda average, new, d=decay: d * average + (1 - d) * new, expected, state.params
        )
        assert_close(state.ema["params"], expected, 1e-6)
        assert state.eval_variables is state.ema


def test_non_finite_loss_is_recorded_with_its_step():
    config = sgd()
    config.optim.learning_rate = 1e30  # above the limit of the schema
    states, losses = train(config, num_steps=4)
    first = int(states[-1].bad_step)
    assert 1 < first <= 1 + int(np.argmin(np.isfinite(losses)))
    assert [int(state.bad_step) for state in states] == [-1] * first + [first] * (5 - first)


def test_normalisation():
    config = sgd(data__mean=(0.5,), data__std=(0.25,))
    pixels = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(normalize(pixels, config).reshape(-1), [-2, 2])
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    config = sgd(data__channels=3, data__mean=mean, data__std=std)
    expected = (levels.astype(np.float64) / 255 - mean) / std
    found = normalize(levels, config)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    compiled = jax.jit(lambda images: 3 * normalize(images, config) + 1)(levels)
    np.testing.assert_array_equal(compiled, jax.jit(lambda x: 3 * x + 1)(found))


def test_sums_ignore_masked_examples():
    sums = Sums.empty().merge(
        Sums.single_from_model_output(
            loss=jnp.array([1.0, 2.0, 100.0]),
            logits=jnp.eye(3),
            labels=jnp.array([0, 0, 2]),
            mask=jnp.array([True, True, False]),
        )
    )
    assert {k: float(v) for k, v in sums.compute().items()} == {"loss": 1.5, "accuracy": 0.5}
