"""Settings schema: default, help and bounds of every setting.

The config, its validation, `--help`, docs/settings.md and what a resumed run may change are
generated from it.
"""

import math

from vit_jax.config.schema_data import AUGMENT, DATA
from vit_jax.config.schema_training import OPTIM, TRAIN
from vit_jax.config.setting import POSITIONS, SMALLEST, Setting, free, lora, resnet, vit

_RUN = dict(
    seed=Setting(0, "random seed of the first run; further runs count up from it", high=math.inf),
    init_from=Setting(
        "",
        "initial weights: folder of a converted checkpoint or of a run, or a weight file of "
        "another project",
        resume="moved",
    ),
    keep_head=Setting(
        False,
        "keep the head of init_from for classes of other or unknown names: the dataset's classes "
        "are those of the head, in its order",
    ),
    freeze=Setting(
        "full",
        "trained parameters: full, last_K_blocks, lora (low-rank adapters of attention, and the "
        "head), head, none_trained (zero-shot head, evaluation only), or rules such as "
        "'head/.*=trained; .*=frozen'",
    ),
    lora_rank=lora(
        8, "rank of the LoRA adapters of query, key, value and out in every block", low=1
    ),
    lora_alpha=lora(
        0.0, "LoRA adapters are scaled by lora_alpha / lora_rank; 0: lora_rank", high=10**6
    ),
)

_MODEL = dict(
    name=Setting("vit", "model architecture", ("vit", "resnet18")),
    size=vit(
        "", "named size such as Ti/16, S/16, B/16 or So400m/14; fills the dimensions that are 0"
    ),
    patch_size=vit(0, "patch side in pixels"),
    hidden_size=Setting(
        0, "token width; resnet18: channels of the first stage (0: 64)", high=100_000
    ),
    depth=vit(0, "number of encoder blocks", high=1000),
    num_heads=vit(0, "attention heads per block"),
    mlp_dim=vit(0, "hidden width of the MLP", high=10**6),
    attention=vit(
        "softmax",
        "attention; differential: each head subtracts one softmax map from another; lsa: no token "
        "attends to itself, and each head learns the scale of its scores",
        ("softmax", "differential", "lsa"),
    ),
    qk_norm=vit(False, "normalise queries and keys of each head"),
    head_dim=vit(0, "width of an attention head; 0: hidden_size / num_heads", high=100_000),
    num_registers=vit(0, "register tokens: learned, without a position", high=1000),
    patchify=vit(
        "conv",
        "patch embedding: strided convolution; manual: reshape and dense layer; conv_stem: 3x3 "
        "convolutions and max pooling; spt: patches with those of four shifted copies",
        ("conv", "manual", "conv_stem", "spt"),
    ),
    pos_embed=vit("learned_1d", "position embedding", POSITIONS),
    pool=vit(
        "cls",
        "pooling: class token; mean of patch tokens; cls_mean: both, concatenated; map: attention "
        "of a learned query, and an MLP; seq: mean with learned weights; max: of patch tokens; "
        "avgmax: mean of mean and max; cls_dist: class token and first register, concatenated",
        ("cls", "mean", "cls_mean", "map", "seq", "max", "avgmax", "cls_dist"),
    ),
    class_token=Setting(
        False,
        "class token that takes part in attention but not in pooling",
        applies=("model.pool", ("mean", "map", "seq", "max", "avgmax")),
    ),
    fc_norm=Setting(
        False,
        "final norm after the pooling instead of before it, as in timm",
        applies=("model.pool", ("mean", "max", "avgmax")),
    ),
    dropout_rate=vit(0.0, "dropout after embedding, attention and both MLP layers", high=0.99),
    attention_dropout_rate=vit(0.0, "dropout of attention weights", high=0.99),
    drop_path_rate=vit(
        0.0, "stochastic depth of the last block, linear from 0 at the first", high=0.99
    ),
    patch_drop_rate=vit(
        0.0, "fraction of patches dropped in training, the same number in every image", high=0.99
    ),
    qkv_bias=vit(True, "bias of query, key and value; differential: of the output layer too"),
    mlp=vit(
        "gelu",
        "MLP of a block; swiglu: hidden layer times SiLU of a gate, instead of GELU",
        ("gelu", "swiglu"),
    ),
    gelu=vit(
        "tanh",
        "GELU: tanh approximation, exact (erf), or x * sigmoid(1.702 x) (quick)",
        ("tanh", "erf", "quick"),
    ),
    norm=vit("layer", "norms of the ViT: LayerNorm, or (rms) RMSNorm", ("layer", "rms")),
    norm_eps=vit(1e-6, "epsilon of the norms", low=SMALLEST),
    pre_norm=vit(False, "norm before the first block, as in CLIP"),
    layer_scale_init=vit(
        0.0, "initial LayerScale, the factors per channel of residual branches; 0: off", high=100
    ),
    representation_size=vit(0, "width of a tanh layer before the head; 0: none", high=10**6),
    init=vit(
        "default",
        "initialisation of block kernels; mimetic: attention as in pretrained ViTs; impulse: each "
        "head attends to one neighbour",
        ("default", "mimetic", "impulse"),
    ),
    head_zero_init=vit(True, "zero-initialise the head, for uniform initial predictions"),
    stem=resnet(
        "cifar",
        "ResNet stem: 3x3 convolution (cifar), or 7x7 with stride 2 and max pooling (imagenet)",
        ("cifar", "imagenet"),
    ),
    zero_init_residual=resnet(False, "zero-initialise the last norm of each residual block"),
)

_LOG = dict(
    every_steps=Setting(50, "optimizer updates between log entries"),
    every_epochs=Setting(0.0, "epochs between log entries"),
    every_percent=Setting(0.0, "percent of the run between log entries"),
    parameter_table=free(False, "print every parameter at the start, not one line per block"),
    tensorboard=free(True, "write TensorBoard event files"),
    wandb=free(False, "log to Weights & Biases (needs the package wandb)"),
    figures_every=free(0, "evaluations between figures of rollout and position embeddings; 0: off"),
    explain_images=free(
        64, "test images for the faithfulness scores of the best ViT; 0: off, and no explorer.html"
    ),
    kernel_magnitudes=Setting(False, "figure of kernel magnitudes before and after training"),
)

_SHARDING = dict(
    distributed=free(False, "this is one of several processes of a run (SLURM, TPU pod)"),
    cpu_devices=free(
        0,
        "CPU devices per process; 0: the greatest common divisor of its cores and its local batch",
        high=1000,
    ),
    fsdp=free(
        False,
        "shard parameters, EMA and optimizer state over devices, and recompute activations",
    ),
)

SECTIONS = {
    "": _RUN,
    "data": DATA,
    "augment": AUGMENT,
    "model": _MODEL,
    "optim": OPTIM,
    "train": TRAIN,
    "log": _LOG,
    "sharding": _SHARDING,
}
SCHEMA: dict[str, Setting] = {
    f"{section}.{name}".removeprefix("."): setting
    for section, table in SECTIONS.items()
    for name, setting in table.items()
}

# {old name: name} of renamed settings; config.json of earlier runs may contain the old ones.
RENAMED = {
    "data.keep_decoded": "data.cache_decoded",
    "data.resident": "data.device_resident",
    "data.resident_max_gib": "data.device_resident_max_gib",
    "train.seeds_at_once": "train.vmap_seeds",
    "train.steps_at_once": "train.multi_step",
}
