"""Preprocessing of evaluation images in other projects, as settings of `config.data`."""

import math
import pathlib
import re
from typing import Any

from vit_jax.config import resized_side
from vit_jax.pretrained.tables import CLIP, HALVES, IMAGENET
from vit_jax.runtime.errors import UserError

# Pillow's numbers, in preprocessor_config.json.
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_TIMM_MODES = {"center": "shorter_side", "squash": "squash"}
_CROP = 0.875  # 224 of 256 pixels
# {model_type of transformers: class of its image processor, and the preprocessing of its published
# weights: mean and std, fraction of the centre crop, resize mode and interpolation}.
_MODEL_TYPES = {
    "vit": ("ViT", HALVES, 1.0, "squash", "bilinear"),
    **dict.fromkeys(("vit_mae", "vit_msn", "ijepa"), ("ViT", IMAGENET, 1.0, "squash", "bilinear")),
    "deit": ("DeiT", IMAGENET, _CROP, "squash", "bicubic"),
    **dict.fromkeys(
        ("dinov2", "dinov2_with_registers"), ("Bit", IMAGENET, _CROP, "shorter_side", "bicubic")
    ),
    **dict.fromkeys(("clip", "clip_vision_model"), ("CLIP", CLIP, 1.0, "shorter_side", "bicubic")),
    **dict.fromkeys(
        ("siglip", "siglip_vision_model"), ("Siglip", HALVES, 1.0, "squash", "bicubic")
    ),
    **dict.fromkeys(
        ("siglip2", "siglip2_vision_model"), ("Siglip2", HALVES, 1.0, "squash", "bilinear")
    ),
}

_VIT = {
    "size": {"height": 224, "width": 224},
    "resample": RESAMPLE["bilinear"],
    "do_center_crop": False,
    "crop_size": 224,
    "image_mean": HALVES["data.mean"],
    "image_std": HALVES["data.std"],
}
_CLIP = {
    "size": {"shortest_edge": 224},
    "resample": RESAMPLE["bicubic"],
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": CLIP["data.mean"],
    "image_std": CLIP["data.std"],
}
# {class of an image processor of transformers: its defaults}.
_PROCESSORS = {
    "ViT": _VIT,
    "DeiT": _VIT
    | {
        "size": {"height": 256, "width": 256},
        "resample": RESAMPLE["bicubic"],
        "do_center_crop": True,
    },
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Siglip": _VIT | {"resample": RESAMPLE["bicubic"]},
    "Siglip2": _VIT,  # with images of another shape: they are squashed here
}


def usual(name: str, settings: dict, project: str | None = None) -> dict:
    """Look up the preprocessing of most models, for files that do not record it.

    Args:
      name: the format.
      settings: those that the arrays record.
      project: "big_vision"; "official" for files of DeiT, DINO, DINOv2 or MAE in their own names;
        "open_clip" for timm's names in a file of open_clip; or a model_type of transformers.
    """
    size, is_clip = settings["data.image_size"], settings.get("model.pre_norm")
    types = {"hf": "vit", "hf_dinov2": "dinov2", "open_clip": "clip"}
    model_type = project or types.get(name)
    if name == "hf_clip" and not project:
        model_type = "clip" if is_clip else "siglip"
    if model_type in _MODEL_TYPES:
        _, statistics, *how = _MODEL_TYPES[model_type]
        return statistics | _settings(*how)
    statistics = HALVES
    crop, mode, interpolation = 1.0, "shorter_side", "bicubic"
    shape = settings.get("model.hidden_size"), settings.get("model.patch_size")
    if name in ("torchvision", "resnet18") or project == "official":
        statistics = IMAGENET
    if settings.get("model.stem") == "cifar":
        mode = "fit"
    elif project == "official":
        crop = _CROP
    elif name == "timm":
        statistics = CLIP if is_clip else HALVES
        mode = "squash" if project == "open_clip" and not is_clip else "shorter_side"  # SigLIP
        crop = 0.9 if size < 384 and not is_clip and not project else 1.0
    elif name == "npz" and (project != "big_vision" or settings["model.pool"] == "map"):
        mode, interpolation = "squash", "bilinear"
    elif name == "npz":  # big_vision's resize_small averages areas
        crop = crop_fraction(384, 448) if size >= 384 else crop_fraction(224, 256)
        interpolation = "box"
    elif size < 384 and shape != (1280, 14):  # of torchvision, whose others are SWAG's
        # ViT_L_16_Weights.IMAGENET1K_V1 resizes to 242 pixels, all others to 256.
        crop, interpolation = crop_fraction(224, 242 if shape == (1024, 16) else 256), "bilinear"
    return statistics | _settings(crop, mode, interpolation)


def _settings(crop, mode, interpolation):
    return {
        "data.eval_crop": crop,
        "data.resize_mode": mode,
        "data.interpolation": interpolation,
    }


