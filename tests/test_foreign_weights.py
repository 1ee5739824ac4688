"""Weights of other projects are read with what their libraries record, or refused."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from golden_files import GOLDEN, TIMM, copy

from vit_jax import config as settings
from vit_jax import models, pretrained
from vit_jax.models.vit import sincos_2d
from vit_jax.pretrained import architectures, resize, tables
from vit_jax.runtime.errors import UserError


def change(path, **arrays):
    """Replace arrays of a .safetensors file; None removes one."""
    kept = {**safetensors.numpy.load_file(path), **arrays}
    safetensors.numpy.save_file({k: v for k, v in kept.items() if v is not None}, path)
    return path


def configured(path, **content):
    """Write a config.json next to a weight file."""
    path.with_name("config.json").write_text(json.dumps(content))
    return path


def test_what_a_timm_file_does_not_record_is_asked_for(tmp_path):
    file = copy(tmp_path, "timm/model.safetensors")
    for key, option in (
        ("model.num_heads", "num_heads"),
        ("model.gelu", "gelu=erf|tanh|quick"),
        ("model.pool", "pool=cls"),
        ("data.image_size", "image_size=12"),
    ):
        with pytest.raises(UserError) as caught:
            pretrained.convert(file, {k: v for k, v in TIMM.items() if k != key})
        assert f"give {option}, if that is right" in str(caught.value), key
    with pytest.raises(UserError, match="other pooling is not supported"):
        pretrained.convert(file, TIMM | {"model.pool": "mean"})
    tanh = pretrained.convert(file, TIMM | {"model.gelu": "tanh"})
    assert tanh.info["settings"]["model.gelu"] == "tanh"
    with pytest.raises(UserError, match="vit_base_patch16_224 is not a plain ViT of timm with wid"):
        pretrained.convert(file, TIMM | {"architecture": "vit_base_patch16_224"})
    with pytest.raises(UserError, match="unsupported model_args scale_mlp_norm=True"):
        pretrained.convert(configured(file, model_args={"scale_mlp_norm": True}), TIMM)


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("vit_base_patch16_224.augreg_in21k", 768, (12, "erf", "cls", 224)),
        ("vit_base_patch16_gap_224", 768, (16, "erf", "mean", 224)),
        ("vit_base_patch16_siglip_gap_256", 768, (12, "erf", "mean", 256)),
        ("models--timm--deit_tiny_patch16_224.fb_in1k", 192, (3, "erf", "cls", 224)),
        ("vit_base_patch16_224", 48, (None, None, None, None)),
        ("vit_so400m_patch16_siglip_gap_256", 1152, (16, "tanh", "mean", 256)),
        ("vit_so400m_patch16_siglip_gap_256", 768, (None, None, None, None)),
        ("my_weights", 768, (None, None, None, None)),
    ],
)
def test_names_of_timm_complete_a_file(name, width, expected):
    found = architectures.facts([name], width)
    keys = ("model.num_heads", "model.gelu", "model.pool", "data.image_size")
    assert tuple(found.get(key) for key in keys) == expected


def test_what_a_file_of_hugging_face_does_not_record_is_asked_for(tmp_path):
    file = copy(tmp_path, "hf_bare/model.safetensors")
    with pytest.raises(UserError) as caught:
        pretrained.convert(file, {"model.num_heads": 3})
    for option in ("gelu=erf|tanh|quick", "norm_eps=1e-12", "pooler_act=tanh", "image_size=12"):
        assert option in str(caught.value)
    config = json.loads((GOLDEN / "hf_bare" / "config.json").read_text())
    assert pretrained.convert(configured(file, **config), {}).info["num_classes"] == 0
    with pytest.raises(UserError, match="unsupported pooler_act 'gelu'"):
        pretrained.convert(configured(file, **config | {"pooler_act": "gelu"}), {})


def test_a_resnet18_is_not_taken_for_a_resnetblur18(tmp_path):
    file = copy(tmp_path, "resnet18/model.safetensors")
    with pytest.raises(UserError, match="give architecture=resnet18"):
        pretrained.convert(file, {})
    assert pretrained.convert(file, {"architecture": "resnet18"}).info["num_classes"] == 7
    named = file.rename(file.with_name("resnet18-f37072fd.safetensors"))
    assert pretrained.convert(named, {}).info["num_classes"] == 7
    with pytest.raises(UserError, match="is resnetblur18, which is not supported"):
        pretrained.convert(configured(named, architecture="resnetblur18"), {})


def test_heads_of_torchvision_are_not_guessed_for_unknown_widths(tmp_path):
    file = copy(tmp_path, "torchvision/model.safetensors")
    with pytest.raises(UserError, match="does not record its number of attention heads"):
        pretrained.convert(file, {})


@pytest.mark.parametrize("side", [2, 5])
def test_positions_of_torchvision_are_resized_by_its_rule(side):
    golden = np.load(GOLDEN / "resized.npz")
    found = resize.resize_positions(golden["table"], side**2 + 1, True, "torchvision")
    np.testing.assert_allclose(found, golden[f"torchvision_{side}"], atol=2e-6)
    weights = pretrained.convert(
        GOLDEN / "torchvision" / "model.safetensors", {"model.num_heads": 3}
    )
    assert weights.info["resize"] == "torchvision"


def test_a_resnet18_of_timm_is_read_with_its_config(tmp_path):
    file = copy(tmp_path, "resnet18/model.safetensors", "timm_resnet18/config.json")
    weights = pretrained.convert(file, {})
    found, golden = weights.info["settings"], np.load(GOLDEN / "timm_resnet18" / "golden.npz")
    assert (found["model.hidden_size"], found["data.image_size"]) == (4, 224)
    assert (found["data.eval_crop"], found["data.interpolation"]) == (0.95, "bicubic")
    config = settings.with_overrides(settings.get_config(), found, "weights")
    logits = models.build(config.model, 7).apply(weights.variables, golden["images"])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
    content = json.loads(file.with_name("config.json").read_text())
    for wrong, words in (
        ({"num_features": 64}, "belongs to another model"),
        ({"model_args": {"global_pool": "max"}}, "a ResNet18 with max pooling, which is not supp"),
        ({"model_args": {"act_layer": "gelu"}}, "a ResNet18 with GELU, which is not supported"),
    ):
        with pytest.raises(UserError, match=words):
            pretrained.convert(configured(file, **content | wrong), {})


def test_an_exported_npz_has_the_official_names(tmp_path):
    official = np.load(GOLDEN / "npz" / "model.npz")  # read by timm's own loader
    weights = pretrained.convert(GOLDEN / "npz" / "model.npz", {})
    pretrained.export(weights, "npz", tmp_path / "out.npz")
    written = np.load(tmp_path / "out.npz")
    assert set(written.files) == set(official.files)
    for key in official.files:
        np.testing.assert_array_equal(written[key], official[key], key)


def big_vision(tmp_path, **changes):
    """Write the official golden file with big_vision's names and other positions."""
    arrays = {f"params/{key}": array for key, array in np.load(GOLDEN / "npz/model.npz").items()}
    del arrays[f"params/{tables.POSITIONS}"]
    for key, array in changes.items():
        arrays[f"params/{key}"] = array
    np.savez(tmp_path / "model.npz", **arrays)
    return tmp_path / "model.npz"


