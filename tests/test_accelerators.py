"""Programs lowered for GPUs and TPUs, on a machine without one."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from tiny_configs import make_config
from tiny_steps import make_steps

from vit_jax.data import load_data
from vit_jax.evaluation.metrics import Sums
from vit_jax.models.layers import Dropout, build_norm, dense, gelu
from vit_jax.runtime import sharding
from vit_jax.training.compiled import lower_train

OPERANDS = re.compile(r"stablehlo\.(?:dot_general|convolution).*: \((\S+), (\S+)\) ->")


@pytest.mark.parametrize(
    "model",
    [
        {"model__name": "resnet18"},
        {"model__pos_embed": "relative_bias", "model__dropout_rate": 0.1},
        {"model__attention": "differential", "model__pos_embed": "rope_2d"},
    ],
    ids=lambda model: "-".join(map(str, model.values())),
)
def test_all_products_except_those_of_the_head_are_bfloat16(model, monkeypatch):
    """A float32 product would run at a fraction of the speed."""
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    config = make_config(augment__kind="strong", **model)
    data = load_data(config.data, mesh)
    batch = next(data.train.train(0, 0, 1, config.train.batch_size))
    monkeypatch.setattr(sharding, "on_cpu", lambda mesh: False)
    steps = make_steps(config, data, mesh)
    state = steps.shapes
    train = steps.train.trace(state, jax.random.key(0), batch)
    evaluation = steps.eval_step.trace(state.eval_variables, Sums.empty(), batch)
    # The head has three products in training and one in evaluation.
    for call, platform, heads in ((train, "cuda", 3), (train, "tpu", 3), (evaluation, "cuda", 1)):
        text = call.lower(lowering_platforms=(platform,)).as_text()
        products = OPERANDS.findall(text)
        wide = [pair for pair in products if "bf16" not in "".join(pair)]
        assert len(products) > 5 and len(wide) == heads
        assert all(any("x10xf32>" in operand for operand in pair) for pair in wide)


def test_dropout_draws_no_narrow_words():
    """TPUs pad a bitcast to 16 bits to 128 lanes, which took ten times as long as the rest."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    x = jax.ShapeDtypeStruct((4, 5, 32), jnp.bfloat16)
    draw = jax.jit(lambda x, keys: Dropout(0.1).apply({}, x, keys)).trace(x, keys)
    text = draw.lower(lowering_platforms=("tpu",)).as_text()
    assert "xbf16>" in text and "bitcast" not in text and "i16>" not in text


def test_gradients_of_dense_layers_are_summed_in_float32():
    x, kernel, bias = jnp.ones((4097, 1)), jnp.ones((1, 1)), jnp.zeros(1)

    def total(kernel, bias):
        return dense(x, kernel, bias, jnp.bfloat16).astype(jnp.float32).sum()

    for gradient in jax.grad(total, (0, 1))(kernel, bias):
        assert gradient.dtype == jnp.float32
        np.testing.assert_array_equal(gradient.reshape(-1), 4097)  # 4096 in bfloat16


def test_fsdp_gathers_weights_and_leaves_images_on_their_device():
    mesh = sharding.make_mesh(jax.devices()[:8])
    width = dict(model__hidden_size=128, model__mlp_dim=256, model__depth=1)
    config = make_config(
        sharding__fsdp=True, augment__kind="none", train__batch_size=16, **width
    )  # so few images that moving their features would be less work
    data = load_data(config.data, mesh)
    steps = make_steps(config, data, mesh)
    program = lower_train(steps, steps.train, len(data.train)).compile().as_text()
    assert " all-gather(" in program and " all-to-all(" not in program


def saved_bytes(gradient):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kind", ["tanh", "erf", "quick"])
def test_the_gradient_of_gelu_in_bfloat16_needs_only_its_input(kind):
    x = jnp.linspace(-6, 6, 4001).astype(jnp.bfloat16)
    y, gradient = jax.vjp(lambda x: gelu(x, kind), x)
    assert saved_bytes(gradient) == x.nbytes
    exact, exact_gradient = jax.vjp(lambda x: gelu(x, kind), x.astype(jnp.float32))
    (dx,), (exact_dx,) = gradient(jnp.ones_like(y)), exact_gradient(jnp.ones_like(exact))
    assert y.dtype == dx.dtype == jnp.bfloat16
    np.testing.assert_allclose(dx.astype(jnp.float32), exact_dx, rtol=2**-8, atol=1e-6)


def test_the_gradient_of_layer_norm_in_bfloat16_needs_only_its_input_and_statistics():
    keys = jax.random.split(jax.random.key(0), 4)
    x = (3 * jax.random.normal(keys[0], (5, 7, 256)) + 1).astype(jnp.bfloat16)
    dy = jax.random.normal(keys[1], x.shape).astype(jnp.bfloat16)
    params = {"scale": 1 + jax.random.normal(keys[2], (256,)), "bias": jnp.ones(256)}
    config = {"norm": "layer", "norm_eps": 1e-6}

    def apply(dtype, params, x):
        return build_norm(config, dtype).apply({"params": params}, x)

    y, gradient = jax.vjp(functools.partial(apply, jnp.bfloat16), params, x)
    statistics = 2 * 4 * x[..., 0].size
    assert saved_bytes(gradient) == x.nbytes + statistics + params["scale"].nbytes
    assert y.dtype == jnp.bfloat16
    exact, exact_gradient = jax.vjp(
        functools.partial(apply, jnp.float32), params, x.astype(jnp.float32)
    )
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
    (got, dx), (want, exact_dx) = gradient(dy), exact_gradient(dy.astype(jnp.float32))
    assert dx.dtype == jnp.bfloat16
    np.testing.assert_allclose(dx.astype(jnp.float32), exact_dx, rtol=2**-8, atol=1e-5)
    for name in params:  # sums over the tokens, in float32
        assert got[name].dtype == jnp.float32
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)


def test_layer_norm_in_float32_is_that_of_flax():
    x = jax.random.normal(jax.random.key(0), (5, 7, 16))
    ours = build_norm({"norm": "layer", "norm_eps": 1e-6}, jnp.float32)
    flax = nn.LayerNorm(epsilon=1e-6)
    variables = flax.init(jax.random.key(1), x)
    assert jax.tree.structure(ours.init(jax.random.key(1), x)) == jax.tree.structure(variables)
    np.testing.assert_array_equal(ours.apply(variables, x), flax.apply(variables, x))
