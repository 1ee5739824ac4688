"""Model parts have exact sizes and follow their definitions; what cannot go together is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config as settings
from vit_jax import models
from vit_jax.config.rules import validate
from vit_jax.models import layers
from vit_jax.runtime.errors import UserError
from vit_jax.training import optim

D, DEPTH, HEADS, MLP, CLASSES = 16, 2, 2, 24, 5
DIMENSIONS = dict(patch_size=4, hidden_size=D, depth=DEPTH, num_heads=HEADS, mlp_dim=MLP)
SMALL = settings.get_config().model.to_dict() | DIMENSIONS | dict(head_zero_init=False)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 12, 3)).astype(np.float32)


def shapes_of(**options):
    model = models.build(SMALL | options, CLASSES)
    return model, jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]


def build(**options):
    """Build a model and parameters that are random everywhere: initial zeros hide mistakes."""
    model, shapes = shapes_of(**options)
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda p: rng.normal(size=p.shape, scale=0.3).astype("f"), shapes)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def block(params, i=0):
    return params["Transformer"][f"encoderblock_{i}"]


def added(**options):
    """Count the parameters that options add."""
    return count(shapes_of(**options)[1]) - count(shapes_of()[1])


def refused(**options):
    keys = {f"model.{key}": value for key, value in (DIMENSIONS | options).items()}
    config = settings.with_overrides(settings.get_config(), keys | {"train.steps": 1}, "a test")
    with pytest.raises(UserError) as error:
        validate(settings.resolve(config))
    return str(error.value)


# {settings: parameters that they add}.
NORM, BLOCKS = 2 * D, 2 * DEPTH
SIZES = [
    (dict(layer_scale_init=1e-4), BLOCKS * D),
    (dict(norm="rms"), -(BLOCKS + 1) * D),
    (dict(mlp="swiglu"), DEPTH * (D + 1) * MLP),
    (dict(gelu="quick"), 0),
    (dict(pre_norm=True), NORM),
]


@pytest.mark.parametrize(("options", "expected"), SIZES, ids=str)
def test_parts_add_exactly_their_parameters_and_have_finite_gradients(options, expected):
    assert added(**options) == expected
    model, params = build(**options)
    keys = jax.random.split(jax.random.key(1), len(IMAGES))

    def loss(params):
        logits = model.apply({"params": params}, IMAGES, train=True, keys=keys)
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    gradients = jax.jit(jax.grad(loss))(params)
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        # The softmax ignores the bias of keys.
        assert optim.path_of(path).endswith("key/bias") or np.abs(gradient).max() > 0, path


def test_layer_scale_multiplies_both_branches():
    model, params = build(layer_scale_init=0.25)
    initial = model.init(jax.random.key(0), IMAGES)["params"]
    np.testing.assert_array_equal(block(initial)["layer_scale_1"], np.full(D, 0.25))
    # The factors moved into the last layer of each branch.
    blocks = {}
    for i in range(DEPTH):
        own = dict(block(params, i))
        first, second = own.pop("layer_scale_0"), own.pop("layer_scale_1")
        attention = own["MultiHeadDotProductAttention_0"]
        out = jax.tree.map(lambda x, f=first: x * f, attention["out"])
        own["MultiHeadDotProductAttention_0"] = attention | {"out": out}
        dense = jax.tree.map(lambda x, f=second: x * f, own["MlpBlock_0"]["Dense_1"])
        own["MlpBlock_0"] = own["MlpBlock_0"] | {"Dense_1": dense}
        blocks[f"encoderblock_{i}"] = own
    merged = params | {"Transformer": params["Transformer"] | blocks}
    np.testing.assert_allclose(
        model.apply({"params": params}, IMAGES),
        shapes_of()[0].apply({"params": merged}, IMAGES),
        atol=1e-4,
    )


def test_rms_norm_by_hand():
    norm = layers.build_norm(SMALL | {"norm": "rms", "norm_eps": 0.5}, jnp.float32)
    x = RNG.normal(size=(4, D)).astype(np.float32)
    scale = RNG.normal(size=D).astype(np.float32)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.5) * scale
    np.testing.assert_allclose(norm.apply({"params": {"scale": scale}}, x), expected, rtol=1e-5)


def test_swiglu_by_hand():
    model, params = build(mlp="swiglu", depth=1)
    mlp = block(params)["MlpBlock_0"]
    block(params)["MultiHeadDotProductAttention_0"]["out"] = jax.tree.map(
        jnp.zeros_like, block(params)["MultiHeadDotProductAttention_0"]["out"]
    )
    _, seen = model.apply({"params": params}, IMAGES, capture=True)
    x, y = (np.asarray(tokens) for tokens in seen["tokens"])
    norm = block(params)["LayerNorm_1"]
    z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    z = z * norm["scale"] + norm["bias"]
    gate, hidden = (z @ mlp[name]["kernel"] + mlp[name]["bias"] for name in ("gate", "Dense_0"))
    expected = gate / (1 + np.exp(-gate)) * hidden @ mlp["Dense_1"]["kernel"]
    np.testing.assert_allclose(y - x, expected + mlp["Dense_1"]["bias"], atol=1e-4)
    assert "gelu=erf" in refused(mlp="swiglu", gelu="erf")


def test_quick_gelu_by_hand():
    x = np.linspace(-4, 4, 9, dtype=np.float32)
    np.testing.assert_allclose(layers.gelu(x, "quick"), x / (1 + np.exp(-1.702 * x)), rtol=1e-5)


def test_pre_norm_normalises_the_tokens_before_the_blocks():
    model, params = build(pre_norm=True)
    tokens = model.apply({"params": params}, IMAGES, capture=True)[1]["tokens"][0]
    norm = params["Transformer"]["pre_norm"]
    tokens = (tokens - norm["bias"]) / norm["scale"]
    np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-3)
    np.testing.assert_allclose(tokens.std(-1), 1, atol=1e-2)


def test_optimizers_place_the_parameters_of_parts():
    _, params = build(mlp="swiglu", pre_norm=True, layer_scale_init=0.1)
    paths = [optim.path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    depths = optim.block_depths(paths)
    assert depths["Transformer/pre_norm/scale"] == 0
    assert depths["Transformer/encoderblock_1/layer_scale_0"] == 2
    labels = optim._muon_labels(params)
    assert block(labels)["MlpBlock_0"]["gate"] == {"kernel": "muon", "bias": "adamw"}
    assert block(labels)["layer_scale_0"] == "adamw"
    assert not block(optim.decay_mask(params))["layer_scale_0"]