def test_fixed_positions_of_big_vision(tmp_path):
    file = big_vision(tmp_path)
    with pytest.raises(UserError, match="does not record its image size: give image_size"):
        pretrained.convert(file, {})
    weights = pretrained.convert(file, {"data.image_size": [12]})  # as of --image-size=12
    found = weights.info["settings"]
    assert (found["model.pos_embed"], found["data.image_size"]) == ("sincos_2d", 12)
    table = np.pad(sincos_2d(3, 3, 48), ((1, 0), (0, 0)))[None]
    learned = pretrained.convert(big_vision(tmp_path, pos_embedding=table), {"data.image_size": 12})
    images, outputs = np.load(GOLDEN / "npz" / "golden.npz")["images"], []
    for one in (weights, learned):
        config = settings.with_overrides(settings.get_config(), one.info["settings"], "weights")
        outputs.append(models.build(config.model, 7).apply(one.variables, images))
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_positions_of_other_shapes_than_a_square(tmp_path, capsys):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1, 16, 48)).astype(np.float32)  # without the class token's
    file = big_vision(tmp_path, pos_embedding=table)
    square = pretrained.convert(file, {"data.image_size": 16})
    np.testing.assert_array_equal(square.arrays[tables.POSITIONS][:, 1:], table)
    wide = pretrained.convert(file, {"data.image_size": (8, 32)})
    assert "2x8 patches resized to 4x4" in capsys.readouterr().out
    assert wide.info["settings"]["data.image_size"] == 16
    rows, columns = (resize.resize_matrix("official", 4, n) for n in (2, 8))
    expected = np.einsum("ij,kl,jld->ikd", rows, columns, table.reshape(2, 8, 48))
    found = wide.arrays[tables.POSITIONS][0, 1:].reshape(4, 4, 48)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    timm = copy(tmp_path, "timm/model.safetensors")
    config = {"model_args": {"img_size": [4, 36]}}
    answers = {key: value for key, value in TIMM.items() if key != "data.image_size"}
    pretrained.convert(configured(timm, **config), answers)
    assert "1x9 patches resized to 3x3" in capsys.readouterr().out
    with pytest.raises(UserError, match="has 16 positions, which are not those of 8x8 pixels"):
        pretrained.convert(file, {"data.image_size": 8})


