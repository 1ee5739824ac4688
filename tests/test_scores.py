"""Deletion and insertion scores of a model with known outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.explanation import attribution

RNG = np.random.default_rng(0)
WHERE = np.array([0, 1, 2, 3])  # the decisive one of 2x2 patches in each of four images
DECISIVE = np.zeros((4, 8, 8, 1), np.float32)
for _i, (_y, _x) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
    DECISIVE[_i, _y : _y + 4, _x : _x + 4] = 1


def linear(images):
    """The logit of class 1 is 3 times the mean of the decisive patch."""
    return jnp.stack([jnp.zeros(4), 3 * (images * DECISIVE).sum((1, 2, 3)) / 16], 1)


SCORE = jax.jit(functools.partial(attribution.deletion_insertion, linear), static_argnames="steps")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_deletion_and_insertion_of_a_linear_model():
    images, baseline = np.ones((4, 8, 8, 1), np.float32), np.float32([-1])
    right = np.eye(4)[WHERE].reshape(4, 2, 2)
    scores = SCORE(images, right, baseline, steps=4)
    high, low = sigmoid(3), sigmoid(-3)
    np.testing.assert_allclose(scores["fractions"], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(scores["deletion"], [[high] + 4 * [low]] * 4, atol=1e-6)
    np.testing.assert_allclose(scores["insertion"], [[low] + 4 * [high]] * 4, atol=1e-6)
    np.testing.assert_allclose(scores["deletion_auc"], [high / 8 + low * 7 / 8] * 4, atol=1e-6)
    np.testing.assert_allclose(scores["insertion_auc"], [low / 8 + high * 7 / 8] * 4, atol=1e-6)
    wrong = SCORE(images, -right, baseline, steps=4)
    np.testing.assert_allclose(wrong["deletion"], [4 * [high] + [low]] * 4, atol=1e-6)
    np.testing.assert_allclose(wrong["insertion_auc"], [low * 7 / 8 + high / 8] * 4, atol=1e-6)


def test_scores_follow_the_predicted_class():
    """Here class 0, whose probability rises towards that of the baseline."""
    images, baseline = -np.ones((4, 8, 8, 1), np.float32), np.full((8, 8, 1), -2, np.float32)
    relevance = np.eye(4)[WHERE].reshape(4, 2, 2)
    scores = SCORE(images, relevance, baseline, steps=2)
    expected = [[sigmoid(3), sigmoid(6), sigmoid(6)]] * 4
    np.testing.assert_allclose(scores["deletion"], expected, atol=1e-6)


def test_pixels_are_deleted_one_by_one():
    """With 64 pixels in 3 steps, 21, 43 and 64 of them; each of the decisive 16 counts."""
    images = np.ones((4, 8, 8, 1), np.float32)
    relevance = RNG.permutation(4 * 64).reshape(4, 8, 8).astype(np.float32)
    scores = SCORE(images, relevance, np.zeros_like(images), steps=3)
    np.testing.assert_allclose(scores["fractions"], [0, 21 / 64, 43 / 64, 1], rtol=1e-6)
    for image in range(4):
        order = np.argsort(-relevance[image].reshape(-1))
        decisive = DECISIVE[image].reshape(-1)[order]
        left = np.array([decisive[k:].sum() / 16 for k in (0, 21, 43, 64)])
        np.testing.assert_allclose(scores["deletion"][image], sigmoid(3 * left), atol=1e-6)
        np.testing.assert_allclose(scores["insertion"][image], sigmoid(3 - 3 * left), atol=1e-6)
        area = np.trapezoid(sigmoid(3 * left), scores["fractions"])
        assert scores["deletion_auc"][image] == pytest.approx(area, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "steps", "words"), [((4, 3, 2), 4, "3 x 2 parts"), ((4, 2, 2), 0, "steps is 0")]
)
def test_scores_refuse_invalid_arguments(shape, steps, words):
    with pytest.raises(ValueError, match=words):
        attribution.deletion_insertion(
            linear, np.ones((4, 8, 8, 1)), np.ones(shape), np.zeros(1), steps
        )
