"""Names and layouts of ViT and ResNet18 arrays in other projects: one table per format.

A row of a table is (our path, their key, layout). "{i}" stands for the index of a block, "{qkv}"
for query, key and value: if it is not in their key, the three are concatenated in one array. A row
applies only to models that have the path.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Conversion of an array to their layout, and from theirs to ours of a given shape."""

    to_theirs: Callable[[np.ndarray], np.ndarray]
    to_ours: Callable[[np.ndarray, tuple], np.ndarray]


SAME = Layout(lambda x: x, lambda x, shape: x)
CONV = Layout(  # [height, width, in, out], [out, in, height, width]
    lambda x: x.transpose(3, 2, 0, 1), lambda x, shape: x.transpose(2, 3, 1, 0)
)
TO_HEADS = Layout(  # [d, heads, width], [heads * width, d]
    lambda x: x.reshape(len(x), -1).T, lambda x, shape: x.T.reshape(shape)
)
BIAS_TO_HEADS = Layout(np.ravel, np.reshape)  # [heads, width], [heads * width]
DENSE = Layout(  # [in, out], [out, in]; from heads: [heads, width, out], [out, heads * width]
    lambda x: x.reshape(-1, x.shape[-1]).T, lambda x, shape: x.T.reshape(shape)
)

PATCHES, POSITIONS = "embedding", "Transformer/posembed_input/pos_embedding"
BLOCK = "Transformer/encoderblock_{i}"
QKV = f"{BLOCK}/MultiHeadDotProductAttention_0/{{qkv}}"
OUT = f"{BLOCK}/MultiHeadDotProductAttention_0/out"
DENSE_0, DENSE_1 = f"{BLOCK}/MlpBlock_0/Dense_0", f"{BLOCK}/MlpBlock_0/Dense_1"

# Our path without the parameter's name, the layout of the kernel (for a norm, of its scale), and
# the keys in VisionTransformer.state_dict() of timm, in the files of transformers' ViTModel
# (ViTForImageClassification adds the prefix "vit."), and in torchvision's VisionTransformer. Keys
# of a block follow the block's own key. The pooler is tanh(dense(class token)), as in
# the 2020 checkpoints.
_BLOCKS = ("blocks.{i}.", "encoder.layer.{i}.", "encoder.layers.encoder_layer_{i}.")
_VIT = (
    ("cls", SAME, "cls_token", "embeddings.cls_token", "class_token"),
    (POSITIONS, SAME, "pos_embed", "embeddings.position_embeddings", "encoder.pos_embedding"),
    (PATCHES, CONV, "patch_embed.proj.", "embeddings.patch_embeddings.projection.", "conv_proj."),
    (f"{BLOCK}/LayerNorm_0", SAME, "norm1.", "layernorm_before.", "ln_1."),
    (QKV, TO_HEADS, "attn.qkv.", "attention.attention.{qkv}.", "self_attention.in_proj_"),
    (OUT, DENSE, "attn.proj.", "attention.output.dense.", "self_attention.out_proj."),
    (f"{BLOCK}/LayerNorm_1", SAME, "norm2.", "layernorm_after.", "ln_2."),
    (DENSE_0, DENSE, "mlp.fc1.", "intermediate.dense.", "mlp.0."),
    (DENSE_1, DENSE, "mlp.fc2.", "output.dense.", "mlp.3."),
    ("Transformer/encoder_norm", SAME, "norm.", "layernorm.", "encoder.ln."),
    ("pre_logits", DENSE, None, "pooler.dense.", "heads.pre_logits."),
    ("head", DENSE, "head.", "classifier.", "heads.head."),
)


def _layer(ours, theirs, layout=DENSE):
    yield f"{ours}/{'scale' if layout is SAME else 'kernel'}", f"{theirs}weight", layout
    yield f"{ours}/bias", f"{theirs}bias", BIAS_TO_HEADS if layout is TO_HEADS else SAME


def _vit(column):
    for path, layout, *keys in _VIT:
        key = keys[column]
        if path in ("cls", POSITIONS):
            yield path, key, layout
        elif key is not None:
            yield from _layer(path, (_BLOCKS[column] if BLOCK in path else "") + key, layout)


def _resnet18():
    """Pair our names with those of torchvision/models/resnet.py, which timm shares."""
    blocks = {f"layer{i}_{j}/": f"layer{i}.{j}." for i in range(1, 5) for j in range(2)}
    layers = [(f"conv{i}", f"bn{i}", f"conv{i}", f"bn{i}") for i in (1, 2)]
    layers += [("downsample_conv", "downsample_bn", "downsample.0", "downsample.1")]
    for ours, theirs in {"": "", **blocks}.items():
        for conv, norm, their_conv, their_norm in layers:
            yield f"{ours}{conv}/kernel", f"{theirs}{their_conv}.weight", CONV
            yield from _layer(f"{ours}{norm}", f"{theirs}{their_norm}.", SAME)
            for stat in ("mean", "var"):
                key = f"{theirs}{their_norm}.running_{stat}"
                yield f"batch_stats/{ours}{norm}/{stat}", key, SAME
    yield from _layer("head", "fc.")


TABLES = {
    "npz": [(path, path, SAME) for path, _, _ in _vit(1)],  # our names, after `canonical`
    "timm": [*_vit(0)],
    "hf": [*_vit(1)],
    "torchvision": [*_vit(2)],
    "resnet18": [*_resnet18()],
}

# Every format has one of these paths, with a distinctive key.
TYPICAL = ("embedding/kernel", "layer1_0/conv1/kernel")

# Settings of a format's models that the arrays do not record.
_HALVES = {"data.mean": (0.5,), "data.std": (0.5,)}
_IMAGENET = {"data.mean": (0.485, 0.456, 0.406), "data.std": (0.229, 0.224, 0.225)}
SETTINGS = {
    "npz": {"model.gelu": "tanh", "model.norm_eps": 1e-6} | _HALVES,
    "timm": {"model.gelu": "erf", "model.norm_eps": 1e-6} | _HALVES,
    "hf": {"model.gelu": "erf", "model.norm_eps": 1e-12} | _HALVES,
    "torchvision": {"model.gelu": "erf", "model.norm_eps": 1e-6} | _IMAGENET,
    "resnet18": _IMAGENET,
}
