"""Attribution by gradients and masks agrees with computations by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_weights import save_weights

import vit_jax
from vit_jax import config as settings
from vit_jax import models
from vit_jax.explanation import attribution, gradients, methods

RNG = np.random.default_rng(0)
GRID = (2, 3)
SMALL = settings.get_config().model.to_dict() | dict(
    patch_size=4, hidden_size=16, depth=2, num_heads=2, mlp_dim=24
)
IMAGES = RNG.normal(size=(3, 8, 12, 3)).astype(np.float32)
CLASSES = np.array([3, 0, 3])


@functools.cache
def build(**options):
    model = models.build(SMALL | options, num_classes=5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda p: rng.normal(0.1, 0.3, p.shape).astype("f"), shapes)


def test_chefer_of_one_layer_is_the_identity_plus_its_evidence():
    attention, slopes = RNG.uniform(size=(2, 2, 4, 5, 5)), RNG.normal(size=(2, 2, 4, 5, 5))
    evidence = np.maximum(attention * slopes, 0).mean(2)
    found = attribution.chefer(attention[:1], slopes[:1])
    np.testing.assert_allclose(found, np.eye(5) + evidence[0], rtol=1e-5)
    found = attribution.chefer(attention, slopes)
    first = np.eye(5) + evidence[0]
    np.testing.assert_allclose(found, first + evidence[1] @ first, rtol=1e-5)
    maps = attribution.explanation("Chefer", attention[:1], slopes[:1], (2, 2), True)
    np.testing.assert_allclose(maps.reshape(2, 4), evidence[0][:, 0, 1:], atol=1e-6)


WEIGHTS = RNG.normal(size=(8, 12, 3, 5)).astype(np.float32)


def linear(images):
    return jnp.einsum("bhwc,hwck->bk", images, WEIGHTS)


def test_gradients_of_a_linear_model_are_its_weights():
    exact = (IMAGES * WEIGHTS[..., CLASSES].transpose(3, 0, 1, 2)).sum(-1)
    exact = exact.reshape(3, 2, 4, 3, 4).sum((2, 4))
    found = gradients.input_x_gradient(linear, IMAGES, CLASSES, GRID)
    np.testing.assert_allclose(found, exact, atol=1e-4)
    found = gradients.integrated_gradients(linear, IMAGES, CLASSES, GRID, 0.0, 3)
    np.testing.assert_allclose(found, exact, atol=1e-4)
    with pytest.raises(ValueError, match="3 x 3 parts do not divide 8 x 12 pixels"):
        gradients.input_x_gradient(linear, IMAGES, CLASSES, (3, 3))


def test_integrated_gradients_add_up_to_the_change_of_the_logit():
    model, variables = build()
    logits_fn, baseline = functools.partial(model.apply, variables), np.float32(0.2)
    difference = (logits_fn(IMAGES) - logits_fn(np.full_like(IMAGES, 0.2)))[np.arange(3), CLASSES]

    @functools.partial(jax.jit, static_argnums=0)
    def integrate(steps):
        maps = gradients.integrated_gradients(logits_fn, IMAGES, CLASSES, GRID, baseline, steps)
        return maps, gradients.residual(logits_fn, IMAGES, CLASSES, baseline, maps)

    maps, residual = integrate(256)
    assert (residual < 1e-3).all()
    np.testing.assert_allclose(maps.sum((1, 2)), difference, rtol=1e-3)
    assert (integrate(1)[1] > residual).all()


def test_grad_cam_of_a_vit_by_hand():
    """With mean pooling, the logit is a function of the last tokens that is easily repeated."""
    model, variables = build(pool="mean")
    tokens, found = gradients.token_gradients(model, variables, IMAGES, CLASSES, 2)
    params = variables["params"]

    def logit(x):
        norm = params["Transformer"]["encoder_norm"]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        features = (x * norm["scale"] + norm["bias"]).mean(1)
        logits = features @ params["head"]["kernel"] + params["head"]["bias"]
        return logits[np.arange(3), CLASSES].sum()

    slopes = np.asarray(jax.grad(logit)(tokens))
    np.testing.assert_allclose(found, slopes, rtol=1e-3, atol=1e-6)
    maps = gradients.grad_cam(*(a.reshape(3, *GRID, -1) for a in (tokens, found)))
    by_hand = np.einsum("bd,bnd->bn", slopes.mean(1), tokens).clip(0).reshape(3, *GRID)
    assert by_hand.max() > 1e-3
    np.testing.assert_allclose(maps, by_hand, rtol=1e-3, atol=1e-6)


def test_gradients_of_earlier_tokens_are_slopes():
    model, variables = build()
    tokens, found = gradients.token_gradients(model, variables, IMAGES, None, 1)
    logits = model.apply(variables, IMAGES)
    place = np.unravel_index(np.abs(found[:, 1:]).argmax(), found[:, 1:].shape)
    bump = np.zeros(tokens.shape, np.float32)
    bump[place[0], place[1] + 1, place[2]] = 0.01
    rise = [model.apply(variables, IMAGES, added_tokens={1: s * bump}) for s in (-1, 1)]
    slope = ((rise[1] - rise[0]) / 0.02)[place[0], logits[place[0]].argmax()]
    assert slope == pytest.approx(float(found[place[0], place[1] + 1, place[2]]), rel=0.05)


def test_rise_finds_the_only_patch_that_is_read():
    """Of 4 x 4; the probability of class 1 rises with the brightness of patch (1, 2)."""

    def logits_fn(images):
        bright = images[:, 4:8, 8:12].mean((1, 2, 3))
        return jnp.stack([jnp.zeros_like(bright), 4 * bright - 2], 1)

    images = np.ones((2, 16, 16, 1), np.float32)
    rise = functools.partial(gradients.rise, logits_fn, images, np.array([1, 0]), (4, 4), 0.0)
    found = rise(masks=200)
    assert found[0].argmax() == found[1].argmin() == 1 * 4 + 2
    np.testing.assert_allclose(found[0], -found[1], atol=1e-5)
    np.testing.assert_array_equal(found, rise(masks=200))
    assert np.abs(found - rise(masks=200, seed=1)).max() > 1e-3


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "r"
    settings = {"data__image_size": 32, "model__name": "resnet18", "model__hidden_size": 4}
    return vit_jax.load_model(save_weights(path, **settings))


def test_grad_cam_of_a_resnet_by_hand(resnet):
    images = RNG.integers(0, 256, (2, 32, 32, 1), np.uint8)
    assert resnet.methods == ["grad_cam", "input_x_gradient", "integrated_gradients", "rise"]
    found = resnet.explain(images, "grad_cam", target=2)
    assert found.shape == (2, *resnet.relevance_grid) == (2, 8, 8)
    inputs = (images / 255 - resnet.config.data.mean) / resnet.config.data.std
    _, seen = resnet.make_model().apply(resnet.variables, np.float32(inputs), capture=True)
    maps, kernel = seen["feature_maps"]["layer4_1"], resnet.variables["params"]["head"]["kernel"]
    by_hand = np.maximum(maps @ kernel[:, 2], 0) / 16  # 4 x 4 positions
    by_hand = jax.image.resize(by_hand, (2, 8, 8), "linear")
    np.testing.assert_allclose(found, by_hand, rtol=1e-3, atol=1e-6)
    assert by_hand.max() > 0


def test_a_method_that_needs_attention_is_refused(resnet, tmp_path):
    images = np.zeros((1, 32, 32, 1), np.uint8)
    for call, words in (
        ((images, "rollout"), "is a resnet18, which has no attention, as method='rollout' needs"),
        ((images, "nothing"), "method='nothing' is unknown: use one of gradient_rollout, chefer"),
    ):
        with pytest.raises(vit_jax.UserError, match=words) as caught:
            resnet.explain(*call)
        assert "\n" not in str(caught.value)
    for options, words in (
        ({"masks": 0}, "masks=0 must be an integer of at least 1"),
        ({"steps": 8}, "steps is not an option of method='rise': use masks, seed"),
    ):
        with pytest.raises(vit_jax.UserError, match=words):
            resnet.explain(images, "rise", **options)
    with pytest.raises(vit_jax.UserError, match="baseline='white' must be mean or black"):
        resnet.explain(images, "integrated_gradients", baseline="white")
    small = save_weights(tmp_path / "r", model__name="resnet18", model__hidden_size=4)
    with pytest.raises(vit_jax.UserError, match="a last stage of one position for 8 pixels"):
        vit_jax.load_model(small).explain(images[:, :8, :8], "grad_cam")


@pytest.mark.parametrize("pool", ["cls_mean", "cls_dist", "map", "seq", "avgmax"])
def test_gradients_explain_every_pooling(pool, tmp_path):
    registers = {"model__num_registers": 2} if pool == "cls_dist" else {}
    model = vit_jax.load_model(
        save_weights(tmp_path / "w", model__pool=pool, model__depth=1, **registers)
    )
    images = RNG.integers(0, 256, (2, 8, 8, 1), np.uint8)
    found = model.explain(images, "grad_cam", target="class 1")
    assert found.shape == (2, 2, 2) and (found >= 0).all() and np.isfinite(found).all()
    assert np.abs(model.explain(images, "input_x_gradient")).max() > 1e-4
    if pool == "cls_mean":  # of which attention explains too
        assert model.methods == list(methods.METHODS)
        return
    assert model.methods == ["grad_cam", "input_x_gradient", "integrated_gradients", "rise"]
    with pytest.raises(vit_jax.UserError, match=f"has model.pool={pool}, but method='rollout'"):
        model.explain(images, "rollout")


def test_options_reach_the_methods(tmp_path):
    model = vit_jax.load_model(save_weights(tmp_path / "w", model__depth=1))
    images = RNG.integers(0, 256, (2, 8, 8, 1), np.uint8)
    assert model.methods == list(methods.METHODS)
    coarse = model.residual(images, target=1, steps=1)
    assert (model.residual(images, target=1, steps=64) < np.maximum(coarse, 1e-4)).all()
    of_mean, of_black = (
        model.explain(images, "integrated_gradients", baseline=kind) for kind in ("mean", "black")
    )
    assert np.abs(of_mean - of_black).max() > 1e-5