def test_positions_are_resized_by_the_rule_of_the_code_of_the_weights(tmp_path):
    zoo = GOLDEN / "zoo"
    for name, rule in (
        ("transformers_Dinov2WithRegistersForImageClassification", "timm"),
        ("transformers_Siglip2VisionModel", "siglip2"),
        ("transformers_CLIPModel", "hf"),
        ("official_DINOv2_with_registers", "timm"),
    ):
        given = json.loads((zoo / name / "given.json").read_text())["options"]
        weights = pretrained.convert(
            zoo / name / "model.safetensors", pretrained.settings_of(given)
        )
        assert weights.info["resize"] == rule, name
    path = copy(tmp_path, "timm/model.safetensors").rename(tmp_path / "dino_vits16.safetensors")
    assert pretrained.convert(path, TIMM).info["resize"] == "hf"
    path = path.rename(tmp_path / "deit_tiny_patch16_224.fb_in1k.safetensors")  # of timm
    assert pretrained.convert(path, TIMM).info["resize"] == "timm"
    table = np.random.default_rng(0).normal(size=(7, 7, 2)).astype(np.float32)
    for side in (3, 10):
        found = resize.resize_positions(table.reshape(1, 49, 2), side**2, False, "siglip2")
        expected = jax.image.resize(table, (side, side, 2), "linear", antialias=True)
        np.testing.assert_allclose(found.reshape(side, side, 2), expected, atol=1e-6)


def test_positions_are_resized_to_a_given_image_size(tmp_path, capsys):
    """As of DINOv2, whose positions are of 518 pixels, and whose images have 224."""
    name = "zoo/transformers_Dinov2WithRegistersForImageClassification"
    path = copy(tmp_path, f"{name}/model.safetensors", f"{name}/config.json")
    processor = {"size": {"shortest_edge": 10}, "crop_size": 8, "image_processor_type": "Bit"}
    path.with_name("preprocessor_config.json").write_text(json.dumps(processor))
    whole = pretrained.convert(path, {})
    assert whole.info["settings"]["data.image_size"] == 12
    words = "images of 12 pixels, but its processor makes images of 8: give image_size=8"
    assert words in capsys.readouterr().out
    small = pretrained.convert(path, {"data.image_size": 8})
    assert small.info["settings"]["data.image_size"] == 8
    assert capsys.readouterr().out == "position embedding of 3x3 patches resized to 2x2\n"
    expected = resize.resize_positions(whole.arrays[tables.POSITIONS], 5, True, "timm")
    np.testing.assert_allclose(small.arrays[tables.POSITIONS], expected, atol=1e-6)
    with pytest.raises(UserError, match="not those of 8x12 pixels"):
        pretrained.convert(path, {"data.image_size": (8, 12)})


def test_pixels_beyond_the_last_whole_patch_are_cropped(tmp_path):
    """As of SigLIP with patches of 14 pixels and images of 384."""
    name = "zoo/timm_vit_base_patch16_siglip_224"
    path = copy(tmp_path, f"{name}/model.safetensors")
    content = json.loads((GOLDEN / name / "config.json").read_text())
    content["pretrained_cfg"] = {"input_size": [3, 14, 14], "crop_pct": 1.0}
    content["model_args"]["img_size"] = 14
    found = pretrained.convert(configured(path, **content), {}).info["settings"]
    assert (found["data.image_size"], found["data.eval_crop"]) == (12, 0.8571)


