"""Explanations of two digits side by side: those of a class point at its digit."""

import functools

import jax
import numpy as np
import optax
import pytest

from vit_jax import config as settings
from vit_jax import models
from vit_jax.data.sources import read_digits
from vit_jax.explanation import attribution, gradients

CLASSES = (0, 1, 4)
GRID = (2, 4)  # of images of 8 x 16 pixels
SMALL = settings.get_config().model.to_dict() | dict(
    patch_size=4, hidden_size=32, depth=2, num_heads=2, mlp_dim=64, head_zero_init=False
)
MODEL = models.build(SMALL, num_classes=len(CLASSES))


def pairs(rng, count):
    """Draw images of two digits of different classes, and the class of each side [count, 2]."""
    pixels, labels = read_digits()
    sides = np.stack([rng.permutation(len(CLASSES))[:2] for _ in range(count)])
    of_class = [np.flatnonzero(labels == digit) for digit in CLASSES]
    chosen = np.vectorize(lambda index: rng.choice(of_class[index]))(sides)
    images = np.concatenate([pixels[chosen[:, 0]], pixels[chosen[:, 1]]], -1)
    return (images[..., None] / 255).astype(np.float32), sides


@pytest.fixture(scope="module")
def trained():
    """Variables of a ViT that detects which digits an image has."""
    images, sides = pairs(np.random.default_rng(0), 2048)
    present = np.eye(len(CLASSES), dtype=np.float32)[sides].sum(1)
    variables = jax.jit(MODEL.init)(jax.random.key(0), images[:1])
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(variables, images, present):
        def step(state, batch):
            def loss(variables):
                logits = MODEL.apply(variables, batch[0] - 0.5)
                return optax.sigmoid_binary_cross_entropy(logits, batch[1]).mean()

            value, found = jax.value_and_grad(loss)(state[0])
            updates, moments = optimizer.update(found, state[1])
            return (optax.apply_updates(state[0], updates), moments), value

        return jax.lax.scan(step, (variables, optimizer.init(variables)), (images, present))

    batches = [a.reshape(32, 64, *a.shape[1:]) for a in (images, present)]
    epochs = (np.concatenate([a] * 5) for a in batches)
    (variables, _), losses = train(variables, *epochs)
    assert losses[-10:].mean() < 0.1
    return variables


TEST, SIDES = pairs(np.random.default_rng(1), 48)


@functools.partial(jax.jit, static_argnums=0)
def maps_of(name, variables, classes):
    def logits_fn(images):
        return MODEL.apply(variables, images - 0.5)

    if name in ("gradient rollout", "Chefer", "rollout"):
        _, seen, found = models.attention_gradients(MODEL, variables, TEST - 0.5, classes)
        return attribution.explanation(name, seen["attention"], found, GRID, True)
    if name == "Grad-CAM":
        found = gradients.token_gradients(MODEL, variables, TEST - 0.5, classes, 1)
        return gradients.grad_cam(*(a[:, 1:].reshape(len(a), *GRID, -1) for a in found))
    if name == "integrated gradients":
        return gradients.integrated_gradients(logits_fn, TEST, classes, GRID, 0.0, 16)
    if name == "RISE":
        return gradients.rise(logits_fn, TEST, classes, GRID, 0.0, 256)
    return gradients.input_x_gradient(logits_fn, TEST, classes, GRID)


def mass_on_own_half(name, variables):
    """Compute the fraction of the positive relevance on the digit of the class, per side [2, n]."""
    fractions = []
    for side in (0, 1):
        maps = np.maximum(maps_of(name, variables, SIDES[:, side]), 0)
        half = maps[:, :, 2 * side : 2 * side + 2].sum((1, 2))
        fractions.append(half / np.maximum(maps.sum((1, 2)), 1e-12))
    return np.stack(fractions)


NAMES = ("gradient rollout", "Chefer", "Grad-CAM", "RISE")
NAMES += ("integrated gradients", "input x gradient")


@pytest.mark.parametrize("name", NAMES)
def test_the_map_of_a_class_is_on_its_digit(name, trained):
    fractions = mass_on_own_half(name, trained)
    assert fractions.mean() > 0.55 and (fractions > 0.5).mean() > 0.6


def test_rollout_has_no_class_and_hence_no_side(trained):
    """The same map for both classes: their fractions add up to 1, so no more than half is right."""
    fractions = mass_on_own_half("rollout", trained)
    np.testing.assert_allclose(fractions.sum(0), 1, atol=1e-5)
    assert fractions.mean() == pytest.approx(0.5, abs=1e-5)