def crop_fraction(crop: int, resized: int) -> float:
    """Compute the fraction `data.eval_crop` of a crop from an image resized to this side."""
    return math.floor(1e4 * crop / resized) / 1e4  # rounded down: `resized_side` rounds down too


def read_timm(cfg: dict) -> dict:
    """Read the `pretrained_cfg` of timm, with the defaults of timm.data.resolve_data_config."""
    if not cfg:
        return {}
    mode = cfg.get("crop_mode") or "center"
    interpolation = cfg.get("interpolation") or "bicubic"
    return _settings(cfg.get("crop_pct") or 0.875, _TIMM_MODES.get(mode, mode), interpolation)


def write_timm(data) -> dict[str, Any]:
    """Write the entries of `pretrained_cfg` for the settings `config.data`."""
    return {
        "interpolation": data.interpolation,
        "crop_pct": data.eval_crop,
        "crop_mode": "squash" if data.resize_mode == "squash" else "center",
    }


def read_processor(pre: dict, model_type: str | None, path: pathlib.Path) -> dict:
    """Read a preprocessor_config.json of transformers, with the defaults of its class.

    Args:
      pre: its content.
      model_type: of transformers; selects the class if the file does not name it.
      path: of the file, for messages.

    Returns settings, and "processor_side", that of the images.

    Raises:
      UserError: it is unsupported, or lacks an entry and its class is unknown.
    """
    if not pre:
        return {}
    pre = {key: value for key, value in pre.items() if value is not None}
    for key, value in (("do_resize", True), ("do_rescale", True), ("rescale_factor", 1 / 255)):
        if abs(pre.get(key, value) - value) > 1e-6:
            raise UserError(f"{path} has {key}={pre[key]}, which is not supported")
    pre = _complete(pre, model_type, path)
    size = pre["size"]
    mode = "shorter_side" if "shortest_edge" in size else "squash"
    resized = crop = size["shortest_edge"] if mode == "shorter_side" else _square(size)
    if pre["do_center_crop"]:
        crop = _square(pre["crop_size"])
    # Written by `write_processor`, as the quotient of two integers does not determine it.
    fraction = pre.get("crop_pct") or 0
    if not fraction or math.floor(crop / fraction + 1e-9) != resized:
        fraction = crop_fraction(crop, resized)
    names = {number: name for name, number in RESAMPLE.items()}
    found = _settings(fraction, mode, names[pre["resample"]]) | {"processor_side": crop}
    if not pre.get("do_normalize", True):
        return found | {"data.mean": (0.0,), "data.std": (1.0,)}
    statistics = {f"data.{key}": pre[f"image_{key}"] for key in ("mean", "std")}
    return found | {key: tuple(map(float, value)) for key, value in statistics.items()}


def _complete(pre, model_type, path):
    """Add the defaults of the class; a side becomes a dict of sides."""
    kind = pre.get("image_processor_type") or pre.get("feature_extractor_type") or ""
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind)
    kind = kind or _MODEL_TYPES.get(model_type, ("",))[0]
    pre = _PROCESSORS.get(kind, {}) | pre
    needed = ["size", "resample", "do_center_crop"]
    needed += ["crop_size"] if pre.get("do_center_crop") else []
    needed += ["image_mean", "image_std"] if pre.get("do_normalize", True) else []
    if missing := [key for key in needed if key not in pre]:
        listed = f"of {kind}ImageProcessor, whose defaults are" if kind else "of a class that is"
        raise UserError(f"{path} is {listed} not known, and lacks {', '.join(missing)}: add it")
    size = pre["size"]
    if isinstance(size, int):
        is_shorter = kind in ("CLIP", "Bit", "Siglip")
        size = {"shortest_edge": size} if is_shorter else {"height": size, "width": size}
    return pre | {"size": size}


def _square(size):
    height, width = (size, size) if isinstance(size, int) else (size["height"], size["width"])
    if height != width:
        raise ValueError(f"images of {height}x{width} pixels are not square")
    return height


def write_processor(data) -> dict[str, Any]:
    """Write the entries of preprocessor_config.json for the settings `config.data`."""
    size, resized = data.image_size, resized_side(data)
    squashes = data.resize_mode == "squash"
    square = {"height": resized, "width": resized}
    # ViTImageProcessor of transformers 4 neither resizes the shorter side nor crops.
    is_plain = squashes and resized == size
    return {
        "image_processor_type": "ViTImageProcessor" if is_plain else "CLIPImageProcessor",
        "do_convert_rgb": data.channels == 3,
        "do_resize": True,
        "size": square if squashes else {"shortest_edge": resized},
        "resample": RESAMPLE[data.interpolation],
        "do_center_crop": not is_plain,
        "crop_size": {"height": size, "width": size},
        "crop_pct": data.eval_crop,
    }
