"""Ablation, logit lens, token norms, similarity and probes of a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from tiny_weights import save_weights

import vit_jax
from vit_jax import models
from vit_jax.explanation import analysis, probes

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (11, 8, 8, 1), np.uint8)
LABELS = RNG.integers(0, 3, 11)
TINY = {"model__depth": 2, "model__hidden_size": 16}


def load(folder, **settings):
    names = ["a", "b", "c"]
    return vit_jax.load_model(save_weights(folder, **TINY | settings), class_names=names)


def change(model, path, function):
    """Change one array of a model's parameters."""
    *parents, name = path.split("/")
    params = functools.reduce(lambda node, key: node[key], parents, model.variables["params"])
    params[name] = function(params[name])


def attention_path(block, name):
    return f"Transformer/encoderblock_{block}/MultiHeadDotProductAttention_0/{name}"


@pytest.mark.parametrize(
    ("kind", "dtype"), [("softmax", jnp.float32), ("differential", jnp.bfloat16)]
)
def test_editing_nothing_gives_the_same_bits(tmp_path, kind, dtype):
    found = load(tmp_path / "w", model__attention=kind, model__layer_scale_init=0.1)
    model, x, variables = models.build(found.config.model, 3, dtype), IMAGES / 255, found.variables
    blocks = [
        {
            "heads": (np.zeros((2, 1, 1), bool), np.full((2, 5, 8), 9.0)),
            "mlp": (np.array(False), np.full((5, 16), 9.0)),
        }
    ] * 2
    apply = jax.jit(functools.partial(model.apply, capture=True))
    logits, seen = apply(variables, x)
    edited, inside = apply(variables, x, edit={"blocks": blocks})
    np.testing.assert_array_equal(logits, edited)
    # Without intermediates, the compiler may sum float32 numbers in another order.
    tolerance = 0 if dtype == jnp.bfloat16 else 1e-6
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, x), tolerance)
    assert [a.shape for a in inside["heads"]] == [(11, 2, 5, 8)] * 2
    assert [a.shape for a in inside["mlp"]] == [(11, 5, 16)] * 2
    assert not {"heads", "mlp"} & seen.keys()
    # Editing something changes the logits.
    blocks[1] = blocks[1] | {"mlp": (np.array(True), np.full((5, 16), 9.0))}
    assert np.abs(apply(variables, x, edit={"blocks": blocks})[0] - logits).max() > 1e-3


def test_ablation_is_the_mean_ablation_of_one_head(tmp_path):
    """By hand for the last block, whose residual stream is known before and after."""
    model = load(tmp_path / "w", model__pool="mean")
    reference = RNG.integers(0, 256, (7, 8, 8, 1), np.uint8)
    found = analysis.ablation(model, IMAGES, LABELS, reference, batch_size=4)
    means = analysis.mean_outputs(model, reference, batch_size=3)
    assert [a.shape for a in means["mlp"]] == [(4, 16)] * 2
    module, x = model.make_model(), model.apply("x", lambda _, x: x, IMAGES)
    unchanged = (np.array(False), np.zeros(()))
    edit = {"blocks": [{"heads": unchanged, "mlp": unchanged}] * 2}
    apply = jax.jit(functools.partial(module.apply, capture=True))
    plain, seen = apply(model.variables, x, edit=edit)
    tokens = seen["tokens"][2] + means["mlp"][1] - seen["mlp"][1]
    ablated = np.asarray(apply(model.variables, x, edit={"tokens": tokens})[0])
    rows = np.arange(11)
    difference = ablated[rows, LABELS] - np.asarray(plain)[rows, LABELS]
    assert found["mlps"]["logit"][1] == pytest.approx(difference.mean(), abs=1e-5)
    error = difference.std(ddof=1) / 11**0.5
    assert found["mlps"]["logit_error"][1] == pytest.approx(error, abs=1e-5)
    hits = (ablated.argmax(1) == LABELS).mean() - (np.asarray(plain).argmax(1) == LABELS).mean()
    assert found["mlps"]["accuracy"][1] == pytest.approx(hits)
    assert found["accuracy"] == pytest.approx((model.predict(IMAGES).argmax(1) == LABELS).mean())
    assert found["heads"]["logit"].shape == (2, 2) and found["images"] == 11