def test_the_projection_of_clip_is_no_classifier(tmp_path):
    name = "zoo/timm_vit_base_patch16_clip_quickgelu_224"
    path = copy(tmp_path, f"{name}/model.safetensors", f"{name}/config.json")
    assert pretrained.convert(path, {}).info["num_classes"] == 5
    change(path, **{"head.bias": np.zeros(5, np.float32)})
    assert pretrained.convert(path, {}).info["num_classes"] == 0
    named = pretrained.convert(path, {"class_names": list("abcde")})
    assert named.info["num_classes"] == 5


def test_earlier_forms_of_the_config_of_timm_are_read(tmp_path):
    name = "zoo/timm_deit3_small_patch16_224"
    path = copy(tmp_path, f"{name}/model.safetensors")
    content = {"architecture": "deit3_small_patch16_224", "input_size": [3, 12, 12]}
    content |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8}
    content |= {"interpolation": "bilinear", "labels": list("abcde")}
    given = {"model.num_heads": 2, "model.pool": "cls"}
    weights = pretrained.convert(configured(path, **content), given)
    found = weights.info["settings"]
    assert weights.info["class_names"] == list("abcde")
    assert (found["data.mean"], found["data.eval_crop"]) == ((0.1, 0.2, 0.3), 0.8)
    assert (found["data.interpolation"], found["model.gelu"]) == ("bilinear", "erf")


def test_a_pooler_may_be_replaced_by_class_token_and_mean(tmp_path):
    path = copy(tmp_path, "hf_bare/model.safetensors", "hf_bare/config.json")
    found = pretrained.convert(path, {"model.pool": "cls_mean"}).info["settings"]
    assert (found["model.pool"], found["model.representation_size"]) == ("cls_mean", 0)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("patch_embed.backbone.stem.conv.weight", "a hybrid of ResNet and ViT"),
        ("blocks.0.attn.norm.weight", "further norms in its blocks"),
        ("attn_pool.q_norm.weight", "another attention pooling than SigLIP"),
        ("rope.freqs", "relative or rotary positions"),
        ("layer1.0.conv3.weight", "such as ResNet50"),
        ("stages.0.blocks.0.conv_dw.weight", "another network"),
    ],
)
def test_other_models_are_named(tmp_path, key, what):
    file = copy(tmp_path, "timm/model.safetensors")
    change(file, **{key: np.ones(3, np.float32)})
    with pytest.raises(UserError) as caught:
        pretrained.convert(file, TIMM)
    message = str(caught.value)
    assert what in message and "use plain ViTs" in message and len(message) < 300 + len(str(file))


def test_a_type_of_transformers_a_shard_and_a_hybrid_npz_are_named(tmp_path):
    file = copy(tmp_path, "hf/model.safetensors")
    with pytest.raises(UserError, match="is of the model_type 'dinov3_vit' of transformers"):
        pretrained.convert(configured(file, model_type="dinov3_vit"), {})
    for name in ("model-00001-of-00003.safetensors", "model.safetensors.index.json"):
        shard = tmp_path / name
        shard.write_bytes(b"{}")
        with pytest.raises(UserError, match="belongs to a sharded checkpoint"):
            pretrained.convert(shard, {})
    arrays = dict(np.load(GOLDEN / "npz" / "model.npz")) | {"conv_root/kernel": np.ones(2)}
    np.savez(tmp_path / "R50+ViT-B_16.npz", **arrays)
    with pytest.raises(UserError, match="a hybrid of ResNet and ViT"):
        pretrained.convert(tmp_path / "R50+ViT-B_16.npz", {})


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrapped_modules_are_removed(tmp_path, prefix):
    file = copy(tmp_path, "timm/model.safetensors")
    expected = pretrained.convert(file, TIMM).arrays
    arrays = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({prefix + key: value for key, value in arrays.items()}, file)
    found = pretrained.convert(file, TIMM).arrays
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in found)


def test_refusals_list_a_few_keys_only(tmp_path):
    file = copy(tmp_path, "timm/model.safetensors")
    change(file, **{f"unknown.{i}": np.ones(1, np.float32) for i in range(500)})
    with pytest.raises(UserError, match="and 496 more") as caught:
        pretrained.convert(file, TIMM)
    assert len(str(caught.value)) < 300 + len(str(file))
    weights = pretrained.convert(GOLDEN / "timm" / "model.safetensors", TIMM)
    deeper = pretrained.shapes(weights.info["settings"] | {"model.depth": 12}, 7)
    with pytest.raises(UserError, match=r"and \d+ more") as caught:
        pretrained.fit(weights, deeper, list("abcdefg"), True)
    assert len(str(caught.value)) < 600
