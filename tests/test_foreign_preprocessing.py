"""Preprocessing of weights from other projects, read from their files or assumed."""

import json
import shutil

import golden_files
import pytest
import safetensors.numpy
from golden_files import GOLDEN

import vit_jax
from vit_jax import pretrained
from vit_jax.config import PREPROCESSING
from vit_jax.pretrained import architectures, files
from vit_jax.pretrained.preprocessing import usual
from vit_jax.runtime.errors import UserError

ZOO = GOLDEN / "zoo"
HALVES, IMAGENET, CLIP = (0.5,), (0.485, 0.456, 0.406), (0.48145466, 0.4578275, 0.40821073)
STDS = {HALVES: (0.5,), IMAGENET: (0.229, 0.224, 0.225), CLIP: (0.26862954, 0.26130258, 0.27577711)}


def copy(tmp_path, name, **config):
    """Copy a model of the zoo; return its weight file and the options that no file records."""
    folder = tmp_path / "w"
    shutil.copytree(ZOO / name, folder)
    if config:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | config))
    options = json.loads((folder / "given.json").read_text())["options"]
    path = next(p for p in folder.iterdir() if p.name in ("model.safetensors", "model.npz"))
    return path, pretrained.settings_of(options)


def preprocessing_of(settings):
    """Select (mean, fraction of the crop, resize mode, interpolation); check the std."""
    assert settings["data.std"] == STDS[settings["data.mean"]]
    return tuple(settings[key] for key in ("data.mean", *sorted(PREPROCESSING)))


# {folder: mean, fraction of the centre crop, interpolation and resize mode}.
ASSUMED = {
    "transformers_DeiTForImageClassificationWithTeacher": (IMAGENET, 0.875, "bicubic", "squash"),
    "transformers_ViTMAEForPreTraining": (IMAGENET, 1.0, "bilinear", "squash"),
    "transformers_IJepaForImageClassification": (IMAGENET, 1.0, "bilinear", "squash"),
    "transformers_Dinov2WithRegistersForImageClassification": (
        *(IMAGENET, 0.875, "bicubic", "shorter_side"),
    ),
    "transformers_CLIPModel": (CLIP, 1.0, "bicubic", "shorter_side"),
    "transformers_Siglip2VisionModel": (HALVES, 1.0, "bilinear", "squash"),
    "official_DINOv2_with_registers": (IMAGENET, 0.875, "bicubic", "shorter_side"),
    "open_clip_ViT_B_16": (CLIP, 1.0, "bicubic", "shorter_side"),
    "timm_vit_base_patch16_clip_quickgelu_224": (CLIP, 1.0, "bicubic", "shorter_side"),
    "timm_vit_base_patch16_siglip_224": (HALVES, 0.9, "bicubic", "shorter_side"),
    "big_vision_SigLIP": (HALVES, 1.0, "bilinear", "squash"),
}


@pytest.mark.parametrize("name", ASSUMED)
def test_preprocessing_that_no_file_records_is_that_of_the_project(tmp_path, name):
    path, given = copy(tmp_path, name)
    info = pretrained.convert(path, given).info
    assert preprocessing_of(info["settings"]) == ASSUMED[name]
    assert {"data.mean", "data.std", *PREPROCESSING} <= set(info["assumed"])


@pytest.mark.parametrize(
    ("name", "width", "patch", "size", "expected"),
    [
        ("torchvision", 768, 16, 224, (0.875, "bilinear")),
        ("torchvision", 1024, 16, 224, (0.9256, "bilinear")),  # 224 of 242
        ("torchvision", 1280, 14, 224, (1.0, "bicubic")),  # SWAG_LINEAR
        ("torchvision", 768, 16, 384, (1.0, "bicubic")),  # SWAG_E2E
        ("npz", 1024, 16, 224, (0.875, "box")),
        ("npz", 1024, 16, 384, (0.8571, "box")),  # 384 of 448
    ],
)
def test_preprocessing_of_torchvision_and_big_vision(name, width, patch, size, expected):
    settings = {"model.hidden_size": width, "model.patch_size": patch, "data.image_size": size}
    found = usual(name, settings | {"model.pool": "mean"}, "big_vision" if name == "npz" else None)
    assert preprocessing_of(found)[1:] == (*expected, "shorter_side")


