"""SaCo, randomised weights and the choice of a method, on cases with known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.explanation import faithfulness, scores

RNG = np.random.default_rng(0)
IMAGES = np.ones((40, 8, 8, 1), np.float32)
EFFECTS = RNG.uniform(0.1, 1, (4, 4)).astype(np.float32)  # of each of 4 x 4 parts on the logit


def logits_fn(images):
    parts = images.reshape(len(images), 4, 2, 4, 2).mean((2, 4))
    logit = (parts * EFFECTS).sum((1, 2)) / 4
    return jnp.stack([jnp.zeros_like(logit), logit], 1)


def saco(relevance, **options):
    relevance = jnp.broadcast_to(relevance, (len(IMAGES), 4, 4))
    score = jax.jit(functools.partial(faithfulness.saco, logits_fn, baseline=0.0, **options))
    return np.asarray(score(IMAGES, relevance))


@pytest.mark.parametrize("groups", [16, 8, 5])
def test_saco_of_the_drops_is_1_and_of_their_negation_minus_1(groups):
    whole = jax.nn.softmax(logits_fn(IMAGES[:1]))[0, 1]
    drops = whole - jax.nn.sigmoid((EFFECTS.sum() - EFFECTS) / 4)
    np.testing.assert_allclose(saco(drops, groups=groups), 1, atol=1e-6)
    np.testing.assert_allclose(saco(-drops, groups=groups), -1, atol=1e-6)


def test_saco_of_random_maps_is_0_within_two_standard_errors():
    found = saco(RNG.random((40, 4, 4), np.float32))
    assert abs(found.mean()) < 2 * found.std(ddof=1) / len(found) ** 0.5
    np.testing.assert_array_equal(saco(np.ones((4, 4))), 0)
    with pytest.raises(ValueError, match="groups is 17, not in 2 to 16"):
        saco(EFFECTS, groups=17)


def test_saco_weighs_pairs_by_their_difference_in_relevance():
    """Two groups of 2 x 1 parts of which the map confuses the order of the last two."""

    def two_classes(images):
        logit = images[:, 0, :, 0] @ jnp.array([3.0, 2.0, 1.0])
        return jnp.stack([jnp.zeros_like(logit), logit], 1)

    images, relevance = np.ones((1, 1, 3, 1), np.float32), np.float32([[[5, 1, 2]]])
    found = faithfulness.saco(two_classes, images, relevance, 0.0, groups=3)
    np.testing.assert_allclose(found, (3 + 4 - 1) / (3 + 4 + 1), rtol=1e-6)


@pytest.mark.parametrize(("parts", "groups"), [(4, 4), (16, 8), (64, 8), (196, 7), (121, 10)])
def test_groups_leave_few_parts_over(parts, groups):
    assert faithfulness.number_of_groups(parts) == groups


def test_weights_are_shuffled_within_each_array():
    kernel = np.arange(12.0).reshape(3, 4)
    variables = {"params": {"a": {"kernel": kernel}}, "batch_stats": {"a": {"mean": kernel}}}
    found = faithfulness.shuffle_weights(variables)
    assert found["batch_stats"] is variables["batch_stats"]
    shuffled = np.asarray(found["params"]["a"]["kernel"])
    assert shuffled.shape == (3, 4) and (shuffled != kernel).any()
    np.testing.assert_array_equal(np.sort(shuffled.ravel()), kernel.ravel())


def test_rank_correlation_by_hand():
    maps = np.array([[[1, 2], [3, 4]], [[1, 2], [3, 4]], [[1, 2], [3, 4]], [[5, 5], [5, 5]]])
    others = np.array([[[0, 10], [20, 90]], [[4, 3], [2, 1]], [[2, 1], [4, 3]], [[5, 5], [5, 5]]])
    found = faithfulness.rank_correlation(maps, others)
    np.testing.assert_allclose(found, [1, -1, 0.6, 1])
    assert faithfulness.rank_correlation(maps[:1], others[3:]) == 0


def test_a_method_that_ignores_the_weights_is_not_chosen():
    def scored(saco, error=0.01, randomised=0.1):
        return {"saco": {"auc": saco, "gain": saco, "gain_error": error}, "randomised": randomised}

    chance = {"saco": {"auc": 0.0, "gain": 0.0, "gain_error": 0.0}}
    found = {"edges": scored(0.9, randomised=0.8), "good": scored(0.5), "poor": scored(0.1)}
    assert scores.choose_method(found | {"random": chance}) == "good"
    assert scores.choose_method({"noisy": scored(0.1, error=0.06), "random": chance}) is None
