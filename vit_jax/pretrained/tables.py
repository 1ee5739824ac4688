"""How other projects name and lay out the arrays of a ViT or a ResNet18: one table per format.

A line of a table is (our path, their key, layout). "{i}" stands for the number of a block; "{qkv}"
for query, key and value: in their key if the three are apart, else they lie joined in one array. A
line concerns only models that have the path.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array of ours becomes theirs, and theirs ours of a given shape."""

    to_theirs: Callable[[np.ndarray], np.ndarray]
    to_ours: Callable[[np.ndarray, tuple], np.ndarray]


SAME = Layout(lambda x: x, lambda x, shape: x)
DENSE = Layout(lambda x: x.T, lambda x, shape: x.T)  # [in, out], [out, in]
CONV = Layout(  # [height, width, in, out], [out, in, height, width]
    lambda x: x.transpose(3, 2, 0, 1), lambda x, shape: x.transpose(2, 3, 1, 0)
)
TO_HEADS = Layout(  # [d, heads, width], [heads * width, d]
    lambda x: x.reshape(len(x), -1).T, lambda x, shape: x.T.reshape(shape)
)
BIAS_TO_HEADS = Layout(  # [heads, width], [heads * width]
    lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape)
)
FROM_HEADS = Layout(  # [heads, width, d], [d, heads * width]
    lambda x: x.reshape(-1, x.shape[-1]).T, lambda x, shape: x.T.reshape(shape)
)

POSITIONS = "Transformer/posembed_input/pos_embedding"
BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
QKV = f"{ATTENTION}/{{qkv}}"
DENSE_0, DENSE_1 = f"{BLOCK}/MlpBlock_0/Dense_0", f"{BLOCK}/MlpBlock_0/Dense_1"


def _norm(ours, theirs):
    return [(f"{ours}/scale", f"{theirs}.weight", SAME), (f"{ours}/bias", f"{theirs}.bias", SAME)]


def _layer(ours, theirs, layout=DENSE):
    return [
        (f"{ours}/kernel", f"{theirs}.weight", layout),
        (f"{ours}/bias", f"{theirs}.bias", SAME),
    ]


# timm/models/vision_transformer.py: VisionTransformer.state_dict()
TIMM = [
    ("cls", "cls_token", SAME),
    (POSITIONS, "pos_embed", SAME),
    *_layer("embedding", "patch_embed.proj", CONV),
    *_norm(f"{BLOCK}/LayerNorm_0", "blocks.{i}.norm1"),
    (f"{QKV}/kernel", "blocks.{i}.attn.qkv.weight", TO_HEADS),
    (f"{QKV}/bias", "blocks.{i}.attn.qkv.bias", BIAS_TO_HEADS),
    *_layer(f"{ATTENTION}/out", "blocks.{i}.attn.proj", FROM_HEADS),
    *_norm(f"{BLOCK}/LayerNorm_1", "blocks.{i}.norm2"),
    *_layer(DENSE_0, "blocks.{i}.mlp.fc1"),
    *_layer(DENSE_1, "blocks.{i}.mlp.fc2"),
    *_norm("Transformer/encoder_norm", "norm"),
    *_layer("head", "head"),
]
# The files of transformers' ViTModel; ViTForImageClassification adds the prefix "vit.".
_HF_LAYER = "encoder.layer.{i}"
HF = [
    ("cls", "embeddings.cls_token", SAME),
    (POSITIONS, "embeddings.position_embeddings", SAME),
    *_layer("embedding", "embeddings.patch_embeddings.projection", CONV),
    *_norm(f"{BLOCK}/LayerNorm_0", f"{_HF_LAYER}.layernorm_before"),
    (f"{QKV}/kernel", f"{_HF_LAYER}.attention.attention.{{qkv}}.weight", TO_HEADS),
    (f"{QKV}/bias", f"{_HF_LAYER}.attention.attention.{{qkv}}.bias", BIAS_TO_HEADS),
    *_layer(f"{ATTENTION}/out", f"{_HF_LAYER}.attention.output.dense", FROM_HEADS),
    *_norm(f"{BLOCK}/LayerNorm_1", f"{_HF_LAYER}.layernorm_after"),
    *_layer(DENSE_0, f"{_HF_LAYER}.intermediate.dense"),
    *_layer(DENSE_1, f"{_HF_LAYER}.output.dense"),
    *_norm("Transformer/encoder_norm", "layernorm"),
    *_layer("pre_logits", "pooler.dense"),  # tanh(dense(class token)), as in the 2020 checkpoints
    *_layer("head", "classifier"),
]
# torchvision/models/vision_transformer.py
_TV_LAYER = "encoder.layers.encoder_layer_{i}"
TORCHVISION = [
    ("cls", "class_token", SAME),
    (POSITIONS, "encoder.pos_embedding", SAME),
    *_layer("embedding", "conv_proj", CONV),
    *_norm(f"{BLOCK}/LayerNorm_0", f"{_TV_LAYER}.ln_1"),
    (f"{QKV}/kernel", f"{_TV_LAYER}.self_attention.in_proj_weight", TO_HEADS),
    (f"{QKV}/bias", f"{_TV_LAYER}.self_attention.in_proj_bias", BIAS_TO_HEADS),
    *_layer(f"{ATTENTION}/out", f"{_TV_LAYER}.self_attention.out_proj", FROM_HEADS),
    *_norm(f"{BLOCK}/LayerNorm_1", f"{_TV_LAYER}.ln_2"),
    *_layer(DENSE_0, f"{_TV_LAYER}.mlp.0"),
    *_layer(DENSE_1, f"{_TV_LAYER}.mlp.3"),
    *_norm("Transformer/encoder_norm", "encoder.ln"),
    *_layer("pre_logits", "heads.pre_logits"),
    *_layer("head", "heads.head"),
]


