"""Schedules, weight decay, clipping, momentum, Muon, Lion and schedule-free AdamW."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from vit_jax import config as settings
from vit_jax import models
from vit_jax.runtime import sharding
from vit_jax.training import optim


def config(**overrides):
    keys = {f"optim.{key}": value for key, value in overrides.items()}
    return settings.with_overrides(settings.get_config(), keys, "a test").optim


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"schedule": "constant"}, {0: 0.1, 4: 0.5, 5: 0.5, 99: 0.5}),
        ({"schedule": "cosine"}, {0: 0.1, 4: 0.5, 5: 0.5, 55: 0.25, 105: 0.0}),
        ({"schedule": "cosine", "end_learning_rate": 0.1}, {5: 0.5, 55: 0.3, 105: 0.1}),
        ({"schedule": "linear"}, {4: 0.5, 5: 0.5, 30: 0.375, 105: 0.0}),
        (
            {"schedule": "step", "decay_at_percent": (50.0, 80.0), "decay_factor": 0.1},
            {5: 0.5, 51: 0.5, 52: 0.05, 83: 0.05, 84: 0.005},
        ),
        # Both decays fall within the warm-up and apply after it.
        ({"schedule": "step", "decay_at_percent": (1.0, 2.0)}, {4: 0.5, 6: 0.005}),
    ],
)
def test_schedule_with_warmup(overrides, expected):
    schedule = optim.make_schedule(config(learning_rate=0.5, **overrides), 5, 105)
    found = {step: float(schedule(step)) for step in expected}
    assert found == pytest.approx(expected, abs=1e-6)


def test_no_warmup_starts_at_the_peak():
    schedule = optim.make_schedule(config(schedule="cosine", learning_rate=0.5), 0, 10)
    assert float(schedule(0)) == pytest.approx(0.5)


PARAMS = {
    "head": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)},
    "LayerNorm_0": {"scale": jnp.full(2, 2.0)},
    "posembed_input": {"pos_embedding": jnp.full((1, 3, 2), 2.0)},
    "cls": jnp.full((1, 1, 2), 2.0),
}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "schedule_free_adamw"])
def test_weight_decay_shrinks_kernels_only(name):
    optimizer = optim.make_optimizer(config(name=name, weight_decay=0.1), lambda step: 0.01)
    zeros = {key: 0 * value for key, value in _flat(PARAMS).items()}
    updates, _ = optimizer.update(_like(PARAMS, zeros), optimizer.init(PARAMS), PARAMS)
    for name_of, update in _flat(updates).items():
        assert bool((update < 0).all()) == name_of.endswith("kernel"), name_of
        assert bool((update == 0).all()) != name_of.endswith("kernel"), name_of


def test_adamw_decay_is_decoupled():
    optimizer = optim.make_optimizer(config(name="adamw", weight_decay=0.1), lambda step: 0.01)
    zeros = _like(PARAMS, {key: 0 * value for key, value in _flat(PARAMS).items()})
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.01 * 0.1 * 2.0, rtol=1e-6)


def test_clipping_bounds_the_global_norm():
    optimizer = optim.make_optimizer(
        config(name="sgd", momentum=0.0, grad_clip_norm=1.0), lambda step: 1.0
    )
    grads = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8], rtol=1e-5)


MOMENTS = dict(b1=0.7, b2=0.8, eps=0.1)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (dict(name="adam", **MOMENTS), optax.adam(0.1, **MOMENTS)),
        (dict(name="adamw", **MOMENTS), optax.adamw(0.1, **MOMENTS, weight_decay=0)),
        (dict(name="muon", **MOMENTS), optax.adamw(0.1, **MOMENTS, weight_decay=0)),  # of a head
        (dict(name="lion", lion_b1=0.3, lion_b2=0.6), optax.lion(0.1, 0.3, 0.6, weight_decay=0)),
        (dict(name="sgd", momentum=0.5), optax.sgd(0.1, 0.5)),
        (dict(name="sgd", momentum=0.5, nesterov=True), optax.sgd(0.1, 0.5, nesterov=True)),
    ],
)
def test_settings_of_optimizers(overrides, expected):
    optimizer = optim.make_optimizer(config(weight_decay=0.0, **overrides), lambda step: 0.1)
    params = {"head": {"kernel": jnp.array([[1.0, 2.0]])}}
    states, updates = [optimizer.init(params), expected.init(params)], [None, None]
    for value in (1.0, -0.2, 0.1):
        grads = {"head": {"kernel": jnp.array([[value, 3 * value]])}}
        for i, one in enumerate((optimizer, expected)):
            updates[i], states[i] = one.update(grads, states[i], params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *updates)


def test_settings_of_muon():
    """Two steps of a kernel in a block, as in Jordan et al. 2024 and Liu et al. 2025."""
    keys = dict(name="muon", muon_momentum=0.6, muon_rms=0.5, muon_iterations=2)
    optimizer = optim.make_optimizer(config(weight_decay=0.0, **keys), lambda step: 0.1)
    grads = np.random.default_rng(0).normal(size=(2, 4, 3))
    params = {"layer1_0": {"conv1": {"kernel": jnp.zeros((1, 1, 4, 3))}}}
    state = optimizer.init(params)
    for grad in grads:
        tree = {"layer1_0": {"conv1": {"kernel": jnp.asarray(grad[None, None], jnp.float32)}}}
        updates, state = optimizer.update(tree, state, params)
    average = 0.6 * 0.4 * grads[0] + 0.4 * grads[1]
    x = (0.6 * average + 0.4 * grads[1]).T  # Nesterov; as many rows as columns, or fewer
    x = x / np.linalg.norm(x)
    for _ in range(2):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    expected = -0.1 * 0.5 * 2 * x.T  # sqrt(max(4, 3)) = 2
    np.testing.assert_allclose(updates["layer1_0"]["conv1"]["kernel"][0, 0], expected, rtol=1e-4)


def _flat(tree):
    return settings.flatten(tree)


def _like(tree, flat, prefix=""):
    return {
        key: _like(value, flat, f"{prefix}{key}.")
        if isinstance(value, dict)
        else flat[prefix + key]
        for key, value in tree.items()
    }


PLATEAU_LOSSES = (
    *(1.0, 0.9, 0.95, 0.89995, 0.91, 0.85, 0.86, 0.87, 0.88, 0.89, 0.9, 0.5),
    *[0.6] * 10,
)


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        (
            {"decay_factor": 0.1, "plateau_patience": 2, "end_learning_rate": 1e-4},
            [0.1] * 4 + [0.01] * 4 + [0.001] * 6 + [0.0001] * 8,
        ),
        (
            {"decay_factor": 0.5, "plateau_patience": 1, "plateau_cooldown": 2},
            [0.1] * 3 + [0.05] * 4 + [0.025] * 6 + [0.0125] * 4 + [0.00625] * 4 + [0.003125],
        ),
        (
            {
                **{"decay_factor": 0.3, "plateau_patience": 0, "plateau_cooldown": 1},
                **{"plateau_threshold": 0.05, "end_learning_rate": 0.02},
            },
            [0.1] * 2 + [0.03] * 2 + [0.02] * 18,
        ),
    ],
)
def test_plateau_lowers_the_learning_rate_as_in_pytorch(overrides, rates):
    """Learning rates of torch.optim.lr_scheduler.ReduceLROnPlateau (2.13) after each loss."""
    plateau = optim.make_plateau(
        config(schedule="reduce_on_plateau", learning_rate=0.1, **overrides)
    )
    state, found = plateau.init(), []
    for loss in PLATEAU_LOSSES:
        state = plateau.update(state, loss)
        found.append(0.1 * float(state.scale))
    np.testing.assert_allclose(found, rates, rtol=1e-5)
    assert optim.make_plateau(config(schedule="constant")) is None


def small_vit():
    model = models.build(
        settings.get_config().model.to_dict()
        | dict(patch_size=4, hidden_size=16, depth=2, num_heads=2, mlp_dim=24),
        num_classes=3,
    )
    return model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]


def test_muon_updates_kernels_of_the_blocks_and_adamw_the_rest():
    params, rate = small_vit(), 0.01
    grads = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape) * 1e-3, params
    )
    found = {}
    for name in ("muon", "adamw"):
        optimizer = optim.make_optimizer(config(name=name), lambda step: rate)
        found[name], _ = optimizer.update(grads, optimizer.init(params), params)
    kernels = 0
    for path, update in jax.tree.leaves_with_path(found["muon"]):
        name = optim.path_of(path)
        same = functools.reduce(lambda tree, key: tree[key.key], path, found["adamw"])
        if not ("encoderblock" in name and name.endswith("kernel")):
            np.testing.assert_array_equal(update, same, err_msg=name)
            continue
        kernels += 1
        inputs = 1 if name.split("/")[-2] in ("query", "key", "value") else update.ndim - 1
        matrix = np.asarray(update).reshape(int(np.prod(update.shape[:inputs])), -1)
        # Without the learning rate and the scaling to a constant RMS.
        singular = np.linalg.svd(matrix / rate / 0.2 / max(matrix.shape) ** 0.5)[1]
        assert 0.5 < singular.min() and singular.max() < 1.5, (name, singular)
    assert kernels == 2 * 6


@pytest.mark.parametrize("name", ["encoderblock_1", "head"])  # the head has no kernel of a block
def test_muon_on_several_devices_and_with_frozen_parameters(name):
    params = small_vit()
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    mesh = sharding.make_mesh()
    trained = {optim.path_of(path) for path, _ in jax.tree.leaves_with_path(params)}
    trained = {path for path in trained if name in path}
    found = []
    for devices in (None, mesh):
        optimizer = optim.make_optimizer(config(name="muon"), lambda step: 0.1, trained, devices)
        found.append(jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)
    moved = {optim.path_of(p) for p, x in jax.tree.leaves_with_path(found[0]) if np.any(x)}
    assert moved == trained


def test_muon_flattens_convolutions_to_matrices():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))
    params = {"layer1_0": {"conv1": {"kernel": kernel}}}
    optimizer = optim.make_optimizer(config(name="muon"), lambda step: 1.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    matrix = updates["layer1_0"]["conv1"]["kernel"].reshape(36, 8)
    singular = np.linalg.svd(matrix / 0.2 / 6)[1]
    assert 0.5 < singular.min() and singular.max() < 1.5


def test_muon_decay_is_decoupled():
    kernel = jnp.eye(4)
    params = {"layer1_0": {"conv1": {"kernel": kernel[None, None] * 2.0}}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = optim.make_optimizer(config(name="muon", weight_decay=0.1), lambda step: 0.01)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(
        updates["layer1_0"]["conv1"]["kernel"][0, 0], -0.01 * 0.1 * 2.0 * kernel, atol=1e-8
    )


def test_the_first_update_of_lion_is_the_sign_of_the_gradient():
    optimizer = optim.make_optimizer(config(name="lion"), lambda step: 0.1)
    grads = {"kernel": jnp.array([0.3, -20.0, 0.0])}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(updates["kernel"], [-0.1, 0.1, 0.0], rtol=1e-6)


def test_schedule_free_weights_are_those_of_the_recursion():
    """The average x and the iterates y and z, against the formulas and against optax."""
    rates, b1, b2 = [0.05, 0.1, 0.1, 0.1], 0.8, 0.9

    def schedule(step):
        return jnp.asarray(rates)[jnp.minimum(step, 3)]

    keys = dict(name="schedule_free_adamw", schedule="constant", b1=b1, b2=b2)
    optimizer = optim.make_optimizer(config(**keys), schedule)
    theirs = contrib.schedule_free_adamw(schedule, b1=b1, b2=b2)
    y = other = {"kernel": jnp.array([1.0, -2.0, 0.5])}
    state, their_state = optimizer.init(y), theirs.init(y)
    x = z = by_hand = np.array(y["kernel"])
    nu, weights = 0.0, []
    for step in range(4):
        grads = jax.tree.map(jnp.sin, y)
        updates, state = optimizer.update(grads, state, y)
        y = optax.apply_updates(y, updates)
        updates, their_state = theirs.update(grads, their_state, other)
        other = optax.apply_updates(other, updates)
        g = np.sin(by_hand)
        nu = b2 * nu + (1 - b2) * g**2
        z = z - rates[step] * g / (np.sqrt(nu / (1 - b2 ** (step + 1))) + 1e-8)
        weights.append(rates[min(step + 1, 3)] ** 2)  # optax counts the steps of weights from 1
        x = x + (z - x) * weights[-1] / sum(weights)
        by_hand = b1 * x + (1 - b1) * z
        averaged = optim.averaged_params(config(**keys), state, y)["kernel"]
        np.testing.assert_allclose(averaged, x, rtol=1e-5)
        expected = contrib.schedule_free_eval_params(their_state, other)["kernel"]
        np.testing.assert_allclose(averaged, expected, rtol=1e-6)
        np.testing.assert_allclose(y["kernel"], by_hand, rtol=1e-5)
    assert np.abs(x - by_hand).min() > 1e-3


def test_schedule_free_state_is_that_of_trained_parameters():
    params = small_vit()
    free = config(name="schedule_free_adamw")
    optimizer = optim.make_optimizer(free, lambda step: 0.1, ["head/kernel"])
    state = optimizer.init(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert shapes == [(16, 3)] * 2  # z and the second moment
    updates, state = optimizer.update(params, state, params)
    averaged = optim.averaged_params(free, state, optax.apply_updates(params, updates))
    np.testing.assert_array_equal(averaged["embedding"]["kernel"], params["embedding"]["kernel"])
