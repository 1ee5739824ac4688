"""Captured attention, and what is computed from it, agree with arithmetic by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from path_sum import path_sum

from vit_jax import config as settings
from vit_jax import models
from vit_jax.explanation import attribution

RNG = np.random.default_rng(0)
KINDS = ("softmax", "differential")
DTYPES = (jnp.float32, jnp.bfloat16)
GRID = (2, 3)
SMALL = settings.get_config().model.to_dict() | dict(
    patch_size=4, hidden_size=16, depth=2, num_heads=2, mlp_dim=24
)
IMAGES = RNG.normal(size=(3, 8, 12, 3)).astype(np.float32)


def depth_of(dtype):
    return 2 if dtype == jnp.float32 else 1  # bfloat16 takes longer to compile


@functools.cache
def build(**options):
    """Build a model, random variables, and its jitted `apply` and `attention_gradients`."""
    own = {key: options.pop(key) for key in ("dtype", "remat") if key in options}
    model = models.build(SMALL | options, num_classes=5, **own)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert set(shapes) == {"params"}
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda p: rng.normal(0.1, 0.3, p.shape).astype("f"), shapes)
    gradients_of = functools.partial(models.attention_gradients, model)
    return model, variables, jax.jit(model.apply, static_argnames="capture"), jax.jit(gradients_of)


def attention_params(variables, layer):
    block = variables["params"]["Transformer"][f"encoderblock_{layer}"]
    (name,) = (name for name in block if name.startswith("MultiHead"))
    return block["LayerNorm_0"], block[name]


def softmax_by_hand(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [(kind, *limit) for kind in KINDS for limit in zip(DTYPES, (1e-5, 0.03), strict=True)],
)
def test_captured_attention_is_that_of_queries_and_keys(kind, dtype, tolerance):
    _, variables, apply, _ = build(attention=kind, dtype=dtype, depth=depth_of(dtype))
    logits, seen = apply(variables, IMAGES, capture=True)
    np.testing.assert_array_equal(logits, apply(variables, IMAGES))
    strengths = jax.jit(models.differential_lambdas)(variables["params"])
    for layer in range(depth_of(dtype)):
        norm, p = attention_params(variables, layer)
        x = np.asarray(seen["tokens"][layer], np.float64)
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]
        query, key = (
            np.einsum("bnd,dhw->bhnw", x, p[name]["kernel"]) + p[name]["bias"][:, None]
            for name in ("query", "key")
        )
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
        expected = softmax_by_hand(np.asarray(scores, np.float64))
        found = seen["attention"][layer]
        assert found.dtype == dtype
        if kind == "differential":
            maps = np.asarray(seen["softmax_maps"][layer], np.float64)
            assert maps.shape == (3, 2, 2, 7, 7)
            np.testing.assert_allclose(maps, expected.reshape(maps.shape), atol=tolerance)
            strength = float(strengths[f"encoderblock_{layer}"])
            expected = maps[:, :, 0] - strength * maps[:, :, 1]
        else:
            assert "softmax_maps" not in seen
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=tolerance)


def attend_by_hand(weights, x, p, layer):
    """Map weights [b, h, n, n] and tokens [b, n, d] to the attention layer's output."""
    value = jnp.einsum("bnd,dhw->bhnw", x, p["value"]["kernel"]) + p["value"]["bias"][:, None]
    y = weights @ value
    if "head_norm" in p:
        y = y / jnp.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p["head_norm"]["scale"]
        y = y * (0.2 + 0.6 * np.exp(-0.3 * layer) if layer else 0.8)
    return jnp.einsum("bhnw,hwd->bnd", y, p["out"]["kernel"]) + p["out"]["bias"]


def logits_by_hand(weights, x, variables, layer):
    """Map the last block's attention weights and input tokens to logits."""

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    params = variables["params"]
    block = params["Transformer"][f"encoderblock_{layer}"]
    before, p = attention_params(variables, layer)
    x = x + attend_by_hand(weights, norm(x, before), p, layer)
    mlp = block["MlpBlock_0"]
    y = jax.nn.gelu(dense(norm(x, block["LayerNorm_1"]), mlp["Dense_0"]))
    x = norm(x + dense(y, mlp["Dense_1"]), params["Transformer"]["encoder_norm"])
    return dense(x[:, 0], params["head"])


