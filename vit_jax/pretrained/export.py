"""Export weights to the formats of other projects."""

import math
import pathlib
from typing import Any

import numpy as np

from vit_jax.config import PREPROCESSING, get_config, has_cls, resized_side, with_overrides
from vit_jax.config.schema import SCHEMA
from vit_jax.models.vit import PositionEmbedding
from vit_jax.pretrained import files, formats, names, preprocessing, tables
from vit_jax.pretrained.weights import PARTS, Weights
from vit_jax.runtime.errors import UserError


def export(weights: Weights, kind: str, destination: pathlib.Path) -> list[str]:
    """Export weights; return notes on settings that the files cannot record.

    Args:
      weights: weights to export.
      kind: "timm" or "hf", a folder that `timm.create_model("local-dir:...", pretrained=True)` or
        `ViTForImageClassification.from_pretrained` reads; "npz", the official file.
      destination: the folder or file; it must not exist.

    Raises:
      UserError: the format cannot represent the model.
    """
    config = with_overrides(get_config(), weights.info["settings"], "the weights")
    info, settings, data = weights.info, weights.info["settings"], config.data
    settings = settings | {key: data[key.removeprefix("data.")] for key in PREPROCESSING}
    own = data.image_size if data.resize_mode == "fit" else resized_side(data)
    stored = info.get("stored_size") or own
    notes = []
    if stored != resized_side(data):
        notes = [f"the file cannot record data.stored_size={stored}, the first of two resizings"]
    if info.get("scaled_decoding"):
        notes.append("the file cannot record data.scaled_decoding=True")
    if destination.exists():
        raise UserError(f"{destination} exists already: choose another destination")
    if lacking := _lacking(config.model, kind):
        raise UserError(
            f"{info['source']} cannot be exported to {kind}: that export does not write {lacking}"
        )
    arrays = _with_table(weights.arrays, config)
    if arrays.keys() != weights.arrays.keys():
        notes.append(f"the file has a table instead of model.pos_embed={config.model.pos_embed}")
    if kind == "npz":
        if destination.suffix != ".npz":
            raise UserError(f"{destination} must end in .npz")
        theirs = names.official(formats.to_theirs("npz", arrays))
        contiguous: Any = {key: np.ascontiguousarray(array) for key, array in theirs.items()}
        np.savez(destination, **contiguous)
        usual = tables.SETTINGS["npz"] | preprocessing.usual("npz", settings)
        return notes + [
            f"the file cannot record {key}={settings[key]}; the usual value is {value}"
            for key, value in usual.items()
            if settings[key] != value
        ]
    if data.resize_mode == "fit" or (kind == "hf" and resized_side(data) != data.image_size):
        notes.append(f"{kind} rounds the offset of the crop to another pixel for some images")
    mean, std = (
        np.broadcast_to(settings[f"data.{key}"], settings["data.channels"]).tolist()
        for key in ("mean", "std")
    )
    if kind == "timm":
        configs = {"config.json": _timm_config(info, mean, std, preprocessing.write_timm(data))}
        if config.model.name == "resnet18":
            theirs = formats.to_theirs("resnet18", arrays)
            files.write_safetensors(destination, theirs, configs)
            return notes
        arrays = formats.to_theirs("timm", _for_timm(arrays, config.model))
        files.write_safetensors(destination, arrays, configs)
        own, (_, theirs) = config.model.norm_eps, _timm_architecture(config.model)
        return notes + [f"timm uses norm_eps={theirs:g} instead of {own:g}"] * (own != theirs)
    theirs = formats.to_theirs("hf", arrays)
    theirs = {k if k.startswith("classifier.") else f"vit.{k}": v for k, v in theirs.items()}
    processor = preprocessing.write_processor(data)
    files.write_safetensors(destination, theirs, _hf_configs(info, mean, std, processor))
    return notes


_TIMM_POOLS = {"cls": "token", "mean": "avg", "max": "max", "avgmax": "avgmax", "map": "map"}


def _lacking(model, kind):
    """Name a setting that the format cannot represent; "" if there is none."""
    if model.name == "resnet18":
        if kind != "timm" or model.stem != "imagenet":
            return f"model.name=resnet18 with model.stem={model.stem}"
        return "" if model.hidden_size == 64 else f"model.hidden_size={model.hidden_size}"
    is_timm = kind == "timm"
    written = {
        "attention": ("softmax",),
        "patchify": ("conv", "manual"),
        "pos_embed": ("learned_1d", "learned_2d", "sincos_2d", "sinusoidal", "none"),
        "pool": _TIMM_POOLS if is_timm else ("cls",),
    }
    if kind != "npz":
        written["representation_size"] = (0,)
    for key in ("head_dim",) if is_timm else PARTS:
        written[key] = (SCHEMA[f"model.{key}"].default,)
    if model.pool == "map":
        written["mlp"] = ("gelu",)  # timm's pooling has no other
    return next(
        (f"model.{key}={model[key]}" for key in written if model[key] not in written[key]), ""
    )


