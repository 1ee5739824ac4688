"""Exports: what the formats and this project both have is read back; all else is refused.

check_exports.py compares them with timm and transformers.
"""

import json

import numpy as np
import pytest
import zoo
from check_exports import OWN
from golden_files import GOLDEN

from vit_jax import pretrained
from vit_jax.runtime.errors import UserError

MODELS = {folder.name: folder for folder in zoo.folders(GOLDEN / "zoo")}
OTHER_POOLING = {
    "timm_deit_base_distilled_patch16_224": "cls_dist",
    "transformers_DeiTForImageClassificationWithTeacher": "cls_dist",
    "transformers_Dinov2WithRegistersForImageClassification": "cls_mean",
}
OTHER_EPSILON = (
    "transformers_IJepaForImageClassification",
    "transformers_ViTMAEForPreTraining",
)
IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)


def back_from(weights, kind, folder):
    """Export and convert back; return the weights, the notes and the model settings that differ."""
    path = folder / ("out.npz" if kind == "npz" else "out")
    notes = pretrained.export(weights, kind, path)
    given = {} if kind != "npz" else {"model.gelu": "tanh", "model.norm_eps": 1e-6}
    back = pretrained.convert(path if kind == "npz" else path / "model.safetensors", given)
    before = weights.info["settings"]
    changed = {
        key.removeprefix("model."): value
        for key, value in back.info["settings"].items()
        if key.startswith("model.") and value != before[key]
    }
    return back, notes, changed


@pytest.mark.parametrize("name", [name for name in MODELS if name not in OTHER_POOLING])
def test_weights_of_every_part_return_from_timm_bit_identical(tmp_path, name):
    weights = zoo.convert(MODELS[name])
    back, notes, changed = back_from(weights, "timm", tmp_path)
    assert back.arrays.keys() == weights.arrays.keys()
    for key, array in weights.arrays.items():
        np.testing.assert_array_equal(back.arrays[key], array, key)
    assert changed == ({"norm_eps": 1e-6} if name in OTHER_EPSILON else {})
    assert notes == ["timm uses norm_eps=1e-06 instead of 1e-12"] * (name in OTHER_EPSILON)


IN_TIMM = [name for name, model in OWN.items() if model.get("pool") != "cls_mean"]


@pytest.mark.parametrize("name", IN_TIMM)
def test_models_of_this_project_return_from_timm_with_the_same_output(tmp_path, name):
    weights = zoo.make(**OWN[name])
    back, notes, changed = back_from(weights, "timm", tmp_path)
    found, expected = (zoo.compute(one, IMAGES)[-1] for one in (back, weights))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    kind, patchify = weights.info["settings"]["model.pos_embed"], OWN[name].get("patchify")
    fixed = {} if kind == "learned_1d" else {"pos_embed": "learned_1d"}
    assert notes == [f"the file has a table instead of model.pos_embed={kind}"] * bool(fixed)
    scaled = {"layer_scale_init": 1e-5} if "layer_scale_init" in OWN[name] else {}
    assert changed == fixed | scaled | ({"patchify": "conv"} if patchify else {})


DINOV2 = dict(mlp_dim=32, layer_scale_init=0.1)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (dict(pool="cls_mean", mlp_dim=48), dict(mlp_ratio=3)),
        (DINOV2 | dict(pool="cls_mean"), dict(mlp_ratio=2)),
        (DINOV2, dict(mlp_ratio=2)),
        (dict(mlp="swiglu", num_registers=2), dict(mlp_ratio=2, use_swiglu_ffn=True)),
    ],
)
def test_dinov2_of_transformers_has_the_same_output(tmp_path, model, expected):
    weights = zoo.make(**model)
    back, _, changed = back_from(weights, "hf", tmp_path)
    found, wanted = (zoo.compute(one, IMAGES)[-1] for one in (back, weights))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert changed.keys() <= {"layer_scale_init", "pool"}
    assert back.info["settings"]["model.pool"] == "cls_mean"
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: content[key] for key in expected} == expected
    registers = model.get("num_registers")
    assert content.get("num_register_tokens") == registers
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    assert content["architectures"] == [f"{name}ForImageClassification"]
    assert content["model_type"] == ("dinov2_with_registers" if registers else "dinov2")


@pytest.mark.parametrize("kind", ["hf", "npz"])
@pytest.mark.parametrize("positions", ["none", "learned_2d", "sincos_2d", "sinusoidal"])
def test_positions_and_patches_of_other_formats(tmp_path, positions, kind):
    weights = zoo.make(pos_embed=positions, patchify="manual")
    back, _, changed = back_from(weights, kind, tmp_path)
    found, expected = (zoo.compute(one, IMAGES)[-1] for one in (back, weights))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert changed == {"pos_embed": "learned_1d", "patchify": "conv"}


