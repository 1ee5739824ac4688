"""Architectures by name, questions that the arrays of a file leave open, and refusals."""

import pathlib
import re
from collections.abc import Iterable
from typing import Any

from vit_jax.runtime.errors import UserError, truncate_repr

SUPPORTED = "plain ViTs of the official code, timm, Hugging Face and torchvision, and ResNet18"

# {pattern of a key: the model that has it}; the first match is reported.
_UNSUPPORTED = {
    r"(^|\.)text_model\.|logit_scale|(^|/)txt/": "an image-text model such as CLIP or SigLIP",
    r"patch_embed\.backbone\.|^conv_root/|/conv_root/|^block1/": "a hybrid of ResNet and ViT",
    r"\.ls[12]\.gamma$|layer_scale|\.lambda_?1$|\.gamma_1$": "a ViT with LayerScale",
    r"(^|\.)(reg_token|register_tokens)$": "a ViT with register tokens",
    r"(^|\.)attn_pool\.|MAPHead_0|vision_model\.head\.": "a ViT with attention pooling",
    r"(^|\.)(norm_pre|pre_layrnorm)\.": "a ViT with a norm before its blocks, such as CLIP's",
    r"\.[qk]_norm\.": "a ViT with normalised queries and keys",
    r"(^|\.)dist(illation)?_token$": "a distilled DeiT",
    r"relative_position|(^|\.)rope": "a transformer with relative or rotary positions",
    r"(^|\.)decoder": "a masked autoencoder with its decoder",
    r"layer1\.0\.conv3\.": "a ResNet with bottleneck blocks, such as ResNet50",
    r"layer1\.2\.conv1\.": "a deeper ResNet than ResNet18",
    r"(^|\.)(stages|features|downsample_layers)\.\d": "another network, probably convolutional",
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$|\.safetensors\.index\.json$")

# {size: (width, heads)} of timm's plain ViTs.
_SIZES = {
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
    "giant": (1408, 16),
    "gigantic": (1664, 16),
}
# {format: {width: heads}} where a width has a single usual number of heads.
HEADS = {"torchvision": {768: 12, 1024: 16, 1280: 16}}
# {setting: (how it is called, name of the option, what to give)}
_OPTIONS = {
    "model.num_heads": ("number of attention heads", "num_heads", ""),
    "model.gelu": ("GELU", "gelu", "=erf|tanh"),
    "model.norm_eps": ("epsilon of LayerNorm", "norm_eps", "=1e-12"),
    "model.pool": ("pooling", "pool", "=cls"),
    "model.pos_embed": ("position embedding", "pos_embed", "=sincos_2d|none"),
    "pooler_act": ("activation of its pooler", "pooler_act", "=tanh"),
    "data.image_size": ("image size", "image_size", ""),
}


def refuse_shard(source: pathlib.Path) -> None:
    """Raise UserError for a file of a sharded checkpoint."""
    if _SHARD.search(source.name):
        raise UserError(
            f"{source} belongs to a sharded checkpoint: load the model in its own library and save "
            "it to a single .safetensors file"
        )


def refuse_unsupported(keys: Iterable[str], source: pathlib.Path) -> None:
    """Raise UserError that names the model if a key belongs to a known, unsupported one."""
    keys = list(keys)
    for pattern, what in _UNSUPPORTED.items():
        if any(re.search(pattern, key) for key in keys):
            raise UserError(f"{source} is {what}, which is not supported: use {SUPPORTED}")


def refuse_model_type(model_type: str | None, source: pathlib.Path) -> None:
    """Raise UserError if transformers' `model_type` is that of an unsupported model."""
    if model_type not in (None, "vit", "vit_msn"):
        raise UserError(
            f"{source} is of the model_type {truncate_repr(model_type)} of transformers, which is "
            f"not supported: use {SUPPORTED}"
        )


def facts(names: Iterable[str], width: int) -> dict[str, Any]:
    """Derive settings from the first of `names` that is that of a ViT in timm, as of this width.

    Args:
      names: such as "vit_base_patch16_224.augreg_in21k".
      width: hidden size.

    Returns:
      {"model.num_heads", "model.gelu", "model.pool", "data.image_size": value}, as far as known.
    """
    pattern = r"(?:vit|deit|flexivit)_([a-z]+)(?:_patch\d+)?(_siglip)?(_gap)?(?:_(\d+))?"
    for name in names:
        match = re.fullmatch(pattern, name.split(".")[0].split("--")[-1])
        if match and _SIZES.get(match[1], (0, 0))[0] == width:
            heads = 16 if match[3] and not match[2] else _SIZES[match[1]][1]
            found = {"model.num_heads": heads, "model.pool": "mean" if match[3] else "cls"}
            if not match[2]:  # SigLIP's have both kinds of GELU
                found["model.gelu"] = "erf"
            return found | ({"data.image_size": int(match[4])} if match[4] else {})
    return {}


def check_resnet(names: Iterable[str], source: pathlib.Path) -> None:
    """Raise UserError unless a name is that of a ResNet18, whose arrays resnetblur18 shares."""
    names = [name for name in names if "resnet" in name]
    if not names:
        raise UserError(
            f"{source} does not record whether it is a ResNet18 or a resnetblur18, which has the "
            "same arrays: give architecture=resnet18, if it is that"
        )
    if not re.search(r"(^|[^a-z])resnet18([^a-z]|$)", names[0]):
        raise UserError(f"{source} is {names[0]}, which is not supported: use {SUPPORTED}")


def needed(name: str, settings: dict, has_no_table: bool, is_big_vision: bool) -> list[str]:
    """List the settings of a format that its arrays leave open."""
    if name == "resnet18":
        return []
    keys = [key for key in ("model.num_heads", "model.pos_embed") if key not in settings]
    if name == "timm":
        keys += ["model.gelu", *(["model.pool"] if settings["model.pool"] == "cls" else [])]
    if name == "hf":
        keys += ["model.gelu", "model.norm_eps"]
        keys += ["pooler_act"] if settings["model.representation_size"] else []
    # The other libraries have square images only.
    if name in ("timm", "hf") or is_big_vision or (name == "npz" and has_no_table):
        keys.append("data.image_size")
    return keys


def ask(unknown: list[str], usual: dict[str, str], name: str, source: pathlib.Path) -> None:
    """Raise UserError that asks for all settings `unknown` of a file in the format `name`."""
    if not unknown:
        return
    names = [_OPTIONS[key][0] for key in unknown]
    options = [f"{_OPTIONS[key][1]}{usual.get(key, _OPTIONS[key][2])}" for key in unknown]
    listed, given = (
        " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) for words in (names, options)
    )
    how = {
        "timm": "put its config.json next to it, or give architecture=vit_base_patch16_224, or "
        "another one of timm, or ",
        "hf": "put its config.json next to it, or ",
    }.get(name, "")
    raise UserError(f"{source} does not record its {listed}: {how}give {given}, if that is right")
