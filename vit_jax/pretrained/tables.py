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

BLOCK = "Transformer/encoderblock_{i}"
POSITIONS, REGISTERS = "Transformer/posembed_input/pos_embedding", "Transformer/registers"
NORM_0, NORM_1 = f"{BLOCK}/LayerNorm_0", f"{BLOCK}/LayerNorm_1"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
QKV, OUT = f"{ATTENTION}/{{qkv}}", f"{ATTENTION}/out"
DENSE_0, DENSE_1 = f"{BLOCK}/MlpBlock_0/Dense_0", f"{BLOCK}/MlpBlock_0/Dense_1"
HIDDEN = f"{BLOCK}/MlpBlock_0/{{hidden}}"
SCALES = (f"{BLOCK}/layer_scale_0", f"{BLOCK}/layer_scale_1")
PROBE, POOLING = "MAPHead_0/probe", "MAPHead_0/MultiHeadDotProductAttention_0"
PRE_NORM, FINAL_NORM = "Transformer/pre_norm", "Transformer/encoder_norm"

# {placeholder of a path: the names that it stands for}.
PACKED = {
    "qkv": ("query", "key", "value"),
    "kv": ("key", "value"),
    "hidden": ("gate", "Dense_0"),  # of SwiGLU; other MLPs have no gate
}
# Our paths, without the parameter's name, and the layout of the kernel (for a norm, of its scale).
_LAYOUTS = {
    **dict.fromkeys(("cls", POSITIONS, REGISTERS, *SCALES, PROBE), SAME),
    **dict.fromkeys((NORM_0, NORM_1, PRE_NORM, FINAL_NORM, "fc_norm"), SAME),
    **dict.fromkeys((f"{ATTENTION}/query_norm", f"{ATTENTION}/key_norm"), SAME),
    **dict.fromkeys((f"{BLOCK}/RMSNorm_0", f"{BLOCK}/RMSNorm_1"), SAME),
    "MAPHead_0/LayerNorm_0": SAME,
    "embedding": CONV,
    QKV: TO_HEADS,
    f"{POOLING}/{{qkv}}": TO_HEADS,
    f"{POOLING}/{{kv}}": TO_HEADS,
    f"{POOLING}/query": TO_HEADS,
}  # all others: DENSE