def test_timm_gets_all_its_arguments(tmp_path):
    """The arrays record most of them, so reading does not check them.

    timm truncates the product of ratio and width; SwiGLU's hidden layer includes its gate.
    """

    def arguments(name):
        pretrained.export(zoo.make(**OWN[name]), "timm", tmp_path / name)
        content = json.loads((tmp_path / name / "config.json").read_text())
        return content["architecture"], content["model_args"]

    usual = {"img_size": 12, "patch_size": 4, "in_chans": 3, "embed_dim": 16, "depth": 2}
    usual |= {"num_heads": 2, "mlp_ratio": 1.5, "qkv_bias": True, "qk_norm": False}
    usual |= {"init_values": None, "class_token": True, "reg_tokens": 0, "no_embed_class": False}
    usual |= {"pre_norm": False, "global_pool": "token", "fc_norm": False, "act_layer": "gelu_tanh"}
    gated = usual | {"mlp_ratio": 3.0, "qk_norm": True, "norm_layer": "rmsnorm", "reg_tokens": 2}
    gated |= {"class_token": False, "global_pool": "avg"}
    del gated["act_layer"]
    assert arguments("rms") == ("vit_giant_patch14_dinov2", gated)
    before = usual | {"pre_norm": True, "reg_tokens": 3}
    assert arguments("pre_norm") == ("vit_base_patch16_clip_224", before)
    both = usual | {"global_pool": "avgmax"}
    assert arguments("learned_2d") == ("vit_base_patch16_224", both)
    _, scaled = arguments("truncated ratio")
    assert scaled["init_values"] == 0.1
    assert int(56 * scaled["mlp_ratio"]) == 488 != int(56 * (488 / 56))


def test_a_gated_mlp_of_another_activation_is_refused(tmp_path):
    pretrained.export(zoo.make(**OWN["rms"]), "timm", tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    content = json.loads(path.read_text())
    content["model_args"]["act_layer"] = "gelu"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="unsupported activation 'gelu': silu"):
        pretrained.convert(path.with_name("model.safetensors"), {})


@pytest.mark.parametrize(
    ("kind", "model", "lacking"),
    [
        ("timm", dict(pos_embed="rope_2d"), "pos_embed=rope_2d"),
        ("timm", dict(patchify="conv_stem"), "patchify=conv_stem"),
        ("timm", dict(attention="lsa"), "attention=lsa"),
        ("timm", dict(pool="seq"), "pool=seq"),
        ("timm", dict(pool="map", mlp="swiglu"), "mlp=swiglu with model.pool=map"),
        ("timm", dict(head_dim=4), "head_dim=4"),
        ("hf", dict(layer_scale_init=1e-5), "mlp_dim=24 with model.hidden_size=16"),
        ("hf", dict(mlp="swiglu", mlp_dim=20), "mlp_dim=20 with model.hidden_size=16"),
        ("hf", dict(pool="cls_mean", norm="rms"), "norm=rms"),
        ("hf", dict(qk_norm=True), "qk_norm=True"),
        ("hf", dict(pool="mean"), "pool=mean"),
        ("npz", dict(num_registers=1), "num_registers=1"),
    ],
)
def test_parts_that_a_format_lacks_are_named(tmp_path, kind, model, lacking):
    with pytest.raises(UserError, match=f"that export does not write model.{lacking}"):
        pretrained.export(zoo.make(**model), kind, tmp_path / "out.npz")


@pytest.mark.parametrize("name", OTHER_POOLING)
def test_pooling_of_several_tokens_is_not_exported(tmp_path, name):
    with pytest.raises(UserError, match=f"does not write model.pool={OTHER_POOLING[name]}"):
        pretrained.export(zoo.convert(MODELS[name]), "timm", tmp_path / "out")


@pytest.mark.parametrize(("channels", "first"), [(3, "patch_embed.proj"), (4, None)])
def test_timm_adapts_the_first_kernel_of_rgb_only(tmp_path, channels, first):
    weights = zoo.make()
    weights.info["settings"] |= {"data.channels": channels, "data.mean": (0.5,), "data.std": (0.2,)}
    kernel = weights.arrays["embedding/kernel"]
    weights.arrays["embedding/kernel"] = np.resize(kernel, (4, 4, channels, 16))
    weights.info["level_range"] = [0.0, 4095.0]
    notes = pretrained.export(weights, "timm", tmp_path / "out")
    assert notes == ["the file cannot record data.level_range=(0.0, 4095.0)"]
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["pretrained_cfg"].get("first_conv") == first
    assert content["model_args"]["in_chans"] == channels