def test_a_planted_head_ranks_first(tmp_path):
    """Only one head reads the image: all others have no values that depend on it."""
    model = load(tmp_path / "w", model__depth=3, model__num_heads=4)
    for block in range(3):
        for path in ("value/kernel", "value/bias"):
            change(model, attention_path(block, path), lambda a: 0 * a)
        change(model, f"Transformer/encoderblock_{block}/MlpBlock_0/Dense_1/kernel", jnp.zeros_like)
    values = 30 * RNG.normal(size=(16, 4)).astype(np.float32)
    change(model, attention_path(1, "value/kernel"), lambda a: a.at[:, 2].set(values))
    change(model, "head/kernel", lambda a: 100 * a)
    found = analysis.ablation(model, IMAGES)  # of the predicted classes
    logit = np.abs(found["heads"]["logit"])
    assert np.unravel_index(logit.argmax(), logit.shape) == (1, 2)
    assert logit.max() > 0.01
    assert max(np.delete(logit.ravel(), 6).max(), np.abs(found["mlps"]["logit"]).max()) < 1e-6
    assert found["accuracy"] == 1 and not np.delete(found["heads"]["accuracy"], 6).any()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "model__pool": "mean",
            "model__num_registers": 2,
            "model__class_token": True,
            "model__fc_norm": True,
        },
        {"model__pool": "map", "model__norm": "rms"},
        {"model__pool": "cls_dist", "model__num_registers": 1},
    ],
    ids=lambda settings: settings.get("model__pool", "cls"),
)
def test_lens_of_the_last_layer_equals_the_logits(tmp_path, settings):
    model = load(tmp_path / "w", **settings)
    found = analysis.logit_lens(model, IMAGES, ["a", "b", "c"] + [0] * 8)
    logits = model.apply("logits", model.make_model().apply, IMAGES)
    assert found["logits"].shape == (11, 3, 3)
    np.testing.assert_array_equal(found["logits"][:, -1], logits)
    np.testing.assert_array_equal(found["classes"], [0, 1, 2] + [0] * 8)
    assert found["patch_probability"].shape == found["patch_correct"].shape == (11, 3, 2, 2)
    assert (found["patch_probability"][found["patch_correct"]] > 1 / 3).all()
    assert np.abs(found["logits"][:, 0] - logits).max() > 1e-3


def test_lens_of_a_patch_by_hand(tmp_path):
    model = load(tmp_path / "w", model__pool="mean")
    found = analysis.logit_lens(model, IMAGES)
    x = model.apply("x", lambda _, x: x, IMAGES)
    logits, seen = jax.jit(functools.partial(model.make_model().apply, capture=True))(
        model.variables, x
    )
    np.testing.assert_array_equal(found["classes"], logits.argmax(-1))
    params = model.variables["params"]
    tokens = np.asarray(seen["tokens"][1])  # after the first block
    tokens = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(
        tokens.var(-1, keepdims=True) + 1e-6
    )
    norm, head = params["Transformer"]["encoder_norm"], params["head"]
    y = (tokens * norm["scale"] + norm["bias"]) @ head["kernel"] + head["bias"]
    probabilities = np.asarray(jax.nn.softmax(y))[np.arange(11), :, found["classes"]]
    np.testing.assert_allclose(
        found["patch_probability"][:, 1], probabilities.reshape(11, 2, 2), atol=1e-5
    )


def test_norms_find_planted_outliers(tmp_path):
    model = load(tmp_path / "w", model__num_registers=1)
    table = "Transformer/posembed_input/pos_embedding"
    change(model, table, lambda a: a.at[0, 3].add(100.0))  # patch (1, 0)
    found = analysis.token_norms(model, IMAGES)
    assert found["patches"].shape == (11, 3, 2, 2) and found["others"].shape == (11, 3, 2)
    assert found["outliers"][:, 1, 0].all() and found["outliers"].mean() == 0.25
    features = analysis.layer_features(model, IMAGES)
    expected = np.linalg.norm(features["class token"][2], axis=-1)
    np.testing.assert_allclose(found["others"][:, 2, 0], expected, rtol=1e-5)


