"""The models have the published sizes, names and arithmetic."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config as settings
from vit_jax import models
from vit_jax.config.schema import SCHEMA
from vit_jax.models.vit import PositionEmbedding, sincos_2d, sinusoidal_1d

SMALL = settings.get_config().model.to_dict() | dict(
    patch_size=4, hidden_size=16, depth=2, num_heads=2, mlp_dim=24
)
KEY = jax.random.key(1)
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 12, 3)).astype(np.float32)


def init(**options):
    model = models.build(SMALL | options, num_classes=5)
    return model, model.init(jax.random.key(0), IMAGES)["params"]


def count(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("Ti/16", 5_717_416),
        ("S/16", 22_050_664),
        ("B/16", 86_567_656),
        ("L/16", 304_326_632),
        ("B/32", 88_224_232),
        ("M/16", 38_837_736),
        ("H/14", 632_045_800),
        ("g/14", 1_012_611_432),
        ("So400m/14", 413_597_656),
    ],
)
def test_parameter_count(size, expected):
    config = settings.with_overrides(settings.get_config(), {"model.size": size}, "a test")
    model = models.build(settings.resolve(config).model, num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert count(jax.eval_shape(model.init, jax.random.key(0), images)) == expected


def test_parameter_names_are_the_official_ones():
    _, params = init(representation_size=7)
    names = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(params)
        if "encoderblock_1" not in str(path)
    }
    block = "Transformer/encoderblock_0"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    expected = {
        "cls": (1, 1, 16),
        "embedding/kernel": (4, 4, 3, 16),
        "embedding/bias": (16,),
        "Transformer/posembed_input/pos_embedding": (1, 7, 16),
        f"{block}/LayerNorm_0/scale": (16,),
        f"{block}/LayerNorm_0/bias": (16,),
        f"{block}/LayerNorm_1/scale": (16,),
        f"{block}/LayerNorm_1/bias": (16,),
        f"{attention}/out/kernel": (2, 8, 16),
        f"{attention}/out/bias": (16,),
        f"{block}/MlpBlock_0/Dense_0/kernel": (16, 24),
        f"{block}/MlpBlock_0/Dense_0/bias": (24,),
        f"{block}/MlpBlock_0/Dense_1/kernel": (24, 16),
        f"{block}/MlpBlock_0/Dense_1/bias": (16,),
        "Transformer/encoder_norm/scale": (16,),
        "Transformer/encoder_norm/bias": (16,),
        "pre_logits/kernel": (16, 7),
        "pre_logits/bias": (7,),
        "head/kernel": (7, 5),
        "head/bias": (5,),
    }
    for name in ("query", "key", "value"):
        expected |= {f"{attention}/{name}/kernel": (16, 2, 8), f"{attention}/{name}/bias": (2, 8)}
    assert names == expected


def norm(x, p, eps=1e-6):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def reference(params, images):
    """The formulas of the ViT paper, section 3.1, in NumPy, one image at a time."""
    logits = []
    for image in images:
        kernel = params["embedding"]["kernel"].reshape(-1, 16)
        x = [
            image[i : i + 4, j : j + 4].reshape(-1) @ kernel + params["embedding"]["bias"]
            for i in range(0, 8, 4)
            for j in range(0, 12, 4)
        ]
        x = np.stack([params["cls"][0, 0], *x])
        x = x + params["Transformer"]["posembed_input"]["pos_embedding"][0]
        for i in range(2):
            p = params["Transformer"][f"encoderblock_{i}"]
            y, a, out = norm(x, p["LayerNorm_0"]), p["MultiHeadDotProductAttention_0"], 0
            for h in range(2):
                q, k, v = (
                    y @ a[n]["kernel"][:, h] + a[n]["bias"][h] for n in ("query", "key", "value")
                )
                scores = np.exp(q @ k.T / np.sqrt(8))
                weights = scores / scores.sum(-1, keepdims=True)
                out = out + weights @ v @ a["out"]["kernel"][h]
            x = x + out + a["out"]["bias"]
            y, m = norm(x, p["LayerNorm_1"]), p["MlpBlock_0"]
            y = y @ m["Dense_0"]["kernel"] + m["Dense_0"]["bias"]
            y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
            x = x + y @ m["Dense_1"]["kernel"] + m["Dense_1"]["bias"]
        x = norm(x, params["Transformer"]["encoder_norm"])
        logits.append(x[0] @ params["head"]["kernel"] + params["head"]["bias"])
    return np.stack(logits)


def randomized(params):
    """Randomise parameters, because initial values such as 0 hide mistakes."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + rng.normal(size=p.shape, scale=0.3).astype("f"), params)


