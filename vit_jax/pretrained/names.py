"""Canonical names: the many namings of a layout reduced to the keys of its table."""

import math
import re

import ml_dtypes
import numpy as np

from vit_jax.pretrained.tables import BLOCK, POSITIONS

Arrays = dict[str, np.ndarray]

_WRAPPERS = ("module.", "model.", "_orig_mod.")  # of DataParallel, trainers and torch.compile
_PRE_LINEN = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "MlpBlock_3": "MlpBlock_0",
    "LayerNorm_2": "LayerNorm_1",
}
# Arrays that have no effect on an image classifier.
_IGNORED = re.compile(
    r"num_batches_tracked$"  # only PyTorch uses it
    r"|(^|\.)(mask_token|position_ids)$"  # of masked images; a constant
    r"|^decoder[._]"  # of MAE
    r"|^(text_model|text_projection|visual_projection|text)\.|^logit_(scale|bias)$"  # of CLIP
)
# The same, in files with an image tower named "visual.".
_TEXT = re.compile(
    r"(transformer|token_embedding|ln_final)\.|(positional_embedding|text_projection|attn_mask)$"
    r"|(input_resolution|context_length|vocab_size)$|visual\.(proj$|head\.)"
)
_RENAMED = {
    r"^(vit|deit|dinov2|dinov2_with_registers|ijepa|vision_model)\.": "",  # of transformers
    r"^visual\.(trunk\.)?": "",  # of open_clip, whose trunk is timm's
    r"mlp\.linear_1\.": "mlp.0.",  # of older torchvision
    r"mlp\.linear_2\.": "mlp.3.",
    # Of the official DINOv2; SwiGLU of DINOv2 there and in transformers.
    r"^register_tokens$": "reg_token",
    r"\.mlp\.(w12|weights_in)\.": ".mlp.fc1.",
    r"\.mlp\.(w3|weights_out)\.": ".mlp.fc2.",
    r"\.gamma_([12])$": r".ls\1.gamma",  # of the official DeiT III
    # Of distilled DeiT, whose distillation token is a register here.
    r"(^|\.)dist_token$": r"\1reg_token",
    r"(^|\.)distillation_token$": r"\1register_tokens",
}
# {name of both together: heads of class and distillation token}.
_HEAD_PAIRS = {
    "head": ("head", "head_dist"),
    "classifier": ("cls_classifier", "distillation_classifier"),
}
_TABLES = (r"(embeddings\.)?class_embedding$", r"positional_embedding$|position_embedding\.weight$")


def canonical(arrays: Arrays, is_npz: bool) -> Arrays:
    """Rename arrays to the keys of the tables, convert to float32, and drop non-weights.

    Removes the prefixes "opt/target/", "params/" and "params/img/", those of wrapped modules
    ("module.", "model.", "_orig_mod.") and of the models of transformers and open_clip; drops text
    towers, decoders and mask tokens; converts the numbering of pre-Linen Flax (MlpBlock_3 for the
    first MlpBlock), big_vision's stacked blocks, its positions outside the encoder and its bfloat16
    as raw bytes, and the older names of torchvision; joins the two heads of a distilled DeiT.
    """
    if is_npz:
        prefixes = ("opt/target/", "params/img/", "params/")
        prefix = next((p for p in prefixes if any(key.startswith(p) for key in arrays)), "")
        # Keys without the prefix belong to the optimizer.
        inside = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        return {key: _float32(x) for key, x in _linen(inside)}
    while prefix := _wrapper(arrays):
        arrays = {key.removeprefix(prefix): value for key, value in arrays.items()}
    if any(key.startswith("visual.") for key in arrays):
        arrays = {key: value for key, value in arrays.items() if not _TEXT.match(key)}
    arrays = {k: _float32(v) for k, v in arrays.items() if not _IGNORED.search(k)}
    for old, new in _RENAMED.items():
        arrays = {re.sub(old, new, key): value for key, value in arrays.items()}
    if {"classifier.weight", "head.probe"} <= arrays.keys():
        # SiglipForImageClassification classifies the mean of tokens.
        arrays = {key: x for key, x in arrays.items() if not key.startswith("head.")}
    _join_heads(arrays)
    return {key: _shaped(key, array) for key, array in arrays.items()}


def _wrapper(keys):
    """Find the prefix of a wrapped module that all keys have; "" if there is none."""
    found = [prefix for prefix in _WRAPPERS if all(key.startswith(prefix) for key in keys)]
    return found[0] if keys and found else ""


def _float32(x):
    return np.asarray(x.view(ml_dtypes.bfloat16) if x.dtype.kind == "V" else x, np.float32)


def _join_heads(arrays):
    """Replace, in place, the heads of class and distillation token by one for both, concatenated.

    Its output is the mean of theirs.
    """
    for name, (first, second) in _HEAD_PAIRS.items():
        weights, biases = (
            [arrays[f"{head}.{part}"] for head in (first, second) if f"{head}.{part}" in arrays]
            for part in ("weight", "bias")
        )
        if len({weight.shape for weight in weights}) == 1 == len(weights) - 1 and len(biases) == 2:
            arrays[f"{name}.weight"] = np.concatenate(weights, 1) / 2
            arrays[f"{name}.bias"] = (biases[0] + biases[1]) / 2
            for head in {first, second} - {name}:
                del arrays[f"{head}.weight"], arrays[f"{head}.bias"]


def _shaped(key, array):
    """Add the leading axes that CLIP's tokens lack, and those of SigLIP 2's flat patch kernel."""
    if array.ndim == 1 and re.search(_TABLES[0], key):
        return array[None, None]
    if array.ndim == 2 and re.search(_TABLES[1], key):
        return array[None]
    if array.ndim == 2 and key == "embeddings.patch_embedding.weight":
        side = math.isqrt(array.shape[1] // 3)
        if 3 * side**2 == array.shape[1]:  # [d, rows * columns * channels]
            return array.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    return array


def _linen(arrays):
    """Yield the arrays of an official file, without prefix, under Linen's names."""
    for key, value in arrays.items():
        key = _renumbered(key, _PRE_LINEN)
        key = POSITIONS if key == "pos_embedding" else key
        before, stacked, after = key.partition("Transformer/encoderblock/")
        if stacked and not before:
            yield from ((f"{BLOCK.format(i=i)}/{after}", block) for i, block in enumerate(value))
        else:
            yield key, value


def _renumbered(key, numbers):
    return "/".join(str(numbers.get(name, name)) for name in key.split("/"))


def official(arrays: Arrays) -> Arrays:
    """Rename arrays in the "npz" format to the numbering of the official files of 2020."""
    numbers = {new: old for old, new in _PRE_LINEN.items()}
    return {_renumbered(key, numbers): array for key, array in arrays.items()}