# {our path: key} per layout. A key that ends in "." or "_" is that of a layer, "weight" and "bias"
# follow; others are those of arrays.
_TIMM = {  # VisionTransformer and VisionTransformerDistilled of timm, and what has its names
    "cls": "cls_token",
    REGISTERS: "reg_token",
    POSITIONS: "pos_embed",
    "embedding": "patch_embed.proj.",
    PRE_NORM: "norm_pre.",
    NORM_0: "blocks.{i}.norm1.",
    QKV: "blocks.{i}.attn.qkv.",
    f"{ATTENTION}/query_norm": "blocks.{i}.attn.q_norm.",
    f"{ATTENTION}/key_norm": "blocks.{i}.attn.k_norm.",
    OUT: "blocks.{i}.attn.proj.",
    SCALES[0]: "blocks.{i}.ls1.gamma",
    NORM_1: "blocks.{i}.norm2.",
    HIDDEN: "blocks.{i}.mlp.fc1.",
    DENSE_1: "blocks.{i}.mlp.fc2.",
    SCALES[1]: "blocks.{i}.ls2.gamma",
    f"{BLOCK}/RMSNorm_0": "blocks.{i}.norm1.",
    f"{BLOCK}/RMSNorm_1": "blocks.{i}.norm2.",
    FINAL_NORM: "norm.",
    "fc_norm": "fc_norm.",
    PROBE: "attn_pool.latent",
    f"{POOLING}/query": "attn_pool.q.",
    f"{POOLING}/{{kv}}": "attn_pool.kv.",
    f"{POOLING}/out": "attn_pool.proj.",
    "MAPHead_0/LayerNorm_0": "attn_pool.norm.",
    "MAPHead_0/MlpBlock_0/Dense_0": "attn_pool.mlp.fc1.",
    "MAPHead_0/MlpBlock_0/Dense_1": "attn_pool.mlp.fc2.",
    "head": "head.",
}
_HF = {  # ViT, DeiT, MSN, MAE and I-JEPA of transformers, without the model's prefix
    "cls": "embeddings.cls_token",
    REGISTERS: "embeddings.register_tokens",
    POSITIONS: "embeddings.position_embeddings",
    "embedding": "embeddings.patch_embeddings.projection.",
    NORM_0: "encoder.layer.{i}.layernorm_before.",
    QKV: "encoder.layer.{i}.attention.attention.{qkv}.",
    OUT: "encoder.layer.{i}.attention.output.dense.",
    NORM_1: "encoder.layer.{i}.layernorm_after.",
    DENSE_0: "encoder.layer.{i}.intermediate.dense.",
    DENSE_1: "encoder.layer.{i}.output.dense.",
    FINAL_NORM: "layernorm.",
    "pre_logits": "pooler.dense.",  # tanh(dense(class token)), as in the 2020 checkpoints
    "head": "classifier.",
}
_DINOV2 = {  # DINOv2 of transformers, with and without registers
    **{path: _HF[path] for path in ("cls", REGISTERS, POSITIONS, "embedding", QKV, OUT)},
    NORM_0: "encoder.layer.{i}.norm1.",
    SCALES[0]: "encoder.layer.{i}.layer_scale1.lambda1",
    NORM_1: "encoder.layer.{i}.norm2.",
    HIDDEN: "encoder.layer.{i}.mlp.fc1.",
    DENSE_1: "encoder.layer.{i}.mlp.fc2.",
    SCALES[1]: "encoder.layer.{i}.layer_scale2.lambda1",
    FINAL_NORM: "layernorm.",
    "head": "classifier.",
}
_CLIP = {  # image towers of CLIP, SigLIP and SigLIP 2 of transformers
    "cls": "embeddings.class_embedding",
    POSITIONS: "embeddings.position_embedding.weight",
    "embedding": "embeddings.patch_embedding.",
    PRE_NORM: "pre_layrnorm.",
    NORM_0: "encoder.layers.{i}.layer_norm1.",
    QKV: "encoder.layers.{i}.self_attn.{q}_proj.",
    OUT: "encoder.layers.{i}.self_attn.out_proj.",
    NORM_1: "encoder.layers.{i}.layer_norm2.",
    DENSE_0: "encoder.layers.{i}.mlp.fc1.",
    DENSE_1: "encoder.layers.{i}.mlp.fc2.",
    FINAL_NORM: "post_layernorm.",
    PROBE: "head.probe",
    f"{POOLING}/{{qkv}}": "head.attention.in_proj_",
    f"{POOLING}/out": "head.attention.out_proj.",
    "MAPHead_0/LayerNorm_0": "head.layernorm.",
    "MAPHead_0/MlpBlock_0/Dense_0": "head.mlp.fc1.",
    "MAPHead_0/MlpBlock_0/Dense_1": "head.mlp.fc2.",
    "head": "classifier.",
}
_OPEN_CLIP = {  # image towers of OpenAI's CLIP and of open_clip, without the prefix "visual."
    "cls": "class_embedding",
    POSITIONS: "positional_embedding",
    "embedding": "conv1.",
    PRE_NORM: "ln_pre.",
    NORM_0: "transformer.resblocks.{i}.ln_1.",
    QKV: "transformer.resblocks.{i}.attn.in_proj_",
    OUT: "transformer.resblocks.{i}.attn.out_proj.",
    SCALES[0]: "transformer.resblocks.{i}.ls_1.gamma",
    NORM_1: "transformer.resblocks.{i}.ln_2.",
    DENSE_0: "transformer.resblocks.{i}.mlp.c_fc.",
    DENSE_1: "transformer.resblocks.{i}.mlp.c_proj.",
    SCALES[1]: "transformer.resblocks.{i}.ls_2.gamma",
    FINAL_NORM: "ln_post.",
}
_TORCHVISION = {
    "cls": "class_token",
    POSITIONS: "encoder.pos_embedding",
    "embedding": "conv_proj.",
    NORM_0: "encoder.layers.encoder_layer_{i}.ln_1.",
    QKV: "encoder.layers.encoder_layer_{i}.self_attention.in_proj_",
    OUT: "encoder.layers.encoder_layer_{i}.self_attention.out_proj.",
    NORM_1: "encoder.layers.encoder_layer_{i}.ln_2.",
    DENSE_0: "encoder.layers.encoder_layer_{i}.mlp.0.",
    DENSE_1: "encoder.layers.encoder_layer_{i}.mlp.3.",
    FINAL_NORM: "encoder.ln.",
    "pre_logits": "heads.pre_logits.",
    "head": "heads.head.",
}
_NPZ = {  # our paths are the keys, after `canonical`
    **{path: path for path in ("cls", POSITIONS, PROBE)},
    **{path: "." for path in ("embedding", NORM_0, QKV, OUT, NORM_1, DENSE_0, DENSE_1)},
    **{path: "." for path in (FINAL_NORM, "pre_logits", "head")},
    **{path: "." for path in (f"{POOLING}/{{qkv}}", f"{POOLING}/out", "MAPHead_0/LayerNorm_0")},
    **{f"MAPHead_0/MlpBlock_0/Dense_{i}": "." for i in (0, 1)},
}


