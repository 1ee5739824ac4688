"""Weights of further architectures: the activations of their libraries, read from their files."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import zoo
from golden_files import GOLDEN
from tiny_runs import run_configs
from tiny_weights import save_weights

import vit_jax
from vit_jax import config as settings
from vit_jax import pretrained
from vit_jax.pretrained import architectures, files
from vit_jax.runtime.errors import UserError
from vit_jax.training.variants import make_variants

ZOO = GOLDEN / "zoo"
FOLDERS = [folder.name for folder in zoo.folders(ZOO)]


def file_of(name):
    return zoo.file_of(ZOO / name)


def convert(name, **more):
    return zoo.convert(ZOO / name, **more)


@pytest.mark.parametrize("name", FOLDERS)
def test_stages_equal_those_of_the_library(name):
    golden = np.load(ZOO / name / "golden.npz")
    found = zoo.compute(convert(name), golden["images"])
    for stage, array in zip(("embedding", "blocks", "output"), found, strict=True):
        np.testing.assert_allclose(array, golden[stage], rtol=0, atol=1e-5, err_msg=stage)
        assert golden[stage].std() > 0.1


# {folder: settings that its arrays or config.json record}
PARTS = {
    "timm_deit_base_distilled_patch16_224": {"pool": "cls_dist", "num_registers": 1},
    "timm_deit3_small_patch16_224": {"pool": "cls", "layer_scale_init": 1e-5},
    "timm_test_vit4": {"norm": "rms", "pool": "mean", "num_registers": 1, "fc_norm": True},
    "timm_vit_giant_patch14_reg4_dinov2": {"mlp": "swiglu", "mlp_dim": 32, "num_registers": 4},
    "timm_vit_base_patch16_clip_quickgelu_224": {"pre_norm": True, "gelu": "quick"},
    "timm_vit_base_patch16_siglip_224": {"pool": "map"},
    "timm_vit_base_patch16_224__avgmax": {"pool": "avgmax", "class_token": True, "fc_norm": True},
    "transformers_Dinov2WithRegistersForImageClassification": {"pool": "cls_mean"},
    "transformers_CLIPModel": {"gelu": "quick", "norm_eps": 1e-5, "pre_norm": True},
    "transformers_IJepaForImageClassification": {"pool": "mean", "class_token": False},
    "transformers_Siglip2VisionModel": {"pool": "map", "gelu": "tanh"},
    "official_DINOv2_with_registers": {"num_registers": 4, "layer_scale_init": 1e-5},
    "open_clip_ViT_B_16": {"pre_norm": True, "norm_eps": 1e-5},
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_read_from_the_arrays(name):
    found = convert(name).info["settings"]
    assert {key: found[f"model.{key}"] for key in PARTS[name]} == PARTS[name]


def edited(tmp_path, name, change=lambda arrays: arrays, **config):
    """Copy a golden file with other arrays, and other entries of its config.json."""
    folder = tmp_path / "w"
    shutil.copytree(ZOO / name, folder)
    path = folder / "model.safetensors"
    arrays = change(safetensors.numpy.load_file(path))
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | config))
    return path


def test_text_towers_decoders_and_wrappers_change_nothing(tmp_path):
    def change(arrays):
        kept = {key: x for key, x in arrays.items() if key.startswith("vision_model.")}
        kept["vision_model.embeddings.position_ids"] = np.arange(10)[None]
        return {f"module.{key}": x for key, x in kept.items()}

    found = pretrained.convert(edited(tmp_path, "transformers_CLIPModel", change), {})
    expected = convert("transformers_CLIPModel")
    assert found.info["settings"] == expected.info["settings"]
    for key, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[key], array, key)


def test_weights_without_a_head_may_pool_patches_besides_the_class_token(tmp_path):
    name, pooled = "transformers_Dinov2WithRegistersForImageClassification", {}

    def change(arrays):
        return {key: x for key, x in arrays.items() if not key.startswith("classifier")}

    path = edited(tmp_path, name, change)
    for pool in ("cls", "cls_mean"):
        pooled[pool] = pretrained.convert(path, {"model.pool": pool})
        assert pooled[pool].info["settings"]["model.pool"] == pool
    for key, array in pooled["cls"].arrays.items():
        np.testing.assert_array_equal(pooled["cls_mean"].arrays[key], array, key)
    with pytest.raises(UserError, match="other pooling"):
        pretrained.convert(path, {"model.pool": "mean"})


def test_positions_of_registers_are_added_to_them(tmp_path):
    def change(arrays):
        table = np.ones((1, 5, 16), np.float32)
        return arrays | {"pos_embed": np.concatenate([table, arrays["pos_embed"]], 1)}

    name = "timm_vit_giant_patch14_reg4_dinov2"
    found = pretrained.convert(edited(tmp_path, name, change), {"model.mlp": "swiglu"}).arrays
    expected = convert(name).arrays
    registers, positions = "Transformer/registers", "Transformer/posembed_input/pos_embedding"
    np.testing.assert_allclose(found[registers], expected[registers] + 1, atol=1e-6)
    np.testing.assert_array_equal(found[positions][:, 0], np.ones((1, 16)))
    np.testing.assert_array_equal(expected[positions][:, 0], np.zeros((1, 16)))
    np.testing.assert_array_equal(found[positions][:, 1:], expected[positions][:, 1:])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_small_patch14_dinov2.lvd142m", (384, 6, "erf", "cls", None)),
        ("vit_giant_patch14_reg4_dinov2", (1536, 24, "erf", "cls", None)),
        ("vit_giant_patch14_clip_224", (1408, 16, "erf", "cls", 224)),
        ("vit_base_patch16_clip_quickgelu_224.openai", (768, 12, "quick", "cls", 224)),
        ("deit3_medium_patch16_224", (512, 8, "erf", "cls", 224)),
        ("deit_base_distilled_patch16_384", (768, 12, "erf", "cls", 384)),
        ("vit_so400m_patch14_siglip_384", (1152, 16, "erf", "cls", 384)),
        ("vit_medium_patch16_gap_256", (512, 8, "erf", "mean", 256)),
        ("vit_base_patch16_rpn_224", (768, None, None, None, None)),  # norms elsewhere
        ("vit_base_patch16_rope_224", (768, None, None, None, None)),
    ],
)
def test_names_of_timm(name, expected):
    width, *rest = expected
    found = architectures.facts([name], width)
    keys = ("model.num_heads", "model.gelu", "model.pool", "data.image_size")
    assert [found.get(key) for key in keys] == rest
    imagenet = found.get("data.mean") == (0.485, 0.456, 0.406)
    assert imagenet == ("deit" in name or "dinov2" in name)


def test_a_name_of_dinov2_implies_square_images(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"cls_token": (1, 1, 384), "pos_embed": (1, 10, 384), "norm.weight": (384,)}
    shapes |= {"patch_embed.proj.weight": (384, 3, 2, 2), "patch_embed.proj.bias": (384,)}
    shapes |= {"norm.bias": (384,), "mask_token": (1, 384)}
    block = {"norm1.weight": (384,), "norm1.bias": (384,), "ls1.gamma": (384,)}
    block |= {"attn.qkv.weight": (1152, 384), "attn.qkv.bias": (1152,), "ls2.gamma": (384,)}
    block |= {"attn.proj.weight": (384, 384), "attn.proj.bias": (384,), "norm2.weight": (384,)}
    block |= {"norm2.bias": (384,), "mlp.fc1.weight": (8, 384), "mlp.fc1.bias": (8,)}
    block |= {"mlp.fc2.weight": (384, 8), "mlp.fc2.bias": (384,)}
    shapes |= {f"blocks.0.{key}": shape for key, shape in block.items()}
    arrays = {key: rng.standard_normal(shape).astype("f") for key, shape in shapes.items()}
    path = tmp_path / "vit_small_patch14_dinov2.safetensors"
    safetensors.numpy.save_file(arrays, path)
    model = vit_jax.load_model(path)
    assert model.features(np.zeros((1, 6, 6, 3), np.uint8)).shape == (1, 384)
    assert model.config.data.image_size == 6


REFUSED = [
    ({"layer.0.attention.q_proj.weight": (16, 16)}, "DINOv3 with rotary positions"),
    ({"blocks.0.attn.norm.weight": (16,)}, "further norms in its blocks"),
    ({"attn_pool.pos_embed": (16,)}, "another attention pooling than SigLIP"),
    ({"norm.weight": None}, "no final norm, such as RADIO"),
    ({"blocks.0.attn.q_bias": (16,)}, "is BEiT or EVA, which is not supported"),
    ({"blocks_token_only.0.x": (1,)}, "is CaiT"),
    ({"blocks.0.attn.lambda_q1": (8,)}, "differential attention"),
    ({"blocks.0.attns.0.x": (1,)}, "parallel branches"),
    ({"blocks.0.mlp.fc1_g.weight": (1,)}, "such as AIMv2"),
    ({"blocks.0.attn.rel_pos_h": (1,)}, "relative or rotary positions"),
    ({"pos_embed": None}, "no position embedding, such as DINOv3"),
    ({"blocks.0.attn.proj.bias": None}, "blocks.0.attn.proj.bias is missing"),
    ({"reg_token": (16,)}, "reg_token has the shape"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=str)
def test_what_is_refused_is_named(tmp_path, changes, message):
    def change(arrays):
        new = {k: np.ones(shape, np.float32) for k, shape in changes.items() if shape}
        return {k: v for k, v in (arrays | new).items() if changes.get(k, ()) is not None}

    path = edited(tmp_path, "timm_deit3_small_patch16_224", change)
    with pytest.raises(UserError, match=message) as error:
        pretrained.convert(path, {"model.gelu": "erf"})
    assert "\n" not in str(error.value)


def test_heads_of_unnormalised_tokens_and_text_alone_are_refused(tmp_path):
    def head(arrays):
        return arrays | {"classifier.weight": np.ones((2, 16)), "classifier.bias": np.ones(2)}

    path = edited(tmp_path / "a", "transformers_CLIPModel", head)
    with pytest.raises(UserError, match="is CLIPForImageClassification"):
        pretrained.convert(path, {})

    def text(arrays):
        return {key: x for key, x in arrays.items() if key.startswith("text_model.")}

    path = edited(tmp_path / "b", "transformers_CLIPModel", text)
    with pytest.raises(UserError, match="no array of an image model"):
        pretrained.convert(path, {})


def test_image_towers_of_open_clip_with_other_pooling_are_refused(tmp_path):
    for change, message in (
        (lambda key: "ln_pre" not in key, "is CLIPA or NV-CLIP of open_clip"),
        (lambda key: True, "is CoCa of open_clip"),
    ):
        arrays = safetensors.numpy.load_file(file_of("open_clip_ViT_B_16"))
        kept = {key: x for key, x in arrays.items() if change(key)}
        if "CoCa" in message:
            kept["visual.attn_pool.query"] = np.ones((4, 16), np.float32)
        path = tmp_path / "model.safetensors"
        safetensors.numpy.save_file(kept, path)
        with pytest.raises(UserError, match=message):
            pretrained.convert(path, {"model.num_heads": 2, "model.gelu": "quick"})
    assert "model.pool" in convert("open_clip_ViT_B_16").info["assumed"]


# {model_type of transformers: side of the patches in its default config}.
PATCHES = dict.fromkeys(("vit", "deit", "vit_mae", "vit_msn", "ijepa", "siglip", "siglip2"), 16)
PATCHES |= {"dinov2": 14, "dinov2_with_registers": 16, "clip": 32, "clip_vision_model": 32}


@pytest.mark.parametrize("model_type", PATCHES)
def test_a_config_without_defaults_has_those_of_its_class(tmp_path, model_type):
    path = tmp_path / "model.safetensors"
    content = {"model_type": model_type, "vision_config": {"model_type": model_type}}
    path.with_name("config.json").write_text(json.dumps(content))
    found, patch = files.read_side_settings(path), PATCHES[model_type]
    keys = [f"model.{key}" for key in ("patch_size", "hidden_size", "depth", "num_heads")]
    assert [found[key] for key in keys] == [patch, 768, 12, 12]
    assert found["data.image_size"] == ((256, 256) if model_type == "siglip2" else (224, 224))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("vit_base_patch16_rpn_224.sw_in1k", "norms after its residual branches"),
        ("vit_small_patch16_rope_ape_224", "rotary positions"),
        ("vit_pe_core_base_patch16_224", "rotary positions"),
    ],
)
def test_what_only_a_name_distinguishes_is_refused(tmp_path, name, what):
    path = edited(tmp_path, "timm_deit3_small_patch16_224", architecture=name)
    with pytest.raises(UserError, match=f"is '{name}', a ViT with {what}, which is not"):
        pretrained.convert(path, {"model.gelu": "erf"})


def test_kinds_that_arrays_do_not_record_are_asked_for(tmp_path):
    nameless = edited(tmp_path, "timm_vit_giant_patch14_reg4_dinov2", architecture="")
    for path, option in (
        (nameless, "mlp=swiglu"),
        (file_of("open_clip_ViT_B_16"), "num_heads and gelu=erf|tanh|quick"),
    ):
        with pytest.raises(UserError) as error:
            pretrained.convert(path, {})
        assert f"give {option}, if that is right" in str(error.value)
    with pytest.raises(UserError, match="model.gelu has no effect"):
        convert("timm_vit_giant_patch14_reg4_dinov2", mlp="swiglu", gelu="erf")
    with pytest.raises(UserError, match="has model.mlp=gelu, not swiglu"):
        convert("timm_deit3_small_patch16_224", mlp="swiglu")


def fine_tune(workdir, source):
    """Train a head on digits for two steps; return the folder of the run."""
    keys = {"data.name": "digits", "data.image_size": 0, "train.steps": 2, "freeze": "head"}
    keys |= {"augment.kind": "none", "init_from": str(source)}
    config = settings.with_overrides(settings.get_config(), keys, "a test")
    run_configs(make_variants(config, {}, set()), workdir)
    return next(workdir.glob("*/seed_0"))


def test_runs_start_from_a_file_as_from_its_conversion(tmp_path):
    path = edited(tmp_path, "transformers_Dinov2WithRegistersForImageClassification")
    weights = pretrained.convert(path, {})
    pretrained.save(weights, tmp_path / "converted")
    direct = fine_tune(tmp_path / "direct", path)
    after = fine_tune(tmp_path / "after", tmp_path / "converted")
    found, expected = pretrained.load(direct), pretrained.load(after)
    assert found.info["checksum"] == expected.info["checksum"]
    for key, array in weights.arrays.items():
        assert np.array_equal(found.arrays[key], array) != key.startswith("head/"), key
    sources = [json.loads((run / "config.json").read_text())["data"] for run in (direct, after)]
    assert sources[0]["weights"]["checksum"] == sources[1]["weights"]["checksum"]


def test_a_file_that_needs_options_is_refused_as_initial_weights(tmp_path):
    path = edited(tmp_path, "timm_deit3_small_patch16_224", architecture="")
    with pytest.raises(UserError, match="init_from=.* does not record its GELU: .*vit-jax convert"):
        fine_tune(tmp_path / "run", path)


def test_files_next_to_the_weights_are_read_again_when_they_change(tmp_path):
    path = edited(tmp_path, "transformers_CLIPModel")
    assert pretrained.load_once(path).info["settings"]["data.mean"][0] == 0.48145466
    processor = {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.5, 0.4, 0.3]}
    path.with_name("preprocessor_config.json").write_text(json.dumps(processor))
    assert pretrained.read_info(path)["settings"]["data.mean"] == (0.5, 0.4, 0.3)
    assert pretrained.load_once(path).info["settings"]["data.mean"] == (0.5, 0.4, 0.3)


def test_weights_of_a_folder_are_loaded_again_when_they_change(tmp_path):
    folder = save_weights(tmp_path / "w", model__depth=1)
    first = pretrained.load_once(folder)
    assert pretrained.load_once(folder) is first
    arrays = {path: array + 1 for path, array in first.arrays.items()}
    shutil.rmtree(folder)
    pretrained.save(pretrained.Weights(arrays, first.info), folder)
    second = pretrained.load_once(folder)
    np.testing.assert_array_equal(second.arrays["cls"], first.arrays["cls"] + 1)
    shutil.rmtree(folder)
    named = first.info | {"class_names": ["a", "b", "c"]}
    pretrained.save(pretrained.Weights(arrays, named), folder)
    assert pretrained.load_once(folder).info["class_names"] == ["a", "b", "c"]