def test_logits_follow_the_paper():
    model, params = init()
    params = randomized(params)
    found = model.apply({"params": params}, IMAGES)
    expected = reference(jax.tree.map(lambda p: np.asarray(p, np.float64), params), IMAGES)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("kind", SCHEMA["model.pos_embed"].choices)
def test_position_embeddings(kind, pool):
    model, params = init(pos_embed=kind, pool=pool)
    own = {"learned_1d": (6 + (pool == "cls")) * 16, "learned_2d": (2 + 3) * 16}
    assert count(params["Transformer"].get("posembed_input", {})) == own.get(kind, 0)
    params = randomized(params)
    # Without positions, a ViT is invariant to permutations of patches.
    swapped = np.concatenate([IMAGES[:, :, 4:8], IMAGES[:, :, :4], IMAGES[:, :, 8:]], 2)
    one, other = (model.apply({"params": params}, x) for x in (IMAGES, swapped))
    assert np.allclose(one, other, atol=1e-5) == (kind == "none")


def test_learned_2d_adds_row_and_column():
    layer = PositionEmbedding("learned_2d", grid=(2, 3), has_cls=True)
    tokens = jnp.zeros((1, 7, 4))
    params = layer.init(jax.random.key(0), tokens)["params"]
    table = layer.apply({"params": params}, tokens)[0]
    np.testing.assert_array_equal(table[0], 0)  # the class token has no position in the grid
    for row in range(2):
        for column in range(3):
            expected = params["row_embedding"][row] + params["column_embedding"][column]
            np.testing.assert_array_equal(table[1 + 3 * row + column], expected)


def test_drop_path_drops_whole_branches_and_rescales_the_rest():
    model, params = init(drop_path_rate=0.5)
    variables = {"params": randomized(params)}
    images = np.repeat(IMAGES[:1], 200, 0)
    _, seen = model.apply(
        variables,
        images,
        train=True,
        capture=True,
        keys=jax.random.split(jax.random.key(0), len(images)),
    )
    first, second, third = seen["tokens"]
    np.testing.assert_allclose(second, np.repeat(second[:1], 200, 0), atol=1e-6)  # rate 0
    attention_branch = {tuple(np.round(x, 3)) for x in np.asarray(third - second)[:, 0]}
    assert len(attention_branch) == 4  # the second block's two branches, each dropped or not
    assert tuple(np.zeros(16)) in attention_branch


def test_fixed_position_tables():
    table = sinusoidal_1d(5, 6)
    assert table[3, 2] == pytest.approx(np.sin(3 / 10000 ** (2 / 6)))
    assert table[3, 5] == pytest.approx(np.cos(3 / 10000 ** (4 / 6)))
    table = sincos_2d(2, 3, 8)  # width 8: two frequencies, 1 and 1/10000
    row, column = 1, 2
    expected = [f(w * p) for p in (column, row) for f in (np.sin, np.cos) for w in (1, 1e-4)]
    np.testing.assert_allclose(table[row * 3 + column], expected, rtol=1e-5)


def test_manual_patches_equal_the_convolution():
    model, params = init()
    manual, manual_params = init(patchify="manual")
    assert count(params) == count(manual_params)
    params = randomized(params)
    kernel = params["embedding"]["kernel"].reshape(-1, 16)
    same = params | {"embedding": params["embedding"] | {"kernel": kernel}}
    np.testing.assert_allclose(
        model.apply({"params": params}, IMAGES), manual.apply({"params": same}, IMAGES), atol=1e-4
    )


def test_capture_returns_intermediates_and_changes_nothing():
    model, params = init()
    params = randomized(params)
    logits, seen = model.apply({"params": params}, IMAGES, capture=True)
    np.testing.assert_array_equal(logits, model.apply({"params": params}, IMAGES))
    assert [a.shape for a in seen["attention"]] == [(3, 2, 7, 7)] * 2
    assert [t.shape for t in seen["tokens"]] == [(3, 7, 16)] * 3
    for attention in seen["attention"]:
        np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    head = params["head"]
    np.testing.assert_allclose(seen["features"] @ head["kernel"] + head["bias"], logits, atol=1e-4)


@pytest.mark.parametrize(("drop_path", "traced"), [(0.0, 1), (0.1, 3)])
def test_equal_blocks_are_traced_once(drop_path, traced):
    """Deep models trace quickly; blocks with another drop path rate are traced separately."""
    options = dict(mlp_dim=10 * traced)  # unlike the blocks of other tests, whose traces are cached
    model, params = init(depth=3, drop_path_rate=drop_path, dropout_rate=0.1, **options)
    seen = []

    def note(call, args, kwargs, context):
        seen.append(type(context.module).__name__)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        apply = functools.partial(model.apply, train=True, keys=jax.random.split(KEY, 3))
        jax.eval_shape(apply, {"params": params}, IMAGES)
    assert seen.count("EncoderBlock") == traced


