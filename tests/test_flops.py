"""FLOPs of training: exact for known layers, and runs of one budget."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from tiny_configs import make_config

from vit_jax.data import load_data
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.sharding import make_mesh
from vit_jax.training.flops import count_flops, model_flops
from vit_jax.training.setup import make_setup

IMAGE = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32)


@pytest.fixture(scope="module")
def digits():
    mesh = make_mesh()
    return load_data(make_config().data, mesh), mesh


def gradient_flops(module, image, trained=True):
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    marks = jax.tree.map(lambda _: trained, variables)
    return count_flops(module.apply, (variables, image), (marks, False))


def flops_of(setup, trained=None):
    return model_flops(setup.config, 10, setup.trained if trained is None else trained)


def test_dense_layers_are_exact():
    """The first layer's gradient has no product for the images, the second one's has."""
    x = jax.ShapeDtypeStruct((7, 5), jnp.float32)
    first, second = 2 * 7 * 5 * 11, 2 * 7 * 11 * 3
    module = nn.Sequential([nn.Dense(11), nn.relu, nn.Dense(3)])
    assert gradient_flops(nn.Dense(11), x) == 2 * first
    assert gradient_flops(module, x) == 2 * first + 3 * second
    assert gradient_flops(module, x, trained=False) == first + second
    if jax.default_backend() == "cpu":  # XLA counts the additions too
        kernel = jax.ShapeDtypeStruct((5, 11), jnp.float32)
        lowered = jax.jit(jnp.matmul).lower(x, kernel)
        assert lowered.cost_analysis()["flops"] == first


def test_convolutions_and_loops_are_exact():
    conv = nn.Conv(8, (3, 3), strides=2)
    assert gradient_flops(conv, IMAGE) == 2 * 2 * 4 * 8 * 8 * 8 * 3 * 3 * 3

    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=6)[0]

    square = jax.ShapeDtypeStruct((5, 5), jnp.float32)
    assert count_flops(loop, (square,)) == 6 * 2 * 5**3
    assert count_flops(jax.checkpoint(loop), (square,), (True,)) == 3 * 6 * 2 * 5**3


def test_a_small_vit_agrees_with_a_count_by_hand(digits):
    """Tokens 16 + 1, width 16, two blocks with an MLP of 32, on patches of 2 x 2 grey pixels."""
    config = make_config(model__patch_size=2, model__depth=2)
    setup = make_setup(config, *digits)
    n, d, mlp = 17, 16, 32
    block = n * (4 * d * d + 2 * d * mlp) + 2 * n * n * d
    embedding, head = 16 * 4 * d, d * 10
    forward = 2 * (embedding + 2 * block + head)
    assert flops_of(setup, ()) == pytest.approx(forward, rel=0.02)
    assert flops_of(setup) == pytest.approx(3 * forward - 2 * embedding, rel=0.02)
    assert setup.flops.step == 128 * flops_of(setup)


def test_frozen_blocks_have_no_backward_pass(digits):
    keys = dict(augment__kind="none", model__depth=2)
    head = make_setup(make_config(freeze="head", train__cache_features=False, **keys), *digits)
    forward = flops_of(head, ())
    products = 2 * 16 * 10
    assert flops_of(head) == forward + products
    cached = make_setup(make_config(freeze="head", **keys), *digits)
    assert cached.on_features and cached.flops.step == 128 * 2 * products
    assert cached.flops.features == (forward - products) * 128 * cached.lengths.epoch


def test_muon_adds_its_products(digits):
    plain, muon = (make_setup(make_config(optim__name=n), *digits) for n in ("adamw", "muon"))
    d, mlp = 16, 32
    per_iteration = 4 * 3 * 2 * d**3  # query, key, value, out
    per_iteration += 2 * (2 * d * d * mlp + 2 * d**3 + 2 * d * d * mlp)  # the MLP, by its side d
    assert muon.flops.step - plain.flops.step == 5 * per_iteration


def test_models_of_one_budget_end_within_a_step_of_it(digits):
    budget = 2e-6  # PFLOP
    for patch, batch in ((2, 128), (4, 32)):
        keys = dict(train__epochs=0.0, train__budget_pflop=budget, train__batch_size=batch)
        keys |= dict(model__patch_size=patch, optim__warmup_epochs=0.0, optim__warmup_percent=10.0)
        setup = make_setup(make_config(**keys), *digits)
        steps, each = setup.lengths.total, setup.flops.step
        assert 0 <= budget * 1e15 - steps * each < each
        assert setup.lengths.warmup == max(1, round(steps / 10))
    with pytest.raises(UserError, match="budget_pflop=1e-12 is less than a step"):
        small = make_config(train__epochs=0.0, train__budget_pflop=1e-12)
        make_setup(small, *digits)
    with pytest.raises(UserError, match="train.budget_pflop=2147483646.0 are .* steps, more than"):
        make_setup(make_config(train__epochs=0.0, train__budget_pflop=2147483646.0), *digits)
    with pytest.raises(UserError, match="train.epochs=1.0 and train.budget_pflop=1.0 contradict"):
        make_config(train__budget_pflop=1.0)
