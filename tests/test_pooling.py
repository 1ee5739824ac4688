"""Pooling of tokens: by hand, and in explanations."""

import jax
import numpy as np
import pytest
from tiny_configs import make_config

from vit_jax import config as settings
from vit_jax import models
from vit_jax.explanation import attribution
from vit_jax.explanation.methods import attention_relevance, token_layout
from vit_jax.runtime.errors import UserError

D = 16
SMALL = settings.get_config().model.to_dict() | dict(patch_size=4, hidden_size=D, depth=2)
SMALL |= dict(num_heads=2, mlp_dim=24)
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 12, 3)).astype(np.float32)


def build(**options):
    """Build a model and parameters that are random everywhere."""
    model, rng = models.build(SMALL | options, 5), np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    return model, jax.tree.map(lambda p: rng.normal(size=p.shape, scale=0.3).astype("f"), shapes)


def refused(**options):
    with pytest.raises(UserError) as error:
        make_config(**{f"model__{key}": value for key, value in options.items()})
    return str(error.value)


def test_pools_of_tokens_by_hand():
    for pool, extra in (("mean", True), ("max", False), ("avgmax", True)):
        model, params = build(pool=pool, class_token=extra, fc_norm=True, num_registers=2)
        features, seen = model.apply({"params": params}, IMAGES, capture=True)
        patches, norm = np.asarray(seen["tokens"][-1])[:, 2 + extra :], params["fc_norm"]
        assert patches.shape[1] == 6
        pooled = {"mean": patches.mean(1), "max": patches.max(1)}
        pooled["avgmax"] = (pooled["mean"] + pooled["max"]) / 2
        x = pooled[pool]
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        expected = z * norm["scale"] + norm["bias"]
        np.testing.assert_allclose(seen["features"], expected, atol=1e-4)
    model, params = build(pool="cls_dist", num_registers=2)
    _, seen = model.apply({"params": params}, IMAGES, capture=True)
    assert seen["features"].shape == (3, 2 * D)
    assert "needs model.num_registers" in refused(pool="cls_dist")
    assert "class_token=True has no effect" in refused(class_token=True)
    assert "fc_norm=True has no effect" in refused(fc_norm=True)


def test_a_class_token_outside_the_pooling_is_no_row_of_explanations():
    model, params = build(pool="mean", class_token=True)
    config = settings.get_config()
    config.model.update(SMALL | dict(pool="mean", class_token=True))
    config.data.image_size = 8
    grid, has_cls, others = token_layout(config)
    assert (grid, has_cls, others) == ((2, 2), False, 1)
    _, seen = model.apply({"params": params}, IMAGES, capture=True)
    grid = (2, 3)  # of IMAGES
    map_ = attribution.explanation("last layer", seen["attention"], [], grid, has_cls, others)
    expected = np.asarray(seen["attention"][-1]).mean(1)[:, 1:, 1:].mean(1)
    np.testing.assert_allclose(np.reshape(map_, (3, 6)), expected, rtol=1e-5)


@pytest.mark.parametrize("registers", [0, 2])
def test_class_token_and_mean_of_patches_both_count_in_explanations(registers):
    config = settings.get_config()
    config.model.update(SMALL | dict(pool="cls_mean", num_registers=registers))
    config.data.image_size = 8  # 2 x 2 patches
    attention = np.random.default_rng(0).random((2, 3, 2, 5 + registers, 5 + registers))
    found = attention_relevance("last layer", attention, [], config)
    mean, first = attention[-1].mean(1), 1 + registers
    expected = (mean[:, 0, first:] + mean[:, first:, first:].mean(1)) / 2
    np.testing.assert_allclose(np.reshape(found, (3, 4)), expected, rtol=1e-5)
