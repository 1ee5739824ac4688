"""Differential attention, rotary and relative positions agree with their papers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from vit_jax import models
from vit_jax.config import get_config
from vit_jax.models.attention import (
    Attention,
    fused_attention,
    relative_indices,
    rotary_angles,
    rotate,
)

RNG = np.random.default_rng(0)
GRID, B, D = (2, 3), 2, 16
PLAIN = get_config().model.to_dict() | dict(num_heads=2, hidden_size=16, pos_embed="none")
X = RNG.normal(size=(B, 7, D)).astype(np.float32)


def run(kind="softmax", params=None, block=0, **options):
    """Apply an attention layer to X; return output, weights and random parameters."""
    layer = Attention(FrozenDict(PLAIN | options, attention=kind), GRID, np.float32)
    if params is None:
        shapes = layer.init(jax.random.key(0), X, None, block, None)["params"]
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(np.float32), shapes)
    out, attended = layer.apply({"params": params}, X, None, block, None)
    return out, attended["attention"], params


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def differential_reference(p, layer):
    """The formulas of Ye et al. 2024, section 2.1, head by head, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    heads, width = 2, D // 4
    start = 0.8 - 0.6 * np.exp(-0.3 * layer)
    strength = (
        np.exp(p["lambda_query_1"] @ p["lambda_key_1"])
        - np.exp(p["lambda_query_2"] @ p["lambda_key_2"])
        + start
    )
    out = np.zeros((B, 7, D))
    all_weights = np.zeros((B, heads, 7, 7))
    for image, head in itertools.product(range(B), range(heads)):
        maps = []
        for index in (2 * head, 2 * head + 1):
            q, k = (
                X[image] @ p[n]["kernel"][:, index] + p[n]["bias"][index] for n in ("query", "key")
            )
            maps.append(softmax(q @ k.T / np.sqrt(width)))
        weights = maps[0] - strength * maps[1]
        all_weights[image, head] = weights
        y = weights @ (X[image] @ p["value"]["kernel"][:, head] + p["value"]["bias"][head])
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p["head_norm"]["scale"]
        out[image] += (1 - start) * y @ p["out"]["kernel"][head]
    return out + p["out"]["bias"], all_weights, strength


@pytest.mark.parametrize("layer", [0, 3])
def test_differential_attention_follows_the_formula(layer):
    out, weights, params = run("differential", block=layer)
    expected, expected_weights, strength = differential_reference(params, layer)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-5)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1 - strength, atol=1e-5)  # rows sum to 1 - lambda
    block = {"MultiHeadDifferentialAttention_0": params}
    logged = models.differential_lambdas({"Transformer": {f"encoderblock_{layer}": block}})
    assert logged[f"encoderblock_{layer}"] == pytest.approx(strength, abs=1e-5)


def test_differential_attention_without_its_second_map_is_softmax_attention():
    """With lambda 0, the weights are those of the first maps: queries and keys 0, 2, ..."""
    _, _, params = run("differential")
    start = 0.2
    q1, k1 = params["lambda_query_1"], params["lambda_key_1"]
    first = np.exp(q1 @ k1) + start  # then lambda = first - exp(q2 . k2)
    q2 = params["lambda_query_2"]
    params["lambda_key_2"] = (q2 * np.log(first) / (q2 @ q2)).astype(np.float32)
    _, weights, _ = run("differential", params)
    pick = {
        name: {leaf: value[..., 0::2, :] for leaf, value in params[name].items()}
        for name in ("query", "key")
    }
    # Two softmax heads of the width of a value, padded with zeros.
    for name in pick:
        pick[name] = {
            leaf: np.concatenate([value, np.zeros_like(value)], -1)
            for leaf, value in pick[name].items()
        }
        # That layer divides the scores by sqrt(2 w), not sqrt(w).
        pick[name] = {leaf: value * 2**0.25 for leaf, value in pick[name].items()}
    _, plain, _ = run("softmax", pick | {"value": params["value"], "out": params["out"]})
    np.testing.assert_allclose(weights, plain, atol=1e-5)


def test_rotary_scores_depend_only_on_the_offset():
    rows, columns, width = 4, 5, 8
    angles = rotary_angles(rows, columns, width)
    query, key = RNG.normal(size=(2, width)).astype(np.float32)
    same = np.ones((rows * columns, 1), np.float32)
    scores = np.asarray(rotate(query * same, angles) @ rotate(key * same, angles).T)
    positions = list(itertools.product(range(rows), range(columns)))
    by_offset = {}
    for (i, a), (j, b) in itertools.product(enumerate(positions), repeat=2):
        by_offset.setdefault((a[0] - b[0], a[1] - b[1]), []).append(scores[i, j])
    assert len(by_offset) == 7 * 9
    for values in by_offset.values():
        np.testing.assert_allclose(values, values[0], atol=1e-5)
    means = [np.mean(values) for values in by_offset.values()]
    assert len(np.unique(np.round(means, 4))) > 50  # and they differ between offsets
    assert by_offset[0, 0][0] == pytest.approx(query @ key, abs=1e-5)


