"""Exports: every part that timm has is read back; others are refused. See check_exports.py."""

import json

import numpy as np
import pytest
from check_exports import OWN, compute, make
from test_conversions import FOLDERS, convert

from vit_jax import pretrained
from vit_jax.runtime.errors import UserError

OTHER_POOLING = {
    "timm_deit_base_distilled_patch16_224": "cls_dist",
    "transformers_DeiTForImageClassificationWithTeacher": "cls_dist",
    "transformers_Dinov2WithRegistersForImageClassification": "cls_mean",
}
IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)


def exported(weights, kind, folder):
    """Export and convert back; return the weights and the notes."""
    notes = pretrained.export(weights, kind, folder)
    return pretrained.convert(folder / "model.safetensors", {}), notes


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in OTHER_POOLING])
def test_weights_of_every_part_return_from_timm_bit_identical(tmp_path, name):
    weights = convert(name)
    back, notes = exported(weights, "timm", tmp_path / "out")
    assert back.arrays.keys() == weights.arrays.keys()
    for key, array in weights.arrays.items():
        np.testing.assert_array_equal(back.arrays[key], array, key)
    changed = {
        key: value
        for key, value in back.info["settings"].items()
        if key.startswith("model.") and value != weights.info["settings"][key]
    }
    assert changed == ({"model.norm_eps": 1e-6} if "norm_eps=1e-06 instead" in str(notes) else {})


@pytest.mark.parametrize("kind", ["timm", "hf"])
@pytest.mark.parametrize("name", OWN)
def test_models_of_this_project_return_with_the_same_output(tmp_path, name, kind):
    weights = make(**OWN[name])
    settings = weights.info["settings"]
    if kind == "hf" and name != "sinusoidal":
        with pytest.raises(UserError, match="that export does not write model."):
            pretrained.export(weights, kind, tmp_path / "out")
        return
    back, notes = exported(weights, kind, tmp_path / "out")
    np.testing.assert_allclose(
        compute(back, IMAGES), compute(weights, IMAGES), rtol=1e-5, atol=1e-5
    )
    has_table = settings["model.pos_embed"] == "learned_1d"
    assert ("has a table instead of model.pos_embed=" in str(notes)) != has_table


def test_arguments_of_timm_give_the_width_of_the_mlp(tmp_path):
    """Timm truncates the product of ratio and width; SwiGLU's hidden layer includes its gate."""
    for name, width in (("truncated ratio", 488), ("rms", 48)):
        pretrained.export(make(**OWN[name]), "timm", tmp_path / name)
        args = json.loads((tmp_path / name / "config.json").read_text())["model_args"]
        assert int(args["embed_dim"] * args["mlp_ratio"]) == width
    assert int(56 * (488 / 56)) == 487


@pytest.mark.parametrize(
    ("kind", "model", "lacking"),
    [
        ("timm", dict(pos_embed="rope_2d"), "pos_embed=rope_2d"),
        ("timm", dict(patchify="conv_stem"), "patchify=conv_stem"),
        ("timm", dict(attention="lsa"), "attention=lsa"),
        ("timm", dict(pool="seq"), "pool=seq"),
        ("timm", dict(pool="map", mlp="swiglu"), "mlp=swiglu"),
        ("timm", dict(head_dim=4), "head_dim=4"),
        ("hf", dict(layer_scale_init=1e-5), "layer_scale_init=1e-05"),
        ("npz", dict(num_registers=1), "num_registers=1"),
    ],
)
def test_parts_that_a_format_lacks_are_named(tmp_path, kind, model, lacking):
    with pytest.raises(UserError, match=f"that export does not write model.{lacking}"):
        pretrained.export(make(**model), kind, tmp_path / "out.npz")


@pytest.mark.parametrize("name", OTHER_POOLING)
def test_pooling_of_several_tokens_is_not_exported(tmp_path, name):
    with pytest.raises(UserError, match=f"does not write model.pool={OTHER_POOLING[name]}"):
        pretrained.export(convert(name), "timm", tmp_path / "out")
