"""Settings schema: default, help and bounds of every setting.

The config, its validation, `--help`, docs/settings.md and what a resumed run may change are
generated from it.
"""

import math

from vit_jax.config.setting import (
    BELOW_1,
    DECAY,
    DROP,
    INTERPOLATIONS,
    KINDS,
    POLICY,
    POSITIONS,
    RANDAUGMENT,
    SMALLEST,
    STEP,
    WHEN,
    Setting,
    adam,
    below_1,
    free,
    lion,
    lora,
    muon,
    plateau,
    positive,
    resnet,
    sgd,
    vit,
)

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

_DATA = dict(
    name=Setting("cifar10", "dataset: a TFDS name such as eurosat/rgb, folder or digits"),
    dir=free(
        "",
        "image folder, or TFDS data directory (empty: TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    ),
    train_split=Setting("train", "training split: TFDS split string or name of a subfolder"),
    val_split=Setting(
        "auto",
        "validation split; auto: the dataset's own, else hold_out: held out from train",
    ),
    test_split=Setting(
        "auto", "test split; auto: the dataset's own, else hold_out: held out from train"
    ),
    image_key=Setting("image", "name of the TFDS feature with the images"),
    label_key=Setting("label", "name of the TFDS feature with the classes"),
    val_size=positive(0.1, "held-out validation split: fraction or number of images"),
    test_size=positive(0.2, "held-out test split: fraction or number of images"),
    split_seed=Setting(0, "random seed of held-out splits and subsets", high=math.inf),
    train_examples=Setting(0, "size of a stratified subset of the training split; 0: all"),
    val_examples=Setting(0, "size of a stratified subset of the validation split; 0: all"),
    test_examples=Setting(0, "size of a stratified subset of the test split; 0: all"),
    examples_per_class=Setting(0, "training examples per class in a balanced subset; 0: all"),
    image_size=Setting(32, "model input side in pixels; 0: that of init_from", high=10_000),
    stored_size=Setting(
        0,
        "image side in pixels until the device resizes it to image_size; 0: image_size, or with "
        "another resize_mode than fit, image_size / eval_crop",
        high=10_000,
    ),
    resize_mode=Setting(
        "fit",
        "resizing of images; fit: of the central square; shorter_side: of the shorter side, then "
        "a centre crop; squash: to a square, without a crop",
        ("fit", "shorter_side", "squash"),
    ),
    interpolation=Setting("bicubic", "interpolation of resized images", INTERPOLATIONS),
    eval_crop=positive(1.0, "side of the centre crop in evaluation, as a fraction", high=1),
    channels=Setting(3, "3: RGB, 1: greyscale; images are converted", (1, 3)),
    background=Setting((255,), "grey level or RGB behind transparent pixels", high=255),
    level_range=Setting(
        (),
        "levels that become black and white, of images with more than 8 bits per channel; (): "
        "decided by a sample of training images",
        low=-math.inf,
        high=math.inf,
    ),
    max_pixels=free(178_956_970, "largest image that is read, in pixels", low=1),
    mean=Setting((0.5,), "mean of pixels in [0, 1]; one value, or one per channel", high=1),
    std=Setting((0.5,), "std of pixels in [0, 1]; one value, or one per channel", low=1e-3, high=1),
    device_resident=free("auto", "decode the dataset once and keep it on the device", WHEN),
    device_resident_max_gib=free(
        2.0, "largest dataset, in GiB of uint8 pixels, that data.device_resident=auto accepts"
    ),
    skip_corrupt=Setting(False, "skip and count the unreadable files of an image folder"),
    num_threads=free(8, "threads that read and decode images", low=1, high=1000),
    cache_decoded=free(True, "cache decoded images in ~/.cache/vit_jax"),
    download=free(True, "download and prepare a missing dataset, if known"),
)

_AUGMENT = dict(
    kind=Setting(
        "baseline",
        "recipe; none: normalisation only; baseline: random crop and flip; the others: baseline "
        "and that policy; strong: AutoAugment, random erasing, mixup and CutMix",
        KINDS,
    ),
    crop_padding=Setting(4, "padding in pixels on each side before the random crop"),
    crop_min_area=Setting(
        0.0, "smallest area fraction of a random resized crop; 0: padded crop", high=1
    ),
    flip=Setting(True, "mirror images horizontally with probability 0.5"),
    fill=Setting(0, "grey level of padding and of areas uncovered by a transform", high=255),
    policy=Setting("cifar10", "AutoAugment policy", ("cifar10", "imagenet"), applies=POLICY),
    num_ops=Setting(2, "RandAugment operations per image", low=1, high=100, applies=RANDAUGMENT),
    magnitude=Setting(9, "RandAugment magnitude", high=30, applies=RANDAUGMENT),
    rotation_degrees=Setting(0.0, "largest random rotation in degrees; 0: off", high=180),
    brightness=Setting(0.0, "brightness jitter: factor in [1 - this, 1 + this]; 0: off", high=1),
    contrast=Setting(0.0, "contrast jitter: factor in [1 - this, 1 + this]; 0: off", high=1),
    saturation=Setting(0.0, "saturation jitter: factor in [1 - this, 1 + this]; 0: off", high=1),
    cutout_length=Setting(
        0, "side of the cutout square in pixels; 0: half of image_size for kind=cutout, else off"
    ),
    erasing_rate=Setting(0.0, "fraction of images with random erasing; 0: off", high=1),
    mixup_alpha=Setting(0.0, "mixup: weights from Beta(alpha, alpha); 0: off", high=1000),
    cutmix_alpha=Setting(0.0, "CutMix: area fractions from Beta(alpha, alpha); 0: off", high=1000),
    cutmix_rate=Setting(0.5, "fraction of CutMix where mixup and CutMix are both on", high=1),
    mix_rate=Setting(0.5, "fraction of images that mixup or CutMix changes", high=1),
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
        0.0, "fraction of patches dropped in training, of each image as many", high=0.99
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

_OPTIM = dict(
    name=Setting(
        "adamw",
        "optimizer; sgd: with momentum; muon: for block kernels, with AdamW for the rest; "
        "schedule_free_adamw: averages weights for evaluation instead of decaying the learning "
        "rate",
        ("adamw", "adam", "sgd", "muon", "lion", "schedule_free_adamw"),
    ),
    learning_rate=Setting(1e-3, "peak learning rate", high=100),
    schedule=Setting(
        "cosine",
        "learning rate schedule after warm-up; schedule_free_adamw needs constant",
        ("constant", "cosine", "linear", "step", "reduce_on_plateau"),
    ),
    end_learning_rate=Setting(
        0.0, "final learning rate; reduce_on_plateau: smallest", applies=DECAY
    ),
    warmup_steps=Setting(0, "linear warm-up in optimizer updates"),
    warmup_epochs=Setting(0.0, "linear warm-up in epochs"),
    warmup_percent=Setting(0.0, "linear warm-up in percent of the run"),
    decay_at_percent=Setting(
        (50.0, 75.0), "percent of the run at which the learning rate decays", applies=STEP
    ),
    decay_factor=Setting(0.1, "learning rate factor of each decay", high=1, applies=DROP),
    plateau_patience=plateau(10, "evaluations without a lower validation loss before a decay"),
    plateau_cooldown=plateau(0, "evaluations after a decay that are not counted"),
    plateau_threshold=plateau(
        1e-4, "relative decrease that counts as a lower validation loss", low=SMALLEST, high=BELOW_1
    ),
    weight_decay=Setting(
        0.0,
        "weight decay of kernels and LoRA adapters: L2 (adam, sgd) or decoupled (all others)",
        high=1000,
    ),
    b1=adam(
        0.9,
        "decay of Adam's first moment; schedule_free_adamw: fraction of the averaged weights in "
        "those of the gradient",
        high=BELOW_1,
    ),
    b2=adam(0.999, "decay of Adam's second moment", high=BELOW_1),
    eps=adam(1e-8, "epsilon of Adam", low=SMALLEST),
    lion_b1=lion(0.9, "fraction of the momentum in Lion's update", high=BELOW_1),
    lion_b2=lion(0.99, "decay of Lion's momentum", high=BELOW_1),
    muon_momentum=muon(0.95, "Nesterov momentum of Muon", high=BELOW_1),
    muon_rms=muon(
        0.2, "RMS of a Muon update before the learning rate (AdamW: about 0.2)", high=100
    ),
    muon_iterations=muon(5, "Newton-Schulz iterations that orthogonalise a Muon update", high=100),
    layer_decay=positive(
        1.0, "layer-wise decay: learning rate factor from each block to the one below", high=1
    ),
    momentum=sgd(0.9, "momentum of SGD", high=BELOW_1),
    nesterov=sgd(False, "Nesterov momentum of SGD"),
    grad_clip_norm=Setting(0.0, "largest global gradient norm; 0: no clipping"),
    ema_decay=below_1(0.0, "decay of the moving average of weights that evaluation uses; 0: off"),
)

_TRAIN = dict(
    epochs=Setting(
        0.0, "length of the run in epochs; or train.steps, train.budget_pflop", resume="longer"
    ),
    steps=Setting(
        0,
        "length of the run in optimizer updates; or train.epochs, train.budget_pflop",
        resume="longer",
    ),
    budget_pflop=Setting(
        0.0,
        "length of the run in PFLOP of training (10^15 operations); or train.epochs, train.steps",
        resume="longer",
    ),
    num_seeds=free(1, "runs per variant, with consecutive seeds", low=1, high=1000),
    vmap_seeds=free("auto", "train all seeds in one vectorised program", WHEN),
    multi_step=free("auto", "multi-step dispatch: several steps per call", WHEN),
    batch_size=Setting(128, "examples per optimizer update, over all devices and processes", low=1),
    accumulation_steps=Setting(
        0,
        "micro-batches per optimizer update, each of at least 8 images for resnet18, whose "
        "BatchNorm normalises each separately; 0: the fastest number",
    ),
    label_smoothing=below_1(0.0, "fraction of the target spread evenly over all classes"),
    patch_drop_percent=positive(
        100.0, "percent of the run with patch dropout; the rest sees all patches", high=100
    ),
    teacher=Setting(
        "",
        "distillation: folder of a run or of a converted checkpoint, or weight file, whose "
        "predictions are learned; or name of an earlier variant, of which the first seed teaches",
        resume="moved",
    ),
    distill_weight=positive(
        0.5, "weight of the teacher's loss; that of the labels is the rest of 1", high=1
    ),
    distill_temperature=positive(
        2.0, "temperature that softens both predictions of the teacher's loss", high=1000
    ),
    dtype=Setting(
        "auto",
        "compute dtype; auto: bfloat16 on GPU and TPU, float32 on CPU",
        ("auto", "float32", "bfloat16"),
    ),
    remat=Setting(False, "rematerialise each block in the backward pass: less memory, more time"),
    cache_features=Setting(
        True, "compute the features of a frozen trunk once, without augmentation"
    ),
    eval_every_steps=Setting(0, "optimizer updates between evaluations (each with a checkpoint)"),
    eval_every_epochs=Setting(1.0, "epochs between evaluations (each with a checkpoint)"),
    eval_every_percent=Setting(
        0.0, "percent of the run between evaluations (each with a checkpoint)"
    ),
    save_every_minutes=free(10.0, "minutes between checkpoints without an evaluation; 0: off"),
    eval_batch_size=free(256, "examples per evaluation step (no effect on results)", low=1),
    select=Setting(
        "best", "checkpoint for the test: best validation accuracy, or last", ("best", "last")
    ),
)

_LOG = dict(
    every_steps=Setting(50, "optimizer updates between log entries"),
    every_epochs=Setting(0.0, "epochs between log entries"),
    every_percent=Setting(0.0, "percent of the run between log entries"),
    parameter_table=free(False, "print every parameter at the start, not one line per block"),
    tensorboard=free(True, "write TensorBoard event files"),
    wandb=free(False, "log to Weights & Biases (needs the package wandb)"),
    figures_every=free(0, "evaluations between figures of rollout and position embeddings; 0: off"),
    explain_images=free(64, "test images for the faithfulness scores of the best ViT; 0: off"),
    kernel_magnitudes=Setting(False, "figure of kernel magnitudes before and after training"),
)

_SHARDING = dict(
    distributed=free(False, "this is one of several processes of a run (SLURM, TPU pod)"),
    cpu_devices=free(0, "CPU devices per process; 0: one per core", high=1000),
    fsdp=free(False, "shard parameters, EMA and optimizer state over devices"),
)

SECTIONS = {
    "": _RUN,
    "data": _DATA,
    "augment": _AUGMENT,
    "model": _MODEL,
    "optim": _OPTIM,
    "train": _TRAIN,
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
