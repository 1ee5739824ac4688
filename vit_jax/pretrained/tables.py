"""How other projects name and lay out the arrays of a ViT or a ResNet18: one table per format.

A row of a table is (our path, their key, layout). "{i}" stands for the number of a block; "{qkv}"
for query, key and value: in their key if the three are apart, else they are joined in one array. A
row concerns only models that have the path.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How an array of ours becomes theirs, and theirs ours of a given shape."""

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

POSITIONS = "Transformer/posembed_input/pos_embedding"
BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
QKV = f"{ATTENTION}/{{qkv}}"
DENSE_0, DENSE_1 = f"{BLOCK}/MlpBlock_0/Dense_0", f"{BLOCK}/MlpBlock_0/Dense_1"


def _layer(ours, theirs, layout=DENSE):
    weight = "scale" if layout is SAME else "kernel"  # of a norm or of a product
    return [
        (f"{ours}/{weight}", f"{theirs}.weight", layout),
        (f"{ours}/bias", f"{theirs}.bias", SAME),
    ]


# timm/models/vision_transformer.py: VisionTransformer.state_dict()
TIMM = [
    ("cls", "cls_token", SAME),
    (POSITIONS, "pos_embed", SAME),
    *_layer("embedding", "patch_embed.proj", CONV),
    *_layer(f"{BLOCK}/LayerNorm_0", "blocks.{i}.norm1", SAME),
    (f"{QKV}/kernel", "blocks.{i}.attn.qkv.weight", TO_HEADS),
    (f"{QKV}/bias", "blocks.{i}.attn.qkv.bias", BIAS_TO_HEADS),
    *_layer(f"{ATTENTION}/out", "blocks.{i}.attn.proj"),
    *_layer(f"{BLOCK}/LayerNorm_1", "blocks.{i}.norm2", SAME),
    *_layer(DENSE_0, "blocks.{i}.mlp.fc1"),
    *_layer(DENSE_1, "blocks.{i}.mlp.fc2"),
    *_layer("Transformer/encoder_norm", "norm", SAME),
    *_layer("head", "head"),
]
# The files of transformers' ViTModel; ViTForImageClassification adds the prefix "vit.".
_HF_LAYER = "encoder.layer.{i}"
HF = [
    ("cls", "embeddings.cls_token", SAME),
    (POSITIONS, "embeddings.position_embeddings", SAME),
    *_layer("embedding", "embeddings.patch_embeddings.projection", CONV),
    *_layer(f"{BLOCK}/LayerNorm_0", f"{_HF_LAYER}.layernorm_before", SAME),
    (f"{QKV}/kernel", f"{_HF_LAYER}.attention.attention.{{qkv}}.weight", TO_HEADS),
    (f"{QKV}/bias", f"{_HF_LAYER}.attention.attention.{{qkv}}.bias", BIAS_TO_HEADS),
    *_layer(f"{ATTENTION}/out", f"{_HF_LAYER}.attention.output.dense"),
    *_layer(f"{BLOCK}/LayerNorm_1", f"{_HF_LAYER}.layernorm_after", SAME),
    *_layer(DENSE_0, f"{_HF_LAYER}.intermediate.dense"),
    *_layer(DENSE_1, f"{_HF_LAYER}.output.dense"),
    *_layer("Transformer/encoder_norm", "layernorm", SAME),
    *_layer("pre_logits", "pooler.dense"),  # tanh(dense(class token)), as in the 2020 checkpoints
    *_layer("head", "classifier"),
]
# torchvision/models/vision_transformer.py
_TV_LAYER = "encoder.layers.encoder_layer_{i}"
TORCHVISION = [
    ("cls", "class_token", SAME),
    (POSITIONS, "encoder.pos_embedding", SAME),
    *_layer("embedding", "conv_proj", CONV),
    *_layer(f"{BLOCK}/LayerNorm_0", f"{_TV_LAYER}.ln_1", SAME),
    (f"{QKV}/kernel", f"{_TV_LAYER}.self_attention.in_proj_weight", TO_HEADS),
    (f"{QKV}/bias", f"{_TV_LAYER}.self_attention.in_proj_bias", BIAS_TO_HEADS),
    *_layer(f"{ATTENTION}/out", f"{_TV_LAYER}.self_attention.out_proj"),
    *_layer(f"{BLOCK}/LayerNorm_1", f"{_TV_LAYER}.ln_2", SAME),
    *_layer(DENSE_0, f"{_TV_LAYER}.mlp.0"),
    *_layer(DENSE_1, f"{_TV_LAYER}.mlp.3"),
    *_layer("Transformer/encoder_norm", "encoder.ln", SAME),
    *_layer("pre_logits", "heads.pre_logits"),
    *_layer("head", "heads.head"),
]


def _resnet18():
    blocks = {f"layer{i}_{j}/": f"layer{i}.{j}." for i in range(1, 5) for j in range(2)}
    layers = [(f"conv{i}", f"bn{i}", f"conv{i}", f"bn{i}") for i in (1, 2)]
    layers += [("downsample_conv", "downsample_bn", "downsample.0", "downsample.1")]
    for ours, theirs in {"": "", **blocks}.items():
        for conv, norm, their_conv, their_norm in layers:
            yield f"{ours}{conv}/kernel", f"{theirs}{their_conv}.weight", CONV
            yield from _layer(f"{ours}{norm}", f"{theirs}{their_norm}", SAME)
            for stat in ("mean", "var"):
                key = f"{theirs}{their_norm}.running_{stat}"
                yield f"batch_stats/{ours}{norm}/{stat}", key, SAME
    yield from _layer("head", "fc")


# torchvision/models/resnet.py; timm's resnet18 has the same names.
RESNET18 = [*_resnet18()]
# The official JAX files have our names, once `canonical`.
NPZ = [(path, path, SAME) for path, _, _ in HF]
TABLES = {"npz": NPZ, "timm": TIMM, "hf": HF, "torchvision": TORCHVISION, "resnet18": RESNET18}

# Every format has the first of these paths, or the second, and a key of its own for it.
TYPICAL = ("embedding/kernel", "layer1_0/conv1/kernel")

# The settings that a format's models were trained with, which cannot be read from the arrays.
_HALVES = {"data.mean": (0.5,), "data.std": (0.5,)}
_IMAGENET = {"data.mean": (0.485, 0.456, 0.406), "data.std": (0.229, 0.224, 0.225)}
SETTINGS = {
    "npz": {"model.gelu": "tanh", "model.norm_eps": 1e-6} | _HALVES,
    "timm": {"model.gelu": "erf", "model.norm_eps": 1e-6} | _HALVES,
    "hf": {"model.gelu": "erf", "model.norm_eps": 1e-12} | _HALVES,
    "torchvision": {"model.gelu": "erf", "model.norm_eps": 1e-6} | _IMAGENET,
    "resnet18": _IMAGENET,
}
