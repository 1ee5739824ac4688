"""Mimetic initialisation has the kernel products of its paper, and runs train from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config as settings
from vit_jax import models
from vit_jax.config.rules import validate
from vit_jax.models.initialization import (
    ORDER,
    POSITIONS,
    draw_target,
    impulse_parameters,
    mimetic_kernels,
)
from vit_jax.pretrained import flat_weights
from vit_jax.runtime.errors import UserError


def shapes_of(**options):
    model_config = settings.get_config().model.to_dict()
    model_config |= dict(patch_size=4, hidden_size=64, depth=2, num_heads=4, mlp_dim=64) | options
    model = models.build(model_config, num_classes=3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return {path: x.shape for path, x in flat_weights(shapes["params"], {}).items()}


@pytest.mark.parametrize(
    ("attention", "layer"),
    [
        ("softmax", "MultiHeadDotProductAttention_0"),
        ("differential", "MultiHeadDifferentialAttention_0"),
    ],
)
def test_products_are_those_of_the_paper(attention, layer):
    shapes = shapes_of(attention=attention)
    drawn = mimetic_kernels(shapes, seed=3)
    assert len(drawn) == 2 * 4
    block = f"Transformer/encoderblock_0/{layer}"
    kernels = {name: drawn[f"{block}/{name}/kernel"] for name in ("query", "key", "value", "out")}
    for name, kernel in kernels.items():
        assert kernel.shape == shapes[f"{block}/{name}/kernel"]
        assert kernel.dtype == np.float32
    product = kernels["value"].reshape(64, 64) @ kernels["out"].reshape(64, 64)
    rng = np.random.default_rng((3, 0))
    rng.normal(size=(kernels["query"].shape[1], 64, 64))  # query-key products are drawn first
    np.testing.assert_allclose(product, draw_target(rng, (64, 64), 0.4, -0.4), atol=1e-5)
    assert np.mean(np.diag(product)) == pytest.approx(-0.4, abs=0.05)
    maps = np.einsum("dhk,ehk->hde", kernels["query"], kernels["key"])
    diagonal = np.abs(np.einsum("hdd->hd", maps)).mean()
    assert diagonal > 3 * np.abs(maps).mean()
    other = mimetic_kernels(shapes, seed=4)
    assert not np.allclose(other[f"{block}/out/kernel"], kernels["out"])


@pytest.mark.parametrize("heads", [1, 4])
def test_impulse_heads_attend_to_their_neighbour(heads):
    shapes = shapes_of(pool="mean", num_heads=heads) | {POSITIONS: (1, 16, 64)}  # a grid of 4 x 4
    drawn = impulse_parameters(shapes, seed=3)
    assert {path: array.shape for path, array in drawn.items()} == {
        path: shapes[path] for path in drawn
    }
    table = drawn[POSITIONS][0]
    assert table.std() == pytest.approx(18 * 0.02, rel=0.1)
    normal = (table - table.mean(-1, keepdims=True)) / table.std(-1, keepdims=True)
    block = "Transformer/encoderblock_1/MultiHeadDotProductAttention_0"
    for head in range(heads):
        query, key = (drawn[f"{block}/{name}/kernel"][:, head] for name in ("query", "key"))
        assert np.linalg.norm(query) == pytest.approx(7) == np.linalg.norm(key)
        scores = (normal @ query) @ (normal @ key).T
        down, right = (step - 1 for step in divmod(ORDER[head], 3))
        for y in (1, 2):  # inner patches have all neighbours
            for x in (1, 2):
                wanted = 4 * (y + down) + x + right
                assert scores[4 * y + x].argmax() == wanted, (head, y, x)
    mimetic = mimetic_kernels(shapes, seed=3)
    for name in ("value", "out"):
        path = f"{block}/{name}/kernel"
        np.testing.assert_array_equal(drawn[path], mimetic[path])


def test_impulse_needs_a_table_of_positions_without_class_token():
    keys = {"model.size": "Ti/4", "model.init": "impulse", "train.steps": 1}
    config = settings.resolve(settings.with_overrides(settings.get_config(), keys, "a test"))
    with pytest.raises(UserError, match="model.init=impulse needs model.pos_embed=learned_1d"):
        validate(config)
    config.model.pool = "mean"
    validate(config)