def test_blocks_have_independent_parameters_and_dropout():
    """Neither parameters nor dropout masks are shared between blocks."""
    model, params = init(depth=2, dropout_rate=0.5)
    first, second = (params["Transformer"][f"encoderblock_{i}"] for i in range(2))
    for (path, one), other in zip(
        jax.tree.leaves_with_path(first), jax.tree.leaves(second), strict=True
    ):
        assert "kernel" not in str(path) or np.abs(one - other).max() > 0.1
    # With equal weights and zero attention output, blocks only add their MLP's dropped-out output.
    same = jax.tree.map(jnp.zeros_like, first)
    bias = 1.0 + jnp.arange(16.0)
    same["MlpBlock_0"]["Dense_1"]["bias"] = bias
    blocks = {f"encoderblock_{i}": same for i in range(2)}
    params = params | {"Transformer": params["Transformer"] | blocks}
    apply = functools.partial(model.apply, train=True, capture=True, keys=jax.random.split(KEY, 3))
    tokens = apply({"params": params}, IMAGES)[1]["tokens"]
    left = [np.asarray(tokens[i + 1] - tokens[i]) > 0.5 for i in range(2)]
    for mask in left:
        assert 0.4 < mask.mean() < 0.6
    assert 0.4 < (left[0] != left[1]).mean() < 0.6


def test_unused_intermediates_cost_nothing():
    """A jitted call that discards them compiles to the same operations as one without."""
    model, params = init()

    def flops(function):
        cost = jax.jit(function).lower(params, IMAGES).compile().cost_analysis()
        return cost["flops"]

    plain = flops(lambda p, x: model.apply({"params": p}, x))
    dropped = flops(lambda p, x: model.apply({"params": p}, x, capture=True)[0])
    assert dropped == plain


@pytest.mark.parametrize("rate", ["dropout_rate", "attention_dropout_rate", "drop_path_rate"])
def test_dropout_acts_in_training_only(rate):
    model, params = init(**{rate: 0.5})
    variables = {"params": randomized(params)}

    def train(seed):
        keys = jax.random.split(jax.random.key(seed), len(IMAGES))
        return model.apply(variables, IMAGES, train=True, keys=keys)

    np.testing.assert_array_equal(train(0), train(0))
    assert not np.allclose(train(0), train(1))
    plain = models.build(SMALL, num_classes=5)
    np.testing.assert_array_equal(model.apply(variables, IMAGES), plain.apply(variables, IMAGES))


def test_options_have_an_effect():
    _, params = init(qkv_bias=False)
    attention = params["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    assert "bias" not in attention["query"] and "bias" in attention["out"]
    model, params = init()
    variables = {"params": randomized(params)}
    logits = model.apply(variables, IMAGES)
    for option in ({"gelu": "erf"}, {"norm_eps": 1e-2}):
        other = models.build(SMALL | option, num_classes=5)
        assert not np.allclose(other.apply(variables, IMAGES), logits, atol=1e-6)
    low = models.build(SMALL, num_classes=5, dtype=jnp.bfloat16)
    found = low.apply(variables, IMAGES)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, logits, atol=0.3)
    assert {leaf.dtype for leaf in jax.tree.leaves(low.init(jax.random.key(0), IMAGES))} == {
        np.dtype("float32")
    }


def test_gradients_of_scales_are_summed_in_float32():
    """A sum of thousands of terms in bfloat16 stagnates; its result has 8 bits."""
    options = SMALL | dict(attention="lsa", layer_scale_init=0.1)
    model = models.build(options, 5, jnp.bfloat16)
    variables = {"params": randomized(model.init(jax.random.key(0), IMAGES)["params"])}

    def loss(variables):
        return (model.apply(variables, IMAGES) ** 2).sum()

    block = jax.jit(jax.grad(loss))(variables)["params"]["Transformer"]["encoderblock_0"]
    for found in (block["LocalitySelfAttention_0"]["scale"], block["layer_scale_1"]):
        assert found.dtype == jnp.float32
        assert (found != found.astype(jnp.bfloat16)).any()


def test_differential_lambda_depends_on_the_layer():
    """The rows of block i's weights sum to 1 - lambda, whose initial value depends on i."""
    model, params = init(attention="differential")
    _, seen = model.apply({"params": params}, IMAGES, capture=True)
    strengths = models.differential_lambdas(params)
    assert len(strengths) == len(seen["attention"]) == 2
    for i, weights in enumerate(seen["attention"]):
        strength = strengths[f"encoderblock_{i}"]
        np.testing.assert_allclose(weights.sum(-1), 1 - strength, atol=1e-5)
        assert strength == pytest.approx(0.8 - 0.6 * np.exp(-0.3 * i), abs=0.25)
    assert models.differential_lambdas(init()[1]) == {}
