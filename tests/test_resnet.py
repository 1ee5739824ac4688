"""The ResNet18 has the published size, feature maps and arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config as settings
from vit_jax import models
from vit_jax.models import layers


def count(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


def resnet(num_classes=10, **options):
    config = settings.get_config().model.to_dict() | {"name": "resnet18", "hidden_size": 64}
    return models.build(config | options, num_classes)


@pytest.mark.parametrize(
    ("stem", "num_classes", "expected"), [("cifar", 10, 11_173_962), ("imagenet", 1000, 11_689_512)]
)
def test_resnet18_parameter_count(stem, num_classes, expected):
    model = resnet(num_classes, stem=stem)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert count(shapes["params"]) == expected
    norms = 2 * (64 + 2 * 2 * (64 + 128 + 256 + 512) + 128 + 256 + 512)
    assert count(shapes["batch_stats"]) == norms


@pytest.mark.parametrize(
    ("stem", "sides"), [("cifar", [32, 32, 16, 8, 4]), ("imagenet", [16, 8, 4, 2, 1])]
)
def test_resnet18_feature_maps_shrink_as_published(stem, sides):
    model = resnet(hidden_size=8, stem=stem)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    logits, seen = jax.eval_shape(lambda v, x: model.apply(v, x, capture=True), variables, images)
    maps = seen["feature_maps"]
    names = ["stem", "layer1_1", "layer2_1", "layer3_1", "layer4_1"]
    assert [maps[name].shape for name in names] == [
        (2, side, side, width) for side, width in zip(sides, (8, 8, 16, 32, 64), strict=True)
    ]
    assert logits.shape == (2, 10) and seen["features"].shape == (2, 64)


def test_resnet18_statistics_are_updated_in_training_only():
    model = resnet(hidden_size=4)
    images = np.random.default_rng(0).normal(2.0, 3.0, (16, 8, 8, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images)
    _, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
    kernel = variables["params"]["conv1"]["kernel"]
    y = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = changed["batch_stats"]["bn1"]
    np.testing.assert_allclose(found["mean"], 0.1 * y.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * y.var((0, 1, 2)), rtol=1e-4)
    _, changed = model.apply(variables, images, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])


def test_zero_init_makes_blocks_the_identity():
    """The second block of a stage then returns its input."""
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    for zero in (False, True):
        model = resnet(hidden_size=4, zero_init_residual=zero)
        _, seen = model.apply(model.init(jax.random.key(0), images), images, capture=True)
        maps = seen["feature_maps"]
        assert np.array_equal(maps["layer1_0"], maps["layer1_1"]) == zero


def test_resnet18_pads_as_pytorch_does():
    """With stride 2, three pixels of padding on every side; then pooling with one."""
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    model = resnet(hidden_size=4, stem="imagenet")
    variables = model.init(jax.random.key(0), images)
    _, seen = model.apply(variables, images, capture=True)
    kernel = np.asarray(variables["params"]["conv1"]["kernel"])
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)))
    expected = [
        [
            np.einsum("bhwc,hwcd->bd", padded[:, y : y + 7, x : x + 7], kernel)
            for x in range(0, 16, 2)
        ]
        for y in range(0, 16, 2)
    ]
    expected = np.array(expected).transpose(2, 0, 1, 3) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(seen["feature_maps"]["stem"], expected.clip(0), atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [
        ((6, 9, 8, 3), (3, 4), 2),
        ((4, 30, 28, 3), (3, 4), 2),
        ((3, 200, 120, 16), (3, 5), 1),
        ((6, 5, 4, 3), (3, 4), 1),
        ((5, 7, 7, 4), (1, 6), 2),
    ],
)
def test_convolution_has_the_gradients_of_xla(shape, kernel, stride):
    """Chunks of all images, of two and of one, and kernels of a single pixel."""
    size, channels = kernel
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(size, size, shape[-1], channels)).astype(np.float32)

    def gradients(convolve):
        return jax.grad(lambda *args: jnp.tanh(convolve(*args)).mean(), (0, 1))(x, kernel)

    found = gradients(lambda *args: layers.convolve(*args, stride, size // 2))
    expected = gradients(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(size // 2, size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_gradients_of_kernels_are_summed_in_float32():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 16, 16, 8)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 8, 4)), jnp.float32)

    def gradient(dtype):
        def loss(kernel):
            return layers.convolve(x.astype(dtype), kernel.astype(dtype), 1, 1).mean(dtype=float)

        return jax.grad(loss)(kernel)

    exact = gradient(jnp.float32)
    error = jnp.linalg.norm(gradient(jnp.bfloat16) - exact) / jnp.linalg.norm(exact)
    assert error < 0.004  # of bfloat16 operands; summed in bfloat16, it grows with the batch
