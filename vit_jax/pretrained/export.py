"""Export weights to the formats of other projects."""

import pathlib
from typing import Any

import numpy as np

from vit_jax.config import PREPROCESSING, get_config, resized_side, with_overrides
from vit_jax.config.schema import SCHEMA
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
    data = with_overrides(get_config(), weights.info["settings"], "the weights").data
    info, arrays, settings = weights.info, weights.arrays, weights.info["settings"]
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
    if lacking := _lacking(settings, kind):
        raise UserError(
            f"{info['source']} cannot be exported to {kind}: that export does not write {lacking}"
        )
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
        name = "resnet18" if settings["model.name"] == "resnet18" else "timm"
        configs = {"config.json": _timm_config(info, mean, std, preprocessing.write_timm(data))}
        files.write_safetensors(destination, formats.to_theirs(name, arrays), configs)
        eps = settings.get("model.norm_eps", 1e-6)
        return notes + [f"timm uses norm_eps=1e-6 instead of {eps:g}"] * (eps != 1e-6)
    theirs = formats.to_theirs("hf", arrays)
    theirs = {k if k.startswith("classifier.") else f"vit.{k}": v for k, v in theirs.items()}
    processor = preprocessing.write_processor(data)
    files.write_safetensors(destination, theirs, _hf_configs(info, mean, std, processor))
    return notes


def _lacking(settings, kind):
    """Name a setting that the format cannot represent; "" if there is none."""
    if settings["model.name"] == "resnet18":
        if kind != "timm" or settings["model.stem"] != "imagenet":
            return f"model.name=resnet18 with model.stem={settings['model.stem']}"
        width = settings["model.hidden_size"]
        return "" if width == 64 else f"model.hidden_size={width} of resnet18"
    needed: dict[str, Any] = dict(attention="softmax", patchify="conv", pos_embed="learned_1d")
    if kind != "npz":
        needed["representation_size"] = 0
    if kind != "timm":
        needed["pool"] = "cls"
    needed |= {key: SCHEMA[f"model.{key}"].default for key in PARTS}
    # Earlier versions recorded no parts.
    if settings["model.pool"] not in ("cls", "mean"):
        needed["pool"] = "cls"
    own = {key: settings.get(f"model.{key}", needed[key]) for key in needed}
    return next((f"model.{key}={own[key]}" for key in needed if own[key] != needed[key]), "")


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
    has_cls = settings["model.pool"] == "cls"
    return config | {
        "architecture": "vit_base_patch16_224",  # all dimensions are overridden
        "model_args": {
            "img_size": size,
            "patch_size": settings["model.patch_size"],
            "in_chans": channels,
            "embed_dim": settings["model.hidden_size"],
            "depth": settings["model.depth"],
            "num_heads": settings["model.num_heads"],
            "mlp_ratio": settings["model.mlp_dim"] / settings["model.hidden_size"],
            "qkv_bias": settings["model.qkv_bias"],
            "class_token": has_cls,
            "global_pool": "token" if has_cls else "avg",
            "fc_norm": False,
            "act_layer": _TIMM_GELU[settings["model.gelu"]],
        },
    }


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
