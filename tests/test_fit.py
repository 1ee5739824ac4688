"""Weights are fitted to models of other image sizes, patch sizes, classes and settings."""

import numpy as np
import pytest
from golden_files import GOLDEN, assert_same, convert
from scipy.ndimage import zoom

from vit_jax import config as settings
from vit_jax import pretrained
from vit_jax.pretrained import formats, tables
from vit_jax.pretrained.resize import resize_matrix, resize_patches, resize_positions
from vit_jax.runtime.errors import UserError


def test_positions_and_patches_are_resized_as_in_their_projects():
    golden = np.load(GOLDEN / "resized.npz")
    for rule in ("timm", "hf"):
        found = resize_positions(golden["table"], 26, True, rule)
        np.testing.assert_allclose(found, golden[rule], atol=2e-6)
    np.testing.assert_allclose(resize_patches(golden["kernel"], 6), golden["kernel_6"], atol=2e-5)
    for old, new in ((3, 5), (14, 24), (24, 14), (4, 1)):
        grid = np.random.default_rng(0).standard_normal((old, old, 2)).astype(np.float32)
        expected = zoom(grid, (new / old, new / old, 1), order=1).reshape(1, new * new, 2)
        found = resize_positions(grid.reshape(1, -1, 2), new * new, False, "official")
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_enlarged_patch_gives_the_same_token():
    rng = np.random.default_rng(0)
    patch, kernel = rng.standard_normal((4, 4, 3)), rng.standard_normal((4, 4, 3, 5))
    matrix = resize_matrix("timm", 6, 4)
    larger = np.einsum("ij,kl,jlc->ikc", matrix, matrix, patch)
    tokens = [
        np.tensordot(p, k, 3) for p, k in ((patch, kernel), (larger, resize_patches(kernel, 6)))
    ]
    np.testing.assert_allclose(tokens[0], tokens[1], atol=1e-5)


def fit(weights, class_names, keep_head=False, **changes):
    """Fit weights to a model that differs in some settings."""
    keys = weights.info["settings"] | {k.replace("__", "."): v for k, v in changes.items()}
    shapes = formats.shapes(keys, len(class_names))
    weights.info["checksum"] = 0
    has_cls = keys.get("model.pool") == "cls"
    return pretrained.fit(weights, shapes, class_names, has_cls, keep_head)


def test_fit_loads_resizes_resets_and_reports():
    names = [f"class {i}" for i in range(7)]
    weights = convert("hf")
    fitted = fit(weights, names)
    assert [row[0] for row in fitted.rows] == ["loaded"]
    assert_same(fitted.arrays, weights.arrays)
    fitted = fit(weights, ["other", *names[1:]], data__image_size=24, model__patch_size=6)
    rows = {what: (paths, why) for what, paths, why in fitted.rows}
    assert set(rows["resized"][0]) == {tables.POSITIONS, "embedding/kernel"}
    assert "Hugging Face" in rows["resized"][1] and "FlexiViT" in rows["resized"][1]
    assert set(rows["reset"][0]) == {"head/bias", "head/kernel"}
    assert rows["reset"][1] == "the class names differ"
    assert fitted.arrays[tables.POSITIONS].shape == (1, 17, 48)
    assert "loaded" in pretrained.table(fitted, "DIR")
    fitted = fit(convert("hf_bare"), ["a", "b"], model__representation_size=0)
    rows = {what: (paths, why) for what, paths, why in fitted.rows}
    assert set(rows["ignored"][0]) == {"pre_logits/bias", "pre_logits/kernel"}
    assert "the weights have no head" in rows["reset"][1]
    weights = convert("npz")  # as if it had the pre-logits layer of 2020
    layer = {"kernel": np.eye(48, dtype=np.float32), "bias": np.zeros(48, np.float32)}
    weights.arrays.update({f"pre_logits/{key}": value for key, value in layer.items()})
    weights.info["settings"]["model.representation_size"] = 48
    fitted = fit(weights, list("abcdefg"), model__representation_size=0)
    assert "lacks the layer before it" in {row[0]: row[2] for row in fitted.rows}["reset"]
    assert [row[0] for row in fit(weights, list("abcdefg"), True).rows] == ["loaded"]


@pytest.mark.parametrize("keep_head", [False, True])
def test_a_head_for_the_same_classes_in_another_order_is_sorted(keep_head):
    weights, names = convert("hf"), [f"class {i}" for i in (3, 0, 1, 2, 6, 5, 4)]
    fitted = fit(weights, names, keep_head)
    for path in ("head/kernel", "head/bias"):
        expected = weights.arrays[path][..., [3, 0, 1, 2, 6, 5, 4]]
        np.testing.assert_array_equal(fitted.arrays[path], expected)
    ((what, paths, note),) = fitted.rows
    assert what == "loaded" and "head/kernel" in paths and "in the dataset's order" in note
    assert fitted.identity != fit(weights, sorted(names), keep_head).identity


def test_mismatched_arrays_are_listed():
    with pytest.raises(UserError, match="encoderblock_2/.* is missing.*"):
        fit(convert("timm"), list("abcdefg"), model__depth=3)
    with pytest.raises(UserError, match="encoderblock_1/.* is not in the model"):
        fit(convert("timm"), list("abcdefg"), model__depth=1)
    with pytest.raises(UserError, match=r"Dense_0/bias has the shape \(96,\) instead of \(64,\)"):
        fit(convert("timm"), list("abcdefg"), model__mlp_dim=64)


def test_settings_of_the_weights_are_adopted_and_contradictions_refused():
    weights = convert("torchvision").info["settings"]
    config = settings.with_overrides(
        settings.get_config(), {"init_from": "w", "data.image_size": 0, "train.epochs": 1.0}, "a"
    )
    found = settings.resolve(config, weights)
    assert (found.model.gelu, found.model.depth, found.data.image_size) == ("erf", 2, 12)
    assert found.data.mean == (0.485, 0.456, 0.406)
    larger = settings.with_overrides(config, {"data.image_size": 24}, "a")
    assert settings.resolve(larger, weights).data.image_size == 24
    for key, value in (("data.mean", (0.4,)), ("model.depth", 3), ("model.size", "S/4")):
        with pytest.raises(UserError, match="contradicts the weights of init_from=w"):
            settings.resolve(settings.with_overrides(config, {key: value}, "a"), weights)
    with pytest.raises(UserError, match="model.gelu=tanh contradicts"):
        settings.resolve(config, weights, {"model.gelu"})
    without = settings.with_overrides(config, {"model.qkv_bias": False}, "a")
    with pytest.raises(UserError, match="model.qkv_bias=False contradicts"):
        settings.resolve(without, weights)
