"""Architectures by name, questions that the arrays of a file leave open, and refusals."""

import itertools
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from vit_jax.pretrained import tables
from vit_jax.runtime.errors import UserError, truncate_repr

SUPPORTED = (
    "plain ViTs of the official code, timm, Hugging Face, torchvision and open_clip, and ResNet18"
)

# {pattern of a key: the model that has it}; the first match is reported.
_UNSUPPORTED = {
    r"patch_embed\.backbone\.|^conv_root/|/conv_root/|^block1/": "a hybrid of ResNet and ViT",
    r"^layer\.\d+\.attention\.[qkvo]_proj\.": "DINOv3 with rotary positions of other frequencies",
    r"relative_position|rel_pos_[hw]$|(^|\.)rope": "a ViT with relative or rotary positions",
    r"\.attn\.[qv]_bias$": "BEiT or EVA",
    r"^blocks_token_only\.": "CaiT",
    r"\.lambda_q1$": "a ViT with differential attention",
    r"\.(attns|ffns)\.\d": "a ViT with parallel branches",
    r"\.mlp\.fc1_[gx]\.": "a ViT whose gated MLP has two arrays, such as AIMv2",
    r"\.in_norm\.|\.(attn|mlp)\.(norm|ln)\.": "a ViT with further norms in its blocks",
    r"^attn_pool\.(query$|attn\.|ln_[qk]\.)": "CoCa of open_clip, with another attention pooling",
    r"(^|\.)attn_pool\.(pos_embed|[qk]_norm)": "a ViT with another attention pooling than SigLIP",
    r"layer1\.0\.conv3\.": "a ResNet with bottleneck blocks, such as ResNet50",
    r"layer1\.2\.conv1\.": "a deeper ResNet than ResNet18",
    r"(^|\.)(stages|features|downsample_layers)\.\d": "another network, probably convolutional",
}
# Models of transformers that are supported, {model_type: defaults of its config}.
_VIT = {
    "hidden_act": "gelu",
    "hidden_size": 768,
    "image_size": 224,
    "layer_norm_eps": 1e-12,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "pooler_act": "tanh",
}
_CLIP = _VIT | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32}
_SIGLIP = _VIT | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
MODEL_TYPES = {
    **dict.fromkeys(("vit", "deit", "vit_mae", "ijepa"), _VIT),
    "dinov2": _VIT | {"layer_norm_eps": 1e-6, "patch_size": 14},
    **dict.fromkeys(("vit_msn", "dinov2_with_registers"), _VIT | {"layer_norm_eps": 1e-6}),
    **dict.fromkeys(("clip", "clip_vision_model"), _CLIP),
    **dict.fromkeys(("siglip", "siglip_vision_model"), _SIGLIP),
    **dict.fromkeys(("siglip2", "siglip2_vision_model"), _SIGLIP | {"num_patches": 256}),
}
HF_FORMATS = ("hf", "hf_dinov2", "hf_clip")
# {pattern of a name in timm: what only the name distinguishes from a plain ViT}.
_UNSUPPORTED_NAMES = {
    r"^vit\w*_rpn_": "norms after its residual branches",
    r"^vit\w*_(rope|pe)_|^eva": "rotary positions",
    r"^test_vit3": "pooling of registers",
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$|\.safetensors\.index\.json$")

# {size: {width: heads}} of timm's plain ViTs.
_SIZES = {
    "tiny": {192: 3},
    "wee": {256: 4},
    "xsmall": {256: 4},
    "little": {320: 5},
    "small": {384: 6},
    "medium": {512: 8},
    "mediumd": {512: 8},
    "betwixt": {640: 10},
    "base": {768: 12, 896: 14},  # "plus" is wider
    "so150m2": {832: 13},
    "so150m": {896: 14},
    "large": {1024: 16},
    "so400m": {1152: 16},
    "huge": {1280: 16},
    "giant": {1408: 16, 1536: 24},  # DINOv2's is wider
    "giantopt": {1536: 16},
    "gigantic": {1664: 16},
}
# What may follow the size in a name of timm.
_FLAGS = (
    r"(_(distilled|patch\d+|reg\d+|siglip|clip|quickgelu|dinov2|tipsv2|gap|map|plus|miil|in21k|"
    r"\d+))*"
)
# What names in timm's registry record of the preprocessing of their weights, {pattern: value}; the
# first match counts. All else is that of `preprocessing.usual`.
_STATISTICS = {
    r"large_patch14_clip_\d+\.laion2b": tables.HALVES,
    r"_clip_|\.bamboo": tables.CLIP,
    r"^deit|_dinov2|\.(dino|mae)|ijepa": tables.IMAGENET,
    r"_tipsv2": {"data.mean": (0.0,), "data.std": (1.0,)},
    r"_miil": {"data.mean": (0.0,), "data.std": (1.0,), "data.interpolation": "bilinear"},
}
_CROPS = {
    r"_miil": 0.875,
    r"base_patch16_clip_224\.\w+_ft_in12k_in1k|base_patch\d+_clip_384\.openai_ft_in12k": 0.95,
    r"base_patch16_clip\w*_224\.(openai|laion2b_ft_in12k)": 0.9,
    r"base_patch32_clip\w*_224\.(openai|laion)|\.tinyclip": 0.9,
    r"^deit.*(_384|\.fb_in22k)|\.bamboo|_tipsv2|_so150m2_|_plus_clip_": 1.0,
    r"_siglip_gap_(448|896)|14_siglip_gap_3(78\.webli|84)|_378\.webli_ft": 1.0,
    r"^deit|_siglip_": 0.9,
    r"^flexivit|_(medium|betwixt)_patch16_gap_|_plus_2|_2\d\d\.sbb": 0.95,
}
_SQUASHED = (
    r"1[46]_clip_3\d\d\.(\w+_ft_|metaclip2)|32_clip_384\.openai|medium_patch16_gap_384|_448\.sbb|"
    r"_378\.webli_ft"
)
# The tag of the default weights of names without a tag, where it decides the preprocessing.
_DEFAULT_TAGS = {
    r"(xsmall|medium|betwixt)_patch\d+_clip": "tinyclip",
    r"patch32_clip_quickgelu": "laion400m",
    r"gigantic_patch14_clip_378": "metaclip2",
    r"_clip_(224|336|384)": "laion2b_ft_in12k_in1k",
    r"_reg\d_gap": "sbb",
    r"(huge|giant)_patch\d+_gap|small_patch8": "dino",  # or I-JEPA, which has its mean
}
_BICUBIC = {"data.interpolation": "bicubic"}
_RESNETS = {
    r"\.a[12]_in1k": _BICUBIC | {"data.eval_crop": 0.95},
    r"\.a3_in1k": _BICUBIC | {"data.eval_crop": 0.95, "data.image_size": 160},
    r"\.gluon_in1k": _BICUBIC,
}
# {format: {pattern of a key: project that wrote the file, see `preprocessing.usual`}}.
_PROJECTS = {
    "npz": {r"^(params/|pos_embedding$)": "big_vision"},
    "timm": {
        r"^visual\.trunk\.": "open_clip",
        r"(^|\.)(decoder_pos_embed|(mask|dist)_token|register_tokens)$|\.gamma_1$": "official",
    },
    "hf": {
        r"^deit\.|(^|\.)distillation_token$": "deit",
        r"^decoder\.": "vit_mae",
        r"^ijepa\.": "ijepa",
    },
}
_OFFICIAL = r"^(deit3?|dino|dinov2|ibot|ijepa|mae)_"  # names of official files
# {format: {width: heads}} where a width has a single usual number of heads.
HEADS = {
    "torchvision": {768: 12, 1024: 16, 1280: 16},
    "open_clip": {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16},
}
# {setting: (how it is called, name of the option, what to give)}
_OPTIONS = {
    "model.num_heads": ("number of attention heads", "num_heads", ""),
    "model.gelu": ("GELU", "gelu", "=erf|tanh|quick"),
    "model.mlp": ("MLP", "mlp", "=swiglu"),
    "model.norm": ("norm", "norm", "=rms"),
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
    keys = set(keys)
    if {"pre_layrnorm.weight", "classifier.weight"} <= keys:
        raise UserError(
            f"{source} is CLIPForImageClassification, whose head sees tokens before their norm, "
            f"which is not supported: use {SUPPORTED}"
        )
    if {"conv1.weight", "class_embedding"} <= keys and "ln_pre.weight" not in keys:
        raise UserError(
            f"{source} is CLIPA or NV-CLIP of open_clip, which have no norm before the blocks and "
            f"pool the average, which is not supported: use {SUPPORTED}"
        )
    for pattern, what in _UNSUPPORTED.items():
        if any(re.search(pattern, key) for key in keys):
            raise UserError(f"{source} is {what}, which is not supported: use {SUPPORTED}")


def refuse_model_type(model_type: str | None, source: pathlib.Path) -> None:
    """Raise UserError if transformers' `model_type` is that of an unsupported model."""
    if model_type is not None and model_type not in MODEL_TYPES:
        raise UserError(
            f"{source} is of the model_type {truncate_repr(model_type)} of transformers, which is "
            f"not supported: use {SUPPORTED}"
        )


def project(
    name: str, keys: Iterable[str], model_type: str | None, source: pathlib.Path
) -> str | None:
    """Find the project that wrote a file in the format `name` by its original keys.

    Returns a `project` of `preprocessing.usual`; None if unknown.
    """
    if model_type:
        return model_type
    for pattern, found in _PROJECTS.get(name, {}).items():
        if any(re.search(pattern, key) for key in keys):
            return found
    # The names of timm have a tag.
    is_official = name == "timm" and re.search(_OFFICIAL, source.stem) and "." not in source.stem
    return "official" if is_official else None


def facts(names: Iterable[str], width: int) -> dict[str, Any]:
    """Derive settings from the first of `names` that is that of a ViT in timm, as of this width.

    Args:
      names: such as "vit_base_patch16_224.augreg_in21k".
      width: hidden size.

    Returns:
      {"model.num_heads", "model.gelu", "model.pool", "data.image_size", ...: value}, as far as
      known; without an image size, a square one of as many patches as there are positions.
    """
    for name in names:
        name = name.split("--")[-1]
        short = name.split(".")[0]
        match = re.fullmatch(rf"(vit|deit3?|flexivit)_([a-z\d]+?){_FLAGS}", short)
        if match and width in _SIZES.get(match[2], {}):
            heads = _SIZES[match[2]][width]
            return _facts(name, short, 16 if "base_patch16_gap" in short else heads)
    return {}


def _facts(name, short, heads):
    pool = "mean" if "_gap" in short else "cls"
    found: dict = {"model.num_heads": heads, "model.pool": pool} | block_settings(short)
    if "." not in name:
        name = f"{name}.{_first(_DEFAULT_TAGS, name)}"
    found |= _first(_STATISTICS, name) or {}
    if crop := _first(_CROPS, name):
        found["data.eval_crop"] = crop
    if re.search(_SQUASHED, name):
        found["data.resize_mode"] = "squash"
    size = re.search(r"_(\d+)$", short)
    return found | {"data.image_size": int(size[1]) if size else None}


def _first(table, name):
    return next((value for pattern, value in table.items() if re.search(pattern, name)), None)


def block_settings(name: str, norm_layer: str | None = None) -> dict[str, Any]:
    """Derive what the name of a ViT in timm says of its blocks, at any width.

    Args:
      name: such as "vit_base_patch16_clip_quickgelu_224"; others give {}.
      norm_layer: timm's argument, if it is given.

    Returns:
      {"model.norm_eps", "model.gelu", "model.mlp": value}, as far as known.
    """
    if not re.match(r"(vit|deit3?|flexivit)_", name):
        return {}
    # A norm layer given by name has timm's default epsilon.
    found: dict = {"model.norm_eps": 1e-5 if "_clip_" in name and not norm_layer else 1e-6}
    found["model.gelu"] = "erf"
    if "siglip" in name and re.search(r"giantopt|so400m_patch16|patch32|large.*512", name):
        found["model.gelu"] = "tanh"
    if "quickgelu" in name:
        found["model.gelu"] = "quick"
    if re.search("giant.*(dinov2|tipsv2)", name):
        found["model.mlp"] = "swiglu"
    return found


def refuse_names(names: Iterable[str], source: pathlib.Path) -> None:
    """Raise UserError for a model of timm that only its name distinguishes from a plain ViT."""
    for name, (pattern, what) in itertools.product(names, _UNSUPPORTED_NAMES.items()):
        if re.search(pattern, name):
            raise UserError(
                f"{source} is {truncate_repr(name)}, a ViT with {what}, which is not supported: "
                f"use {SUPPORTED}"
            )


def resnet_facts(names: Iterable[str], source: pathlib.Path) -> dict[str, Any]:
    """Derive settings from the name of a ResNet18, as `facts` of a ViT.

    Raises UserError unless a name is that of a ResNet18, whose arrays resnetblur18 shares.
    """
    names = [name for name in names if "resnet" in name]
    if not names:
        raise UserError(
            f"{source} does not record whether it is a ResNet18 or a resnetblur18, which has the "
            "same arrays: give architecture=resnet18, if it is that"
        )
    if not re.search(r"(^|[^a-z])resnet18([^a-z]|$)", names[0]):
        raise UserError(f"{source} is {names[0]}, which is not supported: use {SUPPORTED}")
    return _first(_RESNETS, names[0]) or {}


def needed(name: str, settings: dict, has_no_table: bool, is_big_vision: bool) -> list[str]:
    """List the settings of a format that its arrays leave open."""
    if name == "resnet18":
        return []
    keys = [key for key in ("model.num_heads", "model.pos_embed") if key not in settings]
    if name not in ("npz", "torchvision") and settings["model.mlp"] == "gelu":
        keys.append("model.gelu")
    if name == "timm":
        is_open = settings["model.pool"] == "cls" or settings["model.fc_norm"]
        keys += ["model.pool"] if is_open else []
        keys += ["model.mlp"] if settings["model.mlp"] == "swiglu" else []
        keys += ["model.norm"] if settings["model.norm"] == "rms" else []
    if name.startswith("hf"):
        keys += ["model.norm_eps"]
        keys += ["pooler_act"] if settings["model.representation_size"] else []
    # The other libraries have square images only.
    other = name in ("torchvision", "open_clip", "npz")
    if not other or is_big_vision or (name == "npz" and has_no_table):
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
        **dict.fromkeys(HF_FORMATS, "put its config.json next to it, or "),
    }.get(name, "")
    raise UserError(
        f"{source} does not record its {listed}: {how}give {given}, if that is right, to vit-jax "
        "convert or load_model"
    )