def test_msn_has_the_mean_of_imagenet_and_vit_that_of_google(tmp_path):
    for model_type, mean in (("vit_msn", IMAGENET), ("vit", HALVES)):
        name = "transformers_DeiTForImageClassificationWithTeacher"
        path, given = copy(tmp_path / model_type, name, model_type=model_type)
        found = pretrained.convert(path, given).info["settings"]
        assert preprocessing_of(found) == (mean, 1.0, "bilinear", "squash")


def test_official_files_are_recognised_by_their_names(tmp_path):
    path, _ = copy(tmp_path, "timm_vit_base_patch16_siglip_224")
    path.with_name("config.json").unlink()
    given = {"model.num_heads": 2, "model.gelu": "erf", "data.image_size": 12}
    for name, mean in (("mae_pretrain_vit_base", IMAGENET), ("weights", HALVES)):
        path = path.rename(path.with_name(f"{name}.safetensors"))
        assert pretrained.convert(path, given).info["settings"]["data.mean"] == mean


def test_siglip_of_open_clip_is_squashed(tmp_path):
    path, given = copy(tmp_path, "timm_vit_base_patch16_siglip_224")
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({f"visual.trunk.{k}": x for k, x in arrays.items()}, path)
    found = pretrained.convert(path, given).info["settings"]
    assert preprocessing_of(found) == (HALVES, 1.0, "bicubic", "squash")


@pytest.mark.parametrize(
    ("name", "width", "mean", "crop", "mode"),
    [
        ("vit_large_patch14_clip_224.laion2b", 1024, HALVES, None, None),
        ("vit_large_patch14_clip_336.laion2b_ft_in1k", 1024, HALVES, None, "squash"),
        ("vit_large_patch14_clip_336.openai", 1024, CLIP, None, None),
        ("vit_large_patch14_clip_224.datacompxl", 1024, CLIP, None, None),
        ("vit_large_patch14_clip_224", 1024, HALVES, None, None),  # .laion2b_ft_in12k_in1k
        ("vit_huge_patch14_clip_378.metaclip2_worldwide", 1280, CLIP, None, "squash"),
        ("vit_base_patch16_clip_224.openai", 768, CLIP, 0.9, None),
        ("vit_base_patch16_clip_224.openai_ft_in12k_in1k", 768, CLIP, 0.95, None),
        ("vit_base_patch16_clip_384.laion2b_ft_in1k", 768, CLIP, None, "squash"),
        ("vit_base_patch32_clip_224.laion2b_ft_in1k", 768, CLIP, 0.9, None),
        ("vit_base_patch32_clip_384.laion2b_ft_in12k_in1k", 768, CLIP, None, None),
        ("vit_base_patch16_plus_clip_240.laion400m_e32", 896, CLIP, 1.0, None),
        ("vit_medium_patch16_clip_224.tinyclip_yfcc15m", 512, CLIP, 0.9, None),
        ("vit_base_patch16_siglip_512.v2_webli", 768, None, 0.9, None),
        ("vit_so400m_patch14_siglip_gap_378.webli_ft_in1k", 1152, None, 1.0, "squash"),
        ("vit_base_patch16_224_miil.in21k", 768, (0.0,), 0.875, None),
        ("vit_base_patch16_224.orig_in21k", 768, None, None, None),  # 0.5, assumed
        ("vit_base_patch16_224.mae", 768, IMAGENET, None, None),
        ("vit_huge_patch14_gap_224.in1k_ijepa", 1280, IMAGENET, None, None),
        ("deit3_base_patch16_224.fb_in22k_ft_in1k", 768, IMAGENET, 1.0, None),
        ("deit_base_patch16_384.fb_in1k", 768, IMAGENET, 1.0, None),
        ("vit_base_patch14_reg1_tipsv2.webli", 768, (0.0,), 1.0, None),
        ("vit_medium_patch16_reg4_gap_256.sbb_in1k", 512, None, 0.95, None),
        ("vit_medium_patch16_gap_384.sw_in12k_ft_in1k", 512, None, 0.95, "squash"),
    ],
)
def test_preprocessing_of_names_in_the_registry_of_timm(name, width, mean, crop, mode):
    """Of None, `preprocessing.usual` assumes what the registry has."""
    found = architectures.facts([name], width)
    keys = ("data.mean", "data.eval_crop", "data.resize_mode")
    assert tuple(map(found.get, keys)) == (mean, crop, mode)
    assert found["model.num_heads"] == width // (
        72 if width == 1152 else 80 if width == 1280 else 64
    )


