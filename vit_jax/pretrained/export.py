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
        `AutoModelForImageClassification.from_pretrained` reads; "npz", the official file.
      destination: the folder or file; it must not exist.

    Raises:
      UserError: the format cannot represent the model.
    """
    config = with_overrides(get_config(), weights.info["settings"], "the weights")
    info, data = weights.info, config.data
    own_size = data.image_size if data.resize_mode == "fit" else resized_side(data)
    stored = info.get("stored_size") or own_size
    notes = []
    if stored != resized_side(data):
        notes = [f"the file cannot record data.stored_size={stored}, the first of two resizings"]
        config.data.interpolation = "bilinear"  # of the second, on the device
    if levels := info.get("level_range"):
        notes.append(f"the file cannot record data.level_range={tuple(levels)}")
    if info.get("scaled_decoding"):
        notes.append("the file cannot record data.scaled_decoding=True")
    if info.get("multi_label"):
        if info.get("thresholds"):
            notes.append("the file cannot record the thresholds of the labels")
        if kind != "hf":
            notes.append("the file cannot record data.multi_label=True: apply a sigmoid")
    if destination.exists():
        raise UserError(f"{destination} exists already: choose another destination")
    if lacking := _lacking(config.model, kind):
        raise UserError(
            f"{info['source']} cannot be exported to {kind}: that export does not write {lacking}"
        )
    arrays = weights.arrays
    if config.model.name == "vit":
        arrays = _with_conv_and_table(arrays, config)
        if config.model.pos_embed != "learned_1d":
            notes.append(
                f"the file has a table instead of model.pos_embed={config.model.pos_embed}"
            )
    write = {"npz": _write_npz, "timm": _write_timm, "hf": _write_hf}[kind]
    return notes + write(arrays, config, info, destination)


def _write_npz(arrays, config, info, destination):
    if destination.suffix != ".npz":
        raise UserError(f"{destination} must end in .npz")
    theirs = names.official(formats.to_theirs("npz", arrays))
    contiguous: Any = {key: np.ascontiguousarray(array) for key, array in theirs.items()}
    np.savez(destination, **contiguous)
    settings = info["settings"] | {
        key: config.data[key.removeprefix("data.")] for key in PREPROCESSING
    }
    usual = tables.SETTINGS["npz"] | preprocessing.usual("npz", settings)
    return [
        f"the file cannot record {key}={settings[key]}; the usual value is {value}"
        for key, value in usual.items()
        if settings[key] != value
    ]


def _write_timm(arrays, config, info, destination):
    model, notes = config.model, []
    if config.data.resize_mode == "fit":
        notes = ["timm rounds the offset of the crop to another pixel for some images"]
    configs = {"config.json": _timm_config(config, info)}
    if model.name == "resnet18":
        files.write_safetensors(destination, formats.to_theirs("resnet18", arrays), configs)
        return notes
    theirs = formats.to_theirs("timm", _for_timm(arrays, model))
    files.write_safetensors(destination, theirs, configs)
    _, eps = _timm_architecture(model)
    if eps != model.norm_eps:
        notes.append(f"timm uses norm_eps={eps:g} instead of {model.norm_eps:g}")
    return notes


def _write_hf(arrays, config, info, destination):
    data, is_dinov2 = config.data, _is_dinov2(config.model)
    theirs = _for_dinov2(arrays, config.model) if is_dinov2 else formats.to_theirs("hf", arrays)
    configs = _hf_configs(config, info)
    prefix = configs["config.json"]["model_type"]
    theirs = {k if k.startswith("classifier.") else f"{prefix}.{k}": v for k, v in theirs.items()}
    files.write_safetensors(destination, theirs, configs)
    if data.resize_mode == "fit" or resized_side(data) != data.image_size:
        return ["hf rounds the offset of the crop to another pixel for some images"]
    return []


def _lacking(model, kind):
    """Name a setting that the format cannot represent; "" if there is none."""
    if model.name == "resnet18":
        if kind != "timm" or model.stem != "imagenet":
            return f"model.name=resnet18 with model.stem={model.stem}"
        width = model.hidden_size
        return "" if width == 64 else f"model.name=resnet18 with model.hidden_size={width}"
    pools = {"npz": ("cls",), "timm": tables.TIMM_POOLS.values(), "hf": ("cls", "cls_mean")}
    written = {
        "attention": ("softmax",),
        "patchify": ("conv", "manual"),
        "pos_embed": ("learned_1d", "learned_2d", "sincos_2d", "sinusoidal", "none"),
        "pool": pools[kind],
    }
    if kind == "npz":
        written["qkv_bias"] = (True,)
    else:
        written["representation_size"] = (0,)
    if kind != "timm":
        written |= {key: (SCHEMA[f"model.{key}"].default,) for key in PARTS}
    if kind == "hf" and _is_dinov2(model):
        for key in ("layer_scale_init", "num_registers", "mlp"):
            del written[key]
    written["head_dim"] = (0, model.hidden_size // model.num_heads)
    for key, values in written.items():
        if model[key] not in values:
            return f"model.{key}={model[key]}"
    if model.pool == "map" and model.mlp == "swiglu":
        return "model.mlp=swiglu with model.pool=map"
    if kind == "hf" and _is_dinov2(model) and not _dinov2_ratio(model):
        return f"model.mlp_dim={model.mlp_dim} with model.hidden_size={model.hidden_size}"
    return ""


def _is_dinov2(model):
    """Whether transformers represents the model as DINOv2, not as ViT."""
    has_parts = model.layer_scale_init or model.num_registers or model.mlp == "swiglu"
    return model.pool == "cls_mean" or (model.pool == "cls" and has_parts)


def _dinov2_ratio(model):
    """Find the integer ratio from which DINOv2 of transformers computes `mlp_dim`, or 0."""
    width, is_gated = model.hidden_size, model.mlp == "swiglu"
    ratio = round(model.mlp_dim / width * (1.5 if is_gated else 1))
    hidden = ratio * width
    if is_gated:  # two thirds, rounded up to a multiple of 8
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return ratio if hidden == model.mlp_dim else 0


def _with_conv_and_table(arrays, config):
    """Write embeddings as the kernel of a convolution and a table, which give the same tokens.

    Returns new arrays, with the kernel [p, p, c, d] of the patch embedding and the position of
    every token [1, n, d], the class token included.
    """
    model, arrays = config.model, dict(arrays)
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
    """Adapt the positions to timm's [1, class token + registers + patches, d]; return new arrays.

    Those of registers are 0. With `pre_norm`, timm's patch embedding has no bias, so the bias is
    added to the positions of the patches.
    """
    arrays, first = dict(arrays), int(has_cls(model))
    cls, patches = np.split(arrays[tables.POSITIONS], [first], 1)
    if model.pre_norm:
        patches = patches + arrays.pop("embedding/bias")
    zeros = np.zeros((1, model.num_registers, model.hidden_size), np.float32)
    return arrays | {tables.POSITIONS: np.concatenate([cls, zeros, patches], 1)}


def _for_dinov2(arrays, model):
    """Convert to the arrays of DINOv2 of transformers.

    It always has LayerScale, a token for masked patches, and a head for both class token and mean
    of the patches. If the model pools only the class token, the kernel of the mean is 0.
    """
    arrays, width = dict(arrays), model.hidden_size
    if model.pool == "cls" and "head/kernel" in arrays:
        arrays["head/kernel"] = np.pad(arrays["head/kernel"], ((0, width), (0, 0)))
    if not model.layer_scale_init:
        paths = [path.format(i=i) for path in tables.SCALES for i in range(model.depth)]
        arrays |= {path: np.ones(width, np.float32) for path in paths}
    theirs = formats.to_theirs("hf_dinov2", arrays)
    if model.mlp == "swiglu":
        for old, new in ((".fc1.", ".weights_in."), (".fc2.", ".weights_out.")):
            theirs = {key.replace(old, new): array for key, array in theirs.items()}
    return theirs | {"embeddings.mask_token": np.zeros((1, width), np.float32)}


def _mean_and_std(data):
    """List the mean and the standard deviation of each channel."""
    return [np.broadcast_to(data[key], data.channels).tolist() for key in ("mean", "std")]


def _timm_config(config, info):
    data, model = config.data, config.model
    mean, std = _mean_and_std(data)
    is_resnet = model.name == "resnet18"
    first = "conv1" if is_resnet else "patch_embed.proj"
    content = {
        "num_classes": info["num_classes"],
        "pretrained_cfg": {
            "num_classes": info["num_classes"],
            "input_size": [data.channels, data.image_size, data.image_size],
            **preprocessing.write_timm(data),
            "mean": mean,
            "std": std,
            "label_names": info["class_names"],
            # With it, timm 1.0.20 replaces kernels of other channels by random ones.
            **({"first_conv": first} if data.channels in (1, 3) else {}),
            "classifier": "fc" if is_resnet else "head",
        },
    }
    if is_resnet:
        return content | {"architecture": "resnet18"}
    is_gated = model.mlp == "swiglu"
    pools = {ours: theirs for theirs, ours in tables.TIMM_POOLS.items()}
    args = {
        "img_size": data.image_size,
        "patch_size": model.patch_size,
        "in_chans": data.channels,
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
        "global_pool": pools[model.pool],
        "fc_norm": model.fc_norm,
    }
    if not is_gated:
        args["act_layer"] = tables.TIMM_GELUS[model.gelu]
    if model.norm == "rms":
        args["norm_layer"] = "rmsnorm"
    return content | {"architecture": _timm_architecture(model)[0], "model_args": args}


def _timm_architecture(model):
    """Choose the ViT of timm that has what JSON arguments cannot express.

    Returns its name, which decides the kind of the MLP, and the epsilon of its norms.
    """
    if model.mlp == "swiglu":
        return "vit_giant_patch14_dinov2", 1e-6
    if model.norm_eps == 1e-5 and model.norm == "layer":
        return "vit_base_patch16_clip_224", 1e-5
    return "vit_base_patch16_224", 1e-6


def _ratio(hidden, width):
    """Divide so that timm, which truncates the product of ratio and width, recovers `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _hf_configs(config, info):
    data, model = config.data, config.model
    mean, std = _mean_and_std(data)
    classes = info["class_names"] or [f"LABEL_{i}" for i in range(info["num_classes"])]
    content = {
        **_hf_class(model),
        "image_size": data.image_size,
        "patch_size": model.patch_size,
        "num_channels": data.channels,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "qkv_bias": model.qkv_bias,
        "hidden_act": tables.HF_GELUS[model.gelu],
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **({"problem_type": "multi_label_classification"} if info.get("multi_label") else {}),
        "id2label": dict(enumerate(classes)),
        "label2id": {name: i for i, name in enumerate(classes)},
    }
    preprocessor = {
        **preprocessing.write_processor(data),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    return {"config.json": content, "preprocessor_config.json": preprocessor}


def _hf_class(model):
    """Choose the class of transformers and the settings that only it has."""
    if not _is_dinov2(model):
        name, model_type = "ViT", "vit"
        own = {"intermediate_size": model.mlp_dim}
    else:
        name, model_type = "Dinov2", "dinov2"
        own = {"mlp_ratio": _dinov2_ratio(model), "use_swiglu_ffn": model.mlp == "swiglu"}
        if model.num_registers:
            name, model_type = "Dinov2WithRegisters", "dinov2_with_registers"
            own["num_register_tokens"] = model.num_registers
    return {"architectures": [f"{name}ForImageClassification"], "model_type": model_type, **own}