def _with_table(arrays, config):
    """Write the patch embedding as a convolution, and any positions as one table for all tokens.

    Both give the same tokens. Returns new arrays; those of a ResNet18 remain as they are.
    """
    model, arrays = config.model, dict(arrays)
    if model.name == "resnet18":
        return arrays
    p, width = model.patch_size, model.hidden_size
    arrays["embedding/kernel"] = arrays["embedding/kernel"].reshape(p, p, -1, width)
    if model.pos_embed == "learned_1d":
        return arrays
    side = config.data.image_size // p
    table = np.zeros((1, side**2 + has_cls(model), width), np.float32)
    if model.pos_embed != "none":
        folder = tables.POSITIONS.rpartition("/")[0]
        own = {key: arrays.pop(key) for key in [*arrays] if key.startswith(f"{folder}/")}
        params = {key.rpartition("/")[2]: array for key, array in own.items()}
        positions = PositionEmbedding(model.pos_embed, (side, side), has_cls(model))
        table = np.asarray(positions.apply({"params": params}, table))
    return arrays | {tables.POSITIONS: table}


def _for_timm(arrays, model):
    """Give registers positions of zero, and add the embedding's bias to positions before a norm.

    There, timm's patch embedding has no bias. Returns new arrays.
    """
    arrays, first = dict(arrays), int(has_cls(model))
    cls, patches = np.split(arrays[tables.POSITIONS], [first], 1)
    if model.pre_norm:
        patches = patches + arrays.pop("embedding/bias")
    zeros = np.zeros((1, model.num_registers, model.hidden_size), np.float32)
    return arrays | {tables.POSITIONS: np.concatenate([cls, zeros, patches], 1)}


_TIMM_GELU = {"erf": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
_HF_GELU = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}


def _timm_config(info, mean, std, preprocessed):
    settings, num_classes = info["settings"], info["num_classes"]
    size, channels = settings["data.image_size"], settings["data.channels"]
    is_resnet = settings["model.name"] == "resnet18"
    config = {
        "num_classes": num_classes,
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [channels, size, size],
            **preprocessed,
            "mean": mean,
            "std": std,
            "label_names": info["class_names"],
            "first_conv": "conv1" if is_resnet else "patch_embed.proj",
            "classifier": "fc" if is_resnet else "head",
        },
    }
    if is_resnet:
        return config | {"architecture": "resnet18"}
    model = with_overrides(get_config(), settings, "the weights").model
    is_gated = model.mlp == "swiglu"
    args = {
        "img_size": size,
        "patch_size": model.patch_size,
        "in_chans": channels,
        "embed_dim": model.hidden_size,
        "depth": model.depth,
        "num_heads": model.num_heads,
        "mlp_ratio": _ratio(model.mlp_dim * (1 + is_gated), model.hidden_size),
        "qkv_bias": model.qkv_bias,
        "qk_norm": model.qk_norm,
        "init_values": model.layer_scale_init or None,
        "class_token": has_cls(model),
        "reg_tokens": model.num_registers,
        "no_embed_class": False,
        "pre_norm": model.pre_norm,
        "global_pool": _TIMM_POOLS[model.pool],
        "fc_norm": model.fc_norm,
    }
    if not is_gated:
        args["act_layer"] = _TIMM_GELU[model.gelu]
    if model.norm == "rms":
        args["norm_layer"] = "rmsnorm"
    return config | {"architecture": _timm_architecture(model)[0], "model_args": args}


def _timm_architecture(model):
    """Choose a ViT of timm by what its arguments cannot say in JSON, and its epsilon of norms."""
    if model.mlp == "swiglu":
        return "vit_giant_patch14_dinov2", 1e-6
    if model.norm_eps == 1e-5 and model.norm == "layer":
        return "vit_base_patch16_clip_224", 1e-5
    return "vit_base_patch16_224", 1e-6


def _ratio(hidden, width):
    """Divide so that timm, which truncates the product of ratio and width, finds `hidden` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _hf_configs(info, mean, std, processor):
    settings = info["settings"]
    size = settings["data.image_size"]
    names = info["class_names"] or [f"LABEL_{i}" for i in range(info["num_classes"])]
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": size,
        "patch_size": settings["model.patch_size"],
        "num_channels": settings["data.channels"],
        "hidden_size": settings["model.hidden_size"],
        "num_hidden_layers": settings["model.depth"],
        "num_attention_heads": settings["model.num_heads"],
        "intermediate_size": settings["model.mlp_dim"],
        "qkv_bias": settings["model.qkv_bias"],
        "hidden_act": _HF_GELU[settings["model.gelu"]],
        "layer_norm_eps": settings["model.norm_eps"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    preprocessor = {
        **processor,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    return {"config.json": config, "preprocessor_config.json": preprocessor}
