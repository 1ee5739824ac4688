"""Model parts have exact sizes and follow their definitions; what cannot go together is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config as settings
from vit_jax import models
from vit_jax.config.rules import validate
from vit_jax.explanation import attribution
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
    keys = {
        key if "." in key else f"model.{key}": value
        for key, value in (DIMENSIONS | options).items()
    }
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
    (dict(qk_norm=True), DEPTH * 2 * 2 * D // HEADS),
    (dict(qk_norm=True, norm="rms", attention="differential"), None),
    (dict(num_registers=4, pool="mean"), 4 * D - D - D),  # neither a class token nor its position
    (dict(head_dim=3), -DEPTH * (4 * D + 3) * (D - HEADS * 3)),
    (dict(head_dim=6, attention="differential"), None),
    (dict(attention="lsa"), DEPTH * HEADS),
    (dict(patchify="spt"), 4 * 48 * D + 2 * 5 * 48),
    (dict(patchify="conv_stem"), 9 * 3 * 64 + 9 * 64 * D - 48 * D - D),
    (dict(patch_drop_rate=0.5), 0),
    (dict(pool="cls_mean"), D * CLASSES),
    (dict(pool="seq"), D + 1 - 2 * D),
    (dict(pool="max"), -2 * D),
    (dict(pool="avgmax"), -2 * D),
    (dict(pool="mean", fc_norm=True), -2 * D),
    (dict(pool="mean", class_token=True), 0),
    (dict(pool="cls_dist", num_registers=1), D + D * CLASSES),
    (dict(pool="map"), D + 4 * D * (D + 1) + NORM + 2 * D * MLP + MLP + D - 2 * D),
]


@pytest.mark.parametrize(("options", "expected"), SIZES, ids=str)
def test_parts_add_exactly_their_parameters_and_have_finite_gradients(options, expected):
    assert expected is None or added(**options) == expected
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


def softmax(scores):
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def attention_inputs(params, seen, name="MultiHeadDotProductAttention_0"):
    """Compute the queries, keys and values [b, h, n, k] of the first block, and its attention."""
    x, norm, attention = np.asarray(seen["tokens"][0]), block(params)["LayerNorm_0"], seen
    z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    z, layer = z * norm["scale"] + norm["bias"], block(params)[name]
    heads = [
        np.einsum("bnd,dhk->bhnk", z, layer[n]["kernel"]) + layer[n]["bias"][:, None]
        for n in ("query", "key", "value")
    ]
    return *heads, np.asarray(attention["attention"][0])


def test_qk_norm_by_hand():
    model, params = build(qk_norm=True, norm_eps=1e-6)
    _, seen = model.apply({"params": params}, IMAGES, capture=True)
    query, key, _, found = attention_inputs(params, seen)
    layer = block(params)["MultiHeadDotProductAttention_0"]

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p["scale"] + p["bias"]

    scores = norm(query, layer["query_norm"]) @ norm(key, layer["key_norm"]).swapaxes(-1, -2)
    np.testing.assert_allclose(found, softmax(scores / np.sqrt(D // HEADS)), atol=1e-4)


def test_lsa_masks_the_own_token_and_learns_its_scale():
    model, params = build(attention="lsa")
    initial = model.init(jax.random.key(0), IMAGES)["params"]
    layer = "LocalitySelfAttention_0"
    scale = np.full(HEADS, (D // HEADS) ** -0.5, np.float32)
    np.testing.assert_array_equal(block(initial)[layer]["scale"], scale)
    _, seen = model.apply({"params": params}, IMAGES, capture=True)
    query, key, _, found = attention_inputs(params, seen, layer)
    scores = query @ key.swapaxes(-1, -2) * np.asarray(block(params)[layer]["scale"])[:, None, None]
    scores[..., range(7), range(7)] = -np.inf
    np.testing.assert_allclose(found, softmax(scores), atol=1e-4)
    np.testing.assert_array_equal(np.einsum("bhnn->bhn", found), 0)
    one = dict(patch_size=32, pool="mean", attention="lsa")
    assert "needs at least two tokens" in refused(**one)


def test_registers_follow_the_class_token_and_leave_before_the_head():
    model, params = build(num_registers=3)
    logits, seen = model.apply({"params": params}, IMAGES, capture=True)
    tokens, registers = seen["tokens"][0], params["Transformer"]["registers"]
    np.testing.assert_array_equal(tokens[:, 1:4], np.tile(registers, (3, 1, 1)))
    without = params | {"Transformer": dict(params["Transformer"])}
    del without["Transformer"]["registers"]
    plain, inside = build()[0].apply({"params": without}, IMAGES, capture=True)
    np.testing.assert_array_equal(inside["tokens"][0], np.delete(tokens, [1, 2, 3], 1))
    assert not np.allclose(plain, logits, atol=1e-3)
    mean, params = build(num_registers=3, pool="mean")
    _, seen = mean.apply({"params": params}, IMAGES, capture=True)
    x, norm = np.asarray(seen["tokens"][-1])[:, 3:], params["Transformer"]["encoder_norm"]
    z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = (z * norm["scale"] + norm["bias"]).mean(1)
    np.testing.assert_allclose(seen["features"], expected, atol=1e-4)
    assert "model.num_registers=3" in refused(num_registers=3, pos_embed="relative_bias")


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_explanations_leave_registers_out(pool):
    """Registers that no token attends to change no map of a patch."""
    first, rng = int(pool == "cls"), np.random.default_rng(2)
    small = softmax(rng.normal(size=(3, 2, 2, 6 + first, 6 + first)))
    large = small
    for axis in (3, 4):
        large = np.insert(large, [first] * 2, 0.0, axis)
    large[:, :, :, range(first, first + 2), range(first, first + 2)] = 1.0
    for name in ("rollout", "last layer"):
        maps = [
            attribution.explanation(name, list(a), [], (2, 3), bool(first), n)
            for a, n in ((small, 0), (large, 2))
        ]
        np.testing.assert_allclose(*maps, atol=1e-6)
    distances = [
        attribution.mean_attention_distance(list(a), (2, 3), 4, bool(first), n)
        for a, n in ((small, 0), (large, 2))
    ]
    np.testing.assert_allclose(*distances, rtol=1e-5)


def test_lambdas_of_differential_attention_are_found_next_to_registers():
    _, params = build(num_registers=1, attention="differential")
    assert set(models.differential_lambdas(params)) == {"encoderblock_0", "encoderblock_1"}
    assert models.differential_lambdas(build(num_registers=1)[1]) == {}


def test_head_width_is_free():
    assert "set model.head_dim" in refused(hidden_size=18, num_heads=4)
    assert "head_dim=3 must be even" in refused(head_dim=3, attention="differential")
    assert "model.head_dim=6" in refused(head_dim=6, pos_embed="rope_2d")
    assert "init=mimetic" in refused(head_dim=6, init="mimetic")
    _, params = build(head_dim=3)
    layer = block(params)["MultiHeadDotProductAttention_0"]
    shapes = {name: layer[name]["kernel"].shape for name in ("query", "value", "out")}
    assert shapes == {"query": (D, HEADS, 3), "value": (D, HEADS, 3), "out": (HEADS, 3, D)}


def test_shifted_patches_equal_a_loop():
    model, params = build(patchify="spt", depth=1)
    tokens = model.apply({"params": params}, IMAGES, capture=True)[1]["tokens"][0]
    p, norm = 4, params["embedding_norm"]
    for image, found in zip(IMAGES, np.asarray(tokens)[:, 1:], strict=True):
        height, width, channels = image.shape
        for index in range(len(found)):
            top, left = p * (index // (width // p)), p * (index % (width // p))
            patch = np.zeros((p, p, 5, channels))
            for y in range(p):
                for x in range(p):
                    for copy, (down, right) in enumerate(
                        [(0, 0), (-2, -2), (-2, 2), (2, -2), (2, 2)]
                    ):
                        row, column = top + y - down, left + x - right
                        if 0 <= row < height and 0 <= column < width:
                            patch[y, x, copy] = image[row, column]
            flat = patch.reshape(-1)
            flat = (flat - flat.mean()) / np.sqrt(flat.var() + 1e-6)
            flat = flat * norm["scale"] + norm["bias"]
            token = flat @ params["embedding"]["kernel"].reshape(-1, D)
            token += params["embedding"]["bias"]
            token += params["Transformer"]["posembed_input"]["pos_embedding"][0, 1 + index]
            np.testing.assert_allclose(found[index], token, atol=1e-4)
    assert "model.patchify=spt" in refused(patchify="spt", patch_size=1)


def test_conv_stem_by_hand():
    model, params = build(patchify="conv_stem", patch_size=2, pool="mean", pos_embed="none")
    tokens = model.apply({"params": params}, IMAGES, capture=True)[1]["tokens"][0]
    kernel = params["embedding"]["conv_0"]["kernel"]
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
    maps = sum(
        padded[:, y : y + 8, x : x + 12] @ kernel[y, x] for y in range(3) for x in range(3)
    ).clip(0)
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))  # 0 is the least value
    pooled = [padded[:, y : y + 8 : 2, x : x + 12 : 2] for y in range(3) for x in range(3)]
    np.testing.assert_allclose(tokens, np.max(pooled, 0).reshape(3, 24, D), atol=1e-4)
    assert "patch_size=6" in refused(patchify="conv_stem", patch_size=6, **{"data.image_size": 12})


def test_patch_dropout_keeps_as_many_random_patches_of_each_image():
    model, params = build(patch_drop_rate=0.5, num_registers=1)

    def tokens(seed, **options):
        keys = jax.random.split(jax.random.key(seed), len(IMAGES))
        apply = model.apply({"params": params}, IMAGES, capture=True, keys=keys, **options)
        return np.asarray(apply[1]["tokens"][0])

    every, some = tokens(0), tokens(0, train=True)  # off in evaluation
    assert every.shape == (3, 2 + 6, D) and some.shape == (3, 2 + 3, D)
    np.testing.assert_array_equal(some[:, :2], every[:, :2])
    kept = [
        [int(np.abs(e - t).sum(-1).argmin()) for t in s] for s, e in zip(some, every, strict=True)
    ]
    assert all(len(set(places)) == 5 for places in kept) and kept[0] != kept[1]
    for image, places in enumerate(kept):
        np.testing.assert_array_equal(some[image], every[image, places])
    np.testing.assert_array_equal(some, tokens(0, train=True))
    assert not np.array_equal(some, tokens(1, train=True))
    assert "patch_drop_rate=0.5" in refused(patch_drop_rate=0.5, pos_embed="rope_2d")


def pooled(**options):
    """Return parameters, the tokens that are pooled, and the features of the pooling."""
    model, params = build(num_registers=2, **options)
    _, seen = model.apply({"params": params}, IMAGES, capture=True)
    x, norm = np.asarray(seen["tokens"][-1]), params["Transformer"]["encoder_norm"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return params, x * norm["scale"] + norm["bias"], np.asarray(seen["features"])


def test_class_token_and_mean_are_concatenated():
    _, x, features = pooled(pool="cls_mean")
    np.testing.assert_allclose(features, np.concatenate([x[:, 0], x[:, 3:].mean(1)], 1), atol=1e-4)


def test_sequence_pooling_by_hand():
    params, x, features = pooled(pool="seq")
    layer, x = params["sequence_pool"], x[:, 2:]
    weights = softmax((x @ layer["kernel"] + layer["bias"])[..., 0])
    np.testing.assert_allclose(features, np.einsum("bn,bnd->bd", weights, x), atol=1e-4)


def test_attention_pooling_by_hand():
    params, x, features = pooled(pool="map")
    head, x = params["MAPHead_0"], x[:, 2:]
    layer = head["MultiHeadDotProductAttention_0"]
    query, key, value = (
        np.einsum("bnd,dhk->bhnk", z, layer[name]["kernel"]) + layer[name]["bias"][:, None]
        for name, z in (("query", head["probe"]), ("key", x), ("value", x))
    )
    weights = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(D // HEADS))
    y = np.einsum("bhnk,hkd->bd", weights @ value, layer["out"]["kernel"]) + layer["out"]["bias"]
    norm, mlp = head["LayerNorm_0"], head["MlpBlock_0"]
    z = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    z = (z * norm["scale"] + norm["bias"]) @ mlp["Dense_0"]["kernel"] + mlp["Dense_0"]["bias"]
    z = np.asarray(layers.gelu(z, "tanh")) @ mlp["Dense_1"]["kernel"] + mlp["Dense_1"]["bias"]
    np.testing.assert_allclose(features, y + z, atol=2e-4)


def test_optimizers_place_the_parameters_of_parts():
    parts = dict(mlp="swiglu", pre_norm=True, layer_scale_init=0.1, num_registers=2, qk_norm=True)
    _, params = build(**parts)
    paths = [optim.path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    depths = optim.block_depths(paths)
    assert depths["Transformer/pre_norm/scale"] == depths["Transformer/registers"] == 0
    assert depths["Transformer/encoderblock_1/layer_scale_0"] == 2
    labels = optim.muon_labels(params)
    assert block(labels)["MlpBlock_0"]["gate"] == {"kernel": "muon", "bias": "adamw"}
    assert block(labels)["layer_scale_0"] == "adamw"
    attention = block(labels)["MultiHeadDotProductAttention_0"]
    assert set(attention["query_norm"].values()) == {"adamw"}
    assert not block(optim.decay_mask(params))["layer_scale_0"]