def test_cka_is_invariant_to_rotation_and_scale():
    x, (q, _) = RNG.normal(size=(40, 8)), np.linalg.qr(RNG.normal(size=(8, 8)))
    for unbiased in (True, False):
        assert probes.linear_cka(x, 3 * x @ q + 5, unbiased) == pytest.approx(1)
        assert probes.linear_cka(x, x @ np.diag([9.0] + [0.1] * 7), unbiased) < 0.95
    assert np.isnan(probes.linear_cka(x, np.full((40, 3), 0.1)))
    centred, y = x - x.mean(0), RNG.normal(size=(40, 5))
    y -= y.mean(0)

    def norm(a, b):
        return np.linalg.norm(a.T @ b)

    expected = norm(y, centred) ** 2 / (norm(centred, centred) * norm(y, y))
    assert probes.linear_cka(x, y, unbiased=False) == pytest.approx(expected)
    with pytest.raises(ValueError, match="40 and 39|39 and 40"):
        probes.linear_cka(x, y[1:])
    with pytest.raises(ValueError, match="4 examples"):
        probes.linear_cka(x[:3], y[:3])


def test_unbiased_cka_of_independent_features_is_0():
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 30, 100)) for _ in range(20)]
    unbiased = [probes.linear_cka(x, y) for x, y in pairs]
    assert abs(np.mean(unbiased)) < 2 * np.std(unbiased, ddof=1) / 20**0.5 + 1e-3
    assert np.mean([probes.linear_cka(x, y, unbiased=False) for x, y in pairs]) > 0.6


@pytest.fixture(scope="module")
def clusters():
    """Features and labels of 150 examples in four overlapping clusters."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 150)
    features = rng.normal(size=(4, 12))[labels] + 1.5 * rng.normal(size=(150, 12))
    return (features * rng.uniform(0.1, 10, 12) + 2).astype(np.float32), labels


def test_knn_equals_scikit_learns(clusters):
    features, labels = clusters
    knn = KNeighborsClassifier(
        20, weights=lambda distance: np.exp((1 - distance) / 0.07), metric="cosine"
    )
    expected = knn.fit(features[:100], labels[:100]).predict(features[100:])
    found = probes.knn_predict(features[:100], labels[:100], features[100:], 4, batch_size=32)
    np.testing.assert_array_equal(found, expected)
    assert 0.4 < (found == labels[100:]).mean() < 1
    with pytest.raises(ValueError, match="k is 20, not in 1 to 19"):
        probes.knn_predict(features[:19], labels[:19], features, 4)


def test_ridge_probe_equals_scikit_learns(clusters):
    features, labels = clusters
    features = np.concatenate([features, np.full((150, 1), 0.3, np.float32)], 1)  # one constant
    parts = [(features[i : i + 50], labels[i : i + 50]) for i in (0, 50)]
    lambdas = [100.0, 0.01, 1.0]
    found = probes.ridge_probe(*parts[0], *parts[1], features[100:], 4, lambdas)
    scaler, accuracies = StandardScaler().fit(parts[0][0]), []
    for one in sorted(lambdas):
        ridge = RidgeClassifier(alpha=one).fit(scaler.transform(parts[0][0]), parts[0][1])
        accuracies.append(ridge.score(scaler.transform(parts[1][0]), parts[1][1]))
        if found["lambda"] == one:
            expected = ridge.predict(scaler.transform(features[100:]))
    np.testing.assert_allclose(found["val_accuracy"], accuracies)
    assert accuracies[sorted(lambdas).index(found["lambda"])] == max(accuracies)
    np.testing.assert_array_equal(found["predictions"], expected)


def test_a_resnet_has_no_heads_and_no_tokens(tmp_path):
    model = load(tmp_path / "r", model__name="resnet18", model__hidden_size=4, model__depth=0)
    for function, what in (
        (analysis.ablation, "heads"),
        (analysis.logit_lens, "tokens"),
        (analysis.token_norms, "tokens"),
    ):
        with pytest.raises(vit_jax.UserError, match=f"r is a resnet18, which has no {what}"):
            function(model, IMAGES)
    assert len(analysis.layer_names(model)) == 9
    cka = analysis.similarity(model, IMAGES, load(tmp_path / "v"))
    assert cka.shape == (9, 3)