def test_preprocessing_of_resnets_in_the_registry_of_timm(tmp_path):
    path = golden_files.copy(tmp_path, "resnet18/model.safetensors")
    for name, expected in (
        ("resnet18-f37072fd", (224, 0.875, "bilinear")),
        ("resnet18.a1_in1k", (224, 0.95, "bicubic")),
        ("resnet18.a3_in1k", (160, 0.95, "bicubic")),
        ("resnet18.gluon_in1k", (224, 0.875, "bicubic")),
    ):
        path = path.rename(path.with_name(f"{name}.safetensors"))
        found = pretrained.convert(path, {}).info["settings"]
        keys = ("data.image_size", "data.eval_crop", "data.interpolation")
        assert tuple(map(found.get, keys)) == expected, name


def test_assumed_settings_are_printed_once_where_a_file_is_read(tmp_path, capsys):
    path, _ = copy(tmp_path, "transformers_Siglip2VisionModel")
    pretrained.read_info(path)  # as of init_from
    pretrained.load_once(path)
    line = capsys.readouterr().out
    assert line.startswith(f"note: {path} does not record all settings; assumed: ")
    assert "data.mean=(0.5,)" in line and "data.resize_mode=squash" in line
    assert line.count("\n") == 1
    vit_jax.load_model(path)
    assert capsys.readouterr().out == line
    processor = {"image_processor_type": "SiglipImageProcessor"}
    path.with_name("preprocessor_config.json").write_text(json.dumps(processor))
    vit_jax.load_model(path)
    assert capsys.readouterr().out == ""


# defaults of the classes of transformers


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, (HALVES, 1.0, "bilinear", "squash")),
        ({"image_processor_type": "ViTImageProcessorFast"}, (HALVES, 1.0, "bilinear", "squash")),
        ({"image_processor_type": "DeiTImageProcessor"}, (HALVES, 0.875, "bicubic", "squash")),
        ({"feature_extractor_type": "DeiTFeatureExtractor"}, (HALVES, 0.875, "bicubic", "squash")),
        ({"image_processor_type": "CLIPImageProcessor"}, (CLIP, 1.0, "bicubic", "shorter_side")),
        ({"image_processor_type": "BitImageProcessor"}, (CLIP, 1.0, "bicubic", "shorter_side")),
        ({"image_processor_type": "SiglipImageProcessor"}, (HALVES, 1.0, "bicubic", "squash")),
        ({"image_processor_type": "Siglip2ImageProcessor"}, (HALVES, 1.0, "bilinear", "squash")),
        (
            {"image_processor_type": "BitImageProcessor", "size": 256, "resample": 2},
            (CLIP, 0.875, "bilinear", "shorter_side"),
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": 256, "do_center_crop": None},
            (CLIP, 0.875, "bicubic", "shorter_side"),
        ),
        ({"size": 256, "do_normalize": True}, (CLIP, 0.875, "bicubic", "shorter_side")),
    ],
)
def test_a_processor_has_the_defaults_of_its_class(tmp_path, entries, expected):
    path = tmp_path / "model.safetensors"
    path.with_name("config.json").write_text(json.dumps({"model_type": "dinov2"}))
    path.with_name("preprocessor_config.json").write_text(json.dumps(entries))
    assert preprocessing_of(files.read_side_settings(path)) == expected
    # transformers 5 writes the processors of images and text to one file.
    path.with_name("preprocessor_config.json").unlink()
    both = {"image_processor": entries, "processor_class": "CLIPProcessor"}
    path.with_name("processor_config.json").write_text(json.dumps(both))
    assert preprocessing_of(files.read_side_settings(path)) == expected


def test_a_processor_of_an_unknown_class_must_be_complete(tmp_path):
    path = tmp_path / "model.safetensors"
    pre = {"image_processor_type": "OtherImageProcessor", "size": {"height": 32, "width": 32}}
    pre |= {"do_center_crop": False, "image_mean": [0.5], "image_std": [0.5]}
    path.with_name("preprocessor_config.json").write_text(json.dumps(pre))
    with pytest.raises(UserError, match="of OtherImageProcessor, whose defaults .* lacks resample"):
        files.read_side_settings(path)
    path.with_name("preprocessor_config.json").write_text(json.dumps(pre | {"resample": 3}))
    found = files.read_side_settings(path)
    assert preprocessing_of(found) == (HALVES, 1.0, "bicubic", "squash")
    path.with_name("preprocessor_config.json").write_text(json.dumps({"size": 32}))
    with pytest.raises(UserError, match="of a class that is not known, and lacks resample, do_cen"):
        files.read_side_settings(path)