@pytest.mark.parametrize(
    ("kind", "remat", "classes"), [("softmax", True, np.array([3, 0, 3])), (KINDS[1], False, None)]
)
def test_gradients_are_those_of_the_chosen_logit(kind, remat, classes):
    """In the last layer they can be taken by hand, from the tokens that come into it."""
    _, variables, apply, gradients_of = build(attention=kind, remat=remat)
    logits, seen, gradients = gradients_of(variables, IMAGES, classes)
    classes = logits.argmax(-1) if classes is None else classes

    @jax.jit
    @jax.grad
    def by_hand(weights):
        logits = logits_by_hand(weights, seen["tokens"][1], variables, layer=1)
        return logits[np.arange(3), classes].sum()

    expected = by_hand(seen["attention"][1])
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-3, atol=1e-5)
    # In the first layer: raising a weight by a little raises the logit by so much.
    bump = np.zeros((2, 3, 2, 7, 7), np.float32)
    place = np.unravel_index(np.abs(gradients[0]).argmax(), gradients[0].shape)
    bump[(0, *place)] = 0.01

    def logit(sign):
        logits = apply(variables, IMAGES, added=list(sign * bump))
        return np.asarray(logits)[np.arange(3), classes].sum()

    plain = apply(variables, IMAGES)
    assert logit(0) == np.asarray(plain)[np.arange(3), classes].sum()  # to the last bit
    np.testing.assert_allclose(logits, plain, atol=1e-5)
    rise = (logit(1) - logit(-1)) / 0.02
    assert rise == pytest.approx(float(gradients[0][place]), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_the_dtype_of_the_weights(kind):
    _, variables, apply, gradients_of = build(attention=kind, dtype=jnp.bfloat16, depth=1)
    _, seen, gradients = jax.eval_shape(gradients_of, variables, IMAGES)
    assert [(g.shape, g.dtype) for g in gradients] == [((3, 2, 7, 7), jnp.bfloat16)]
    assert gradients == seen["attention"]
    logits = apply(variables, IMAGES, added=[np.zeros((3, 2, 7, 7), jnp.bfloat16)])
    np.testing.assert_array_equal(logits, apply(variables, IMAGES))


def test_gradient_rollout_finds_the_one_layer_that_matters():
    """A block whose attention output is 0 contributes nothing to a class."""
    _, variables, _, gradients_of = build(attention="softmax", remat=True)
    name = "MultiHeadDotProductAttention_0"
    for only, other in ((0, 1), (1, 0)):
        blocks = dict(variables["params"]["Transformer"])
        attention = blocks[f"encoderblock_{other}"][name]
        attention = attention | {"out": jax.tree.map(np.zeros_like, attention["out"])}
        blocks[f"encoderblock_{other}"] = blocks[f"encoderblock_{other}"] | {name: attention}
        changed = {"params": variables["params"] | {"Transformer": blocks}}
        _, seen, gradients = gradients_of(changed, IMAGES, np.array([3, 0, 3]))
        assert [i for i, g in enumerate(gradients) if np.abs(g).max() > 0] == [only]
        found = attribution.gradient_rollout(seen["attention"], gradients)
        fused = (np.asarray(seen["attention"][only]) * gradients[only]).clip(0).mean(1)
        assert fused[:, 0].max() > 1e-3
        for image in range(3):
            np.testing.assert_allclose(found[image], path_sum([fused[image]]), atol=1e-5)


def test_a_model_without_attention_is_refused():
    config = SMALL | {"name": "resnet18", "hidden_size": 4, "stem": "cifar"}
    model = models.build(config, num_classes=5)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match="ResNet18 has no attention"):
        models.attention_gradients(model, variables, IMAGES)


def test_mean_attention_distance_by_hand():
    """2 x 2 patches of 4 pixels: to the neighbours 4, to the opposite one 4 sqrt 2."""
    attention = np.zeros((2, 1, 2, 4, 4))
    attention[0, 0, 0] = np.eye(4)  # each patch looks at itself
    attention[0, 0, 1] = np.eye(4)[::-1]  # at the opposite one
    attention[1, 0, 0] = np.eye(4)[[1, 0, 3, 2]]  # at its neighbour
    attention[1, 0, 1] = 0.25  # everywhere
    expected = [[0, 4 * 2**0.5], [4, (4 + 4 + 4 * 2**0.5) / 4]]
    found = attribution.mean_attention_distance(attention, (2, 2), 4, has_cls=False)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Half of each row to the class token, whose own row looks afar: the same distances.
    with_cls = np.zeros((2, 1, 2, 5, 5))
    with_cls[..., 1:, 1:], with_cls[..., 1:, 0], with_cls[..., 0, 4] = attention / 2, 0.5, 1
    distance = functools.partial(attribution.mean_attention_distance, grid=(2, 2), patch_size=4)
    found = jax.jit(functools.partial(distance, has_cls=True))(with_cls)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Negative weights do not count, nor does a query that has no other; images are averaged.
    odd = np.stack([attention[1, 0, :1], attention[0, 0, :1]])  # [2, 1, 4, 4]
    odd[0, 0, 0], odd[0, 0, 1, 1] = -1, -5
    found = distance([odd], has_cls=False)
    np.testing.assert_allclose(found, [[4 * 3 / 7]], rtol=1e-6)
    with pytest.raises(ValueError, match="4 tokens"):
        distance(attention, has_cls=True)