def test_rotation_preserves_norms_and_the_class_token():
    x = RNG.normal(size=(2, 1 + 6, 8)).astype(np.float32)
    turned = np.asarray(rotate(x, rotary_angles(2, 3, 8)))
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    np.testing.assert_array_equal(turned[:, 1], x[:, 1])  # the patch at row 0, column 0
    assert not np.allclose(turned[:, 2:], x[:, 2:])
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
    )


@pytest.mark.parametrize("has_cls", [True, False])
def test_relative_indices_by_brute_force(has_cls):
    rows, columns = 3, 2
    found = relative_indices(rows, columns, has_cls)
    offsets = list(itertools.product(range(1 - rows, rows), range(1 - columns, columns)))
    positions = list(itertools.product(range(rows), range(columns)))
    first = int(has_cls)
    for (i, a), (j, b) in itertools.product(enumerate(positions, first), repeat=2):
        assert found[i, j] == offsets.index((a[0] - b[0], a[1] - b[1]))
    if has_cls:
        assert found.shape == (7, 7)
        assert set(found[0, 1:]) == {len(offsets)} and set(found[1:, 0]) == {len(offsets) + 1}
        assert found[0, 0] == len(offsets) + 2


@pytest.mark.parametrize("kind", ["softmax", "differential"])
def test_relative_bias_is_added_to_the_scores(kind):
    _, before, params = run(kind)
    maps = 4 if kind == "differential" else 2
    table = np.zeros((maps, 3 * 5 + 3), np.float32)
    _, same, _ = run(
        kind, params | {"relative_position_bias": {"table": table}}, pos_embed="relative_bias"
    )
    np.testing.assert_allclose(same, before, atol=1e-6)
    if kind == "softmax":
        table[1, 3 * 5] = 1.5  # class to patch, in head 1
        _, after, _ = run(
            kind, params | {"relative_position_bias": {"table": table}}, pos_embed="relative_bias"
        )
        np.testing.assert_allclose(after[:, 0], before[:, 0], atol=1e-6)
        np.testing.assert_allclose(after[:, 1, 1:], before[:, 1, 1:], atol=1e-6)
        scores = np.log(np.asarray(before)[:, 1, 0])
        np.testing.assert_allclose(
            after[:, 1, 0], softmax(scores + 1.5 * (np.arange(7) > 0)), atol=1e-5
        )


@pytest.mark.parametrize("kind", ["softmax", "differential"])
def test_rotary_positions_act_in_attention(kind):
    _, before, params = run(kind)
    _, after, _ = run(kind, params, pos_embed="rope_2d")
    assert not np.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("tokens", [6, 7])
def test_fused_attention_agrees_with_the_product_of_softmax_and_values(tokens):
    rng = np.random.default_rng(2)
    query, key, value, factor = rng.normal(size=(4, B, 3, tokens, 8)).astype(np.float32)

    def plain(query, key, value):
        return jax.nn.softmax(query @ key.swapaxes(2, 3) / 8**0.5) @ value

    def both(function):
        def loss(*inputs):
            return (factor * function(*inputs)).sum()

        found = jax.value_and_grad(loss, (0, 1, 2))(query, key, value)
        return [function(query, key, value), *jax.tree.leaves(found)]

    fused = functools.partial(fused_attention, implementation="xla")
    for found, expected in zip(both(fused), both(plain), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


FUSED = dict(patch_size=4, hidden_size=16, depth=1, num_heads=2, mlp_dim=16, pos_embed="none")
UNFUSED = [
    dict(attention="lsa"),
    dict(attention="differential"),
    dict(pos_embed="relative_bias"),
    dict(head_dim=6),
    dict(attention_dropout_rate=0.1),
]


@pytest.mark.parametrize("options", [{}, *UNFUSED], ids=str)
def test_attention_is_fused_only_where_nobody_reads_its_weights(options, monkeypatch):
    fused = []

    def note(query, key, value):
        fused.append(query.shape)
        return fused_attention(query, key, value, "xla")

    monkeypatch.setattr("vit_jax.models.attention.fused_attention", note)
    config = get_config().model.to_dict() | FUSED | options
    images, keys = np.zeros((2, 8, 8, 3), np.float32), jax.random.split(jax.random.key(0), 2)
    model = models.build(config, 3, jnp.bfloat16, fused_attention=True)
    variables = jax.eval_shape(models.build(config, 3, jnp.bfloat16).init, keys[0], images)
    train = functools.partial(model.apply, train=True, keys=keys)
    jax.eval_shape(train, variables, images)
    assert fused == ([] if options else [(2, 2, 5, 8)])
    seen = jax.eval_shape(functools.partial(train, capture=True), variables, images)[1]
    assert len(fused) == (not options) and seen["attention"][0].shape == (2, 2, 5, 5)
