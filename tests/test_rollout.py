"""Attention rollout agrees with its papers on small cases."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from path_sum import path_sum

from vit_jax.explanation import attribution

RNG = np.random.default_rng(0)
GRID = (2, 3)


def random_attention(layers=3, b=2, h=4, n=5):
    weights = RNG.exponential(size=(layers, b, h, n, n)) ** 2
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_rollout_sums_over_all_paths(fusion):
    attention = random_attention()
    found = attribution.rollout(attention, fusion)
    for image in range(2):
        expected = path_sum(getattr(attention[:, image], fusion)(1))
        np.testing.assert_allclose(found[image], expected, atol=1e-6)


def test_rollout_of_uniform_attention_is_uniform_off_the_diagonal():
    """Each layer is I / 2 plus half of the uniform map; so is the product, up to a factor."""
    uniform = np.full((3, 1, 2, 5, 5), 0.2)
    for discard in (0.0, 0.5):
        found = attribution.rollout(uniform, discard=discard)[0]
        np.testing.assert_allclose(found, np.eye(5) / 8 + 0.2 * 7 / 8, atol=1e-6)
    relevance = attribution.patch_relevance(found, (2, 2), has_cls=True)
    np.testing.assert_allclose(relevance, relevance[0, 0], atol=1e-7)


def test_rollout_of_identity_is_identity():
    identity = np.broadcast_to(np.eye(5), (3, 2, 4, 5, 5))
    for fusion in ("mean", "max", "min"):
        np.testing.assert_allclose(
            attribution.rollout(identity, fusion), np.broadcast_to(np.eye(5), (2, 5, 5)), atol=1e-7
        )


@pytest.mark.parametrize("discard", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_rollout_rows_sum_to_1(fusion, discard):
    attention = random_attention(n=7)
    attention[0] -= 0.2  # some negative weights, as in differential attention
    found = attribution.rollout(attention, fusion, discard)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    assert (np.asarray(found) >= 0).all()


def test_a_batch_equals_its_images_one_by_one():
    attention, gradients = random_attention(b=8), RNG.normal(size=(3, 8, 4, 5, 5))
    together = jax.jit(functools.partial(attribution.rollout, discard=0.4))
    with_gradients = jax.jit(functools.partial(attribution.gradient_rollout, discard=0.4))
    all_images, all_gradients = together(attention), with_gradients(attention, gradients)
    for i in range(8):
        one = np.s_[:, i : i + 1]
        np.testing.assert_allclose(all_images[i], together(attention[one])[0], atol=1e-6)
        alone = with_gradients(attention[one], gradients[one])[0]
        np.testing.assert_allclose(all_gradients[i], alone, atol=1e-6)
    # A list of layers in bfloat16, as returned by a model.
    layers = [jnp.asarray(a, jnp.bfloat16) for a in attention]
    found = attribution.rollout(layers)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, attribution.rollout(attention), atol=0.01)


def test_discard_removes_the_lowest_weights_per_image_except_for_the_class_token():
    attention = random_attention(layers=1, h=1)
    attention[0, 1] *= 0.01  # a threshold for the whole batch would discard this image entirely
    for has_cls, discard in itertools.product((True, False), (0.5, 0.9)):
        found = attribution.rollout(attention, discard=discard, has_cls=has_cls)
        for image in range(2):
            kept = attention[0, image, 0].copy()
            may_go = sorted((x, i) for i, x in np.ndenumerate(kept) if i[1] or not has_cls)
            assert len(may_go) == (20 if has_cls else 25)
            for _, place in may_go[: int(discard * len(may_go))]:
                kept[place] = 0
            np.testing.assert_allclose(found[image], path_sum([kept]), atol=1e-6)


def test_negative_weights_count_as_0():
    attention = random_attention(layers=2) - 0.15
    found = attribution.rollout(attention)
    np.testing.assert_allclose(found, attribution.rollout(attention.clip(0)), atol=1e-7)
    assert np.abs(found - attribution.rollout(np.abs(attention))).max() > 0.01


def test_gradient_rollout_sums_over_paths_with_positive_gradients():
    attention, gradients = random_attention(), RNG.normal(size=(3, 2, 4, 5, 5))
    attention[1] -= 0.15
    found = attribution.gradient_rollout(attention, gradients)
    fused = (attention * gradients).clip(0).mean(2)
    for image in range(2):
        np.testing.assert_allclose(found[image], path_sum(fused[:, image]), atol=1e-6)
    with pytest.raises(ValueError):
        attribution.gradient_rollout(attention, gradients[:2])


def test_patch_relevance_is_that_of_the_pooled_token():
    maps = RNG.uniform(size=(2, 4, 7, 7)).astype(np.float32)
    found = attribution.patch_relevance(maps, GRID, has_cls=True)
    assert found.shape == (2, 4, *GRID)
    for row, column in np.ndindex(GRID):
        np.testing.assert_array_equal(found[..., row, column], maps[..., 0, 1 + 3 * row + column])
    found = attribution.patch_relevance(maps[..., 1:, 1:], GRID, has_cls=False)
    for row, column in np.ndindex(GRID):
        expected = [m[1:, 1 + 3 * row + column].mean() for m in maps.reshape(8, 7, 7)]
        np.testing.assert_allclose(found[..., row, column].reshape(-1), expected, atol=1e-6)
    with pytest.raises(ValueError, match="7 tokens, not a grid of 2 x 3 patches"):
        attribution.patch_relevance(maps, GRID, has_cls=False)