def _batch_norm(ours, theirs):
    return [
        *_norm(ours, theirs),
        (f"batch_stats/{ours}/mean", f"{theirs}.running_mean", SAME),
        (f"batch_stats/{ours}/var", f"{theirs}.running_var", SAME),
    ]


def _convolution(ours, conv, norm, theirs_conv, theirs_norm):
    return [
        (f"{ours}{conv}/kernel", f"{theirs_conv}.weight", CONV),
        *_batch_norm(f"{ours}{norm}", theirs_norm),
    ]


# torchvision/models/resnet.py; timm's resnet18 has the same names.
RESNET18 = [
    *_convolution("", "conv1", "bn1", "conv1", "bn1"),
    *(
        line
        for stage in range(1, 5)
        for block in range(2)
        for ours, theirs in [(f"layer{stage}_{block}/", f"layer{stage}.{block}.")]
        for line in (
            *_convolution(ours, "conv1", "bn1", f"{theirs}conv1", f"{theirs}bn1"),
            *_convolution(ours, "conv2", "bn2", f"{theirs}conv2", f"{theirs}bn2"),
            *_convolution(
                *(ours, "downsample_conv", "downsample_bn"),
                *(f"{theirs}downsample.0", f"{theirs}downsample.1"),
            ),
        )
    ),
    *_layer("head", "fc"),
]
# The official JAX files: our names, once `canonical`.
NPZ = [(path, path, SAME) for path, _, _ in HF]
TABLES = {"npz": NPZ, "timm": TIMM, "hf": HF, "torchvision": TORCHVISION, "resnet18": RESNET18}

# A key that only this format has, and the settings that its models were trained with, which the
# arrays do not tell.
KNOWN_BY = {
    "npz": "embedding/kernel",
    "timm": "patch_embed.proj.weight",
    "hf": "embeddings.patch_embeddings.projection.weight",
    "torchvision": "conv_proj.weight",
    "resnet18": "layer1.0.conv1.weight",
}
_HALVES, _IMAGENET = ((0.5,), (0.5,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SETTINGS = {
    "npz": dict(gelu="tanh", norm_eps=1e-6, normalization=_HALVES),
    "timm": dict(gelu="erf", norm_eps=1e-6, normalization=_HALVES),
    "hf": dict(gelu="erf", norm_eps=1e-12, normalization=_HALVES),
    "torchvision": dict(gelu="erf", norm_eps=1e-6, normalization=_IMAGENET),
    "resnet18": dict(normalization=_IMAGENET),
}