def _layer(ours, theirs, layout=DENSE):
    yield f"{ours}/{'scale' if layout is SAME else 'kernel'}", f"{theirs}weight", layout
    yield f"{ours}/bias", f"{theirs}bias", BIAS_TO_HEADS if layout is TO_HEADS else SAME


def _vit(keys):
    for path, key in keys.items():
        layout = _LAYOUTS.get(path, DENSE)
        if key[-1] in "._":
            yield from _layer(path, key, layout)
        else:
            yield path, key, layout


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
    "npz": [(path, path, SAME) for path, _, _ in _vit(_NPZ)],
    "timm": [*_vit(_TIMM)],
    "hf_dinov2": [*_vit(_DINOV2)],
    "hf": [*_vit(_HF)],
    "hf_clip": [*_vit(_CLIP)],
    "open_clip": [*_vit(_OPEN_CLIP)],
    "torchvision": [*_vit(_TORCHVISION)],
    "resnet18": [*_resnet18()],
}

# Keys that distinguish a format from all following ones.
TYPICAL = {
    "npz": ("embedding/kernel",),
    "timm": ("patch_embed.proj.weight",),
    "hf_dinov2": ("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.norm1.weight"),
    "hf": ("embeddings.patch_embeddings.projection.weight",),
    "hf_clip": ("embeddings.patch_embedding.weight",),
    "open_clip": ("conv1.weight", "transformer.resblocks.0.ln_1.weight"),
    "torchvision": ("conv_proj.weight",),
    "resnet18": ("layer1.0.conv1.weight",),
}

# Mean and standard deviation of the normalised pixels.
HALVES = {"data.mean": (0.5,), "data.std": (0.5,)}
IMAGENET = {"data.mean": (0.485, 0.456, 0.406), "data.std": (0.229, 0.224, 0.225)}
CLIP = {
    "data.mean": (0.48145466, 0.4578275, 0.40821073),
    "data.std": (0.26862954, 0.26130258, 0.27577711),
}
# Settings of a format's models that the arrays do not record.
SETTINGS = {
    "npz": {"model.gelu": "tanh", "model.norm_eps": 1e-6},
    "timm": {"model.gelu": "erf", "model.norm_eps": 1e-6},
    "hf_dinov2": {"model.gelu": "erf", "model.norm_eps": 1e-6},
    "hf": {"model.gelu": "erf", "model.norm_eps": 1e-12},
    "hf_clip": {"model.gelu": "tanh", "model.norm_eps": 1e-6},  # SigLIP's
    "open_clip": {"model.gelu": "erf", "model.norm_eps": 1e-5, "model.pool": "cls"},
    "torchvision": {"model.gelu": "erf", "model.norm_eps": 1e-6},
    "resnet18": {},
}

# Names of settings in config.json: of timm's pooling {theirs: ours}, and of GELU {ours: theirs}.
TIMM_POOLS = {"token": "cls", "avg": "mean", "map": "map", "max": "max", "avgmax": "avgmax"}
TIMM_GELUS = {"erf": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
HF_GELUS = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