def test_distance_distinguishes_rows_from_columns():
    attention = np.zeros((1, 1, 1, 6, 6))
    attention[..., 5] = 1  # all look at row 1, column 2 of 2 x 3
    found = attribution.mean_attention_distance(attention, GRID, 10, has_cls=False)
    lengths = [np.hypot(1 - y, 2 - x) for y in range(2) for x in range(3)]
    np.testing.assert_allclose(found, [[10 * np.mean(lengths)]], rtol=1e-6)


def test_position_similarity_by_hand():
    table = np.array([[9, 9], [1, 0], [0, 2], [3, 3], [-1, 0], [0, 0], [1, 1]], np.float32)
    found = attribution.position_similarity(table, GRID, has_cls=True)
    assert found.shape == (*GRID, *GRID)
    half = 2**-0.5
    np.testing.assert_allclose(found[0, 0], [[1, 0, half], [-1, 0, half]], atol=1e-6)
    np.testing.assert_allclose(found[0, 2], [[half, half, 1], [-half, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(found[:, :, 1, 0], found[1, 0], atol=1e-6)
    same = attribution.position_similarity(table[1:], GRID, has_cls=False)
    np.testing.assert_array_equal(found, same)
    with pytest.raises(ValueError, match="7 tokens"):
        attribution.position_similarity(table, GRID, has_cls=False)


def test_patch_filters_are_principal_components():
    kernel = RNG.normal(size=(4, 4, 3, 60)) * RNG.uniform(0.1, 3, size=(4, 4, 3, 1))
    kernel = kernel + RNG.normal(size=(4, 4, 3, 1))  # a mean filter, which is no component
    filters_of = jax.jit(functools.partial(attribution.patch_filters, count=5))
    found = filters_of(kernel)
    assert found.shape == (5, 4, 4, 3)
    filters = kernel.reshape(48, 60).T
    _, _, components = np.linalg.svd(filters - filters.mean(0))
    for image, component in zip(np.asarray(found), components, strict=False):
        component = component.reshape(4, 4, 3)
        component = component / max(component.min(), component.max(), key=abs)  # 1 at its largest
        np.testing.assert_allclose(image, 0.5 + component / 2, atol=1e-3)
    np.testing.assert_allclose(filters_of(-kernel), found, atol=1e-3)
    with pytest.raises(ValueError, match="count is 49, not in 1 to 48"):
        attribution.patch_filters(kernel, 49)


def test_filter_images_are_scaled_one_by_one():
    kernel = np.zeros((3, 3, 2, 3), np.float32)
    kernel[0, 1, 0, 0], kernel[2, 2, 1, 0], kernel[1, 1, 1, 1] = -4, 2, 0.1
    found = np.asarray(attribution.filter_images(kernel))
    assert found.shape == (3, 3, 3, 2)
    assert found[0, 0, 1, 0] == 0 and found[0, 2, 2, 1] == 0.75 and found[1, 1, 1, 1] == 1
    assert (found[2] == 0.5).all() and np.count_nonzero(found != 0.5) == 3


def test_rollout_of_a_model_scores_as_arrays():
    """From images to scores in one jitted program, with the parameters as its arguments."""
    model, variables, *_ = build(pool="mean", depth=1)

    @jax.jit
    def score(variables, images):
        logits, seen = model.apply(variables, images, capture=True)
        maps = attribution.rollout(seen["attention"], discard=0.2, has_cls=False)
        relevance = attribution.patch_relevance(maps, GRID, has_cls=False)
        logits_fn = functools.partial(model.apply, variables)
        scores = attribution.deletion_insertion(logits_fn, images, relevance, 0.0, 6)
        return relevance, scores, jax.nn.softmax(logits).max(-1)

    relevance, scores, probabilities = score(variables, IMAGES)
    np.testing.assert_allclose(relevance.sum((1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(scores["deletion"][:, 0], probabilities, atol=1e-5)
    np.testing.assert_allclose(scores["insertion"][:, -1], probabilities, atol=1e-5)
    # All deleted is nothing inserted.
    np.testing.assert_allclose(scores["deletion"][:, -1], scores["insertion"][:, 0], atol=1e-5)
