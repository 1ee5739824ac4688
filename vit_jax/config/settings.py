"""Every setting of a run, once, with its default and meaning."""

import difflib
import re
from collections.abc import Collection
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from vit_jax.runtime.errors import UserError, truncate_repr

Config: TypeAlias = Any  # a ConfigDict; type checkers cannot know its attributes

# hidden_size, depth, num_heads, mlp_dim: Dosovitskiy et al. 2021, table 1; Ti and S from
# Touvron et al. 2021 (DeiT), table 1.
MODEL_SIZES = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
}
DIMENSIONS = ("hidden_size", "depth", "num_heads", "mlp_dim")


def get_config() -> Config:
    """Returns the documented defaults; an experiment's config file changes some of them."""
    config: Config = ConfigDict()
    config.seed = 0  # of the first run; further seeds count up from it
    config.init_from = ""  # weights to begin with: a converted checkpoint, or a run's folder
    config.freeze = "full"  # trained: none_trained, head, last_4_blocks (say), full; or own rules
    config.data = _data()
    config.augment = _augment()
    config.model = _model()
    config.optim = _optim()
    config.train = _train()
    config.log = _log()
    config.sharding = _sharding()
    return config.lock()


def _data():
    data: Config = ConfigDict()
    data.name = "cifar10"  # a TFDS name ("eurosat/rgb"), "folder" or "digits"
    data.dir = ""  # TFDS data dir ("": TFDS_DATA_DIR, then ~/tensorflow_datasets), or the folder
    data.train_split = "train"  # TFDS split string, or folder; flat folders and digits have none
    data.val_split = "auto"  # "auto": the set's own if it has one, else carved from train
    data.test_split = "auto"  # likewise; carved before the validation part
    data.val_size = 0.1  # carved: below 1 a share of the training examples, else a number
    data.test_size = 0.2  # likewise
    data.split_seed = 0  # of the carving and the subsets; apart from `seed`, so runs share splits
    data.train_examples = 0  # keep that many training examples, classes in proportion; 0: all
    data.examples_per_class = 0  # keep that many training examples of each class; 0: all
    data.image_size = 32  # pixels; others are resized and centre-cropped; 0: that of init_from
    data.stored_size = 0  # pixels of the images held; the device resizes them; 0: image_size
    data.eval_crop = 1.0  # side of the central square that evaluation sees, as a share
    data.channels = 3  # 3: RGB, 1: greyscale; images are converted
    data.mean = (0.5,)  # of the pixels in [0, 1], subtracted; one value, or one per channel
    data.std = (0.5,)  # likewise, divided by
    data.resident = "auto"  # "always": decoded once, held on the device; "never": streamed
    data.resident_max_gib = 2.0  # GiB of uint8 pixels up to which "auto" is resident
    data.skip_corrupt = False  # leave unreadable files of a folder out, and count them
    data.num_threads = 8  # that read and decode images
    data.keep_decoded = True  # keep decoded images in ~/.cache/vit_jax, for the next start
    data.download = True  # fetch and prepare a missing known set
    return data


def _augment():
    augment: Config = ConfigDict()
    augment.kind = "baseline"  # none, baseline, cutout, strong, or {auto,rand,trivial}augment
    augment.crop_padding = 4  # pixels on each side, before a random crop; in all kinds but none
    augment.crop_min_area = 0.0  # instead, resize a random part of at least this share; 0: off
    augment.flip = True  # mirror half of the images; in all kinds but none
    augment.fill = 0  # grey level, 0 to 255, of the padding and of what moved pixels uncover
    augment.policy = "cifar10"  # autoaugment and strong: "cifar10" or "imagenet"
    augment.num_ops = 2  # randaugment: operations per image
    augment.magnitude = 9  # randaugment: their level, 0 to 30
    augment.rotation_degrees = 0.0  # rotate by up to this, either way; 0: off
    augment.brightness = 0.0  # multiply by a factor between 1 - this and 1 + this; 0: off
    augment.contrast = 0.0  # likewise, of the distance from the image's mean grey
    augment.saturation = 0.0  # likewise, of the distance from each pixel's grey
    augment.cutout_length = 0  # pixels a side of a square set to the mean; cutout: 0 is half a side
    augment.erasing_rate = 0.0  # share of the images with a random rectangle set to the mean
    augment.mixup_alpha = 0.0  # blend two images, shares from Beta(alpha, alpha); 0: off
    augment.cutmix_alpha = 0.0  # paste a box of another image, its share likewise; 0: off
    augment.cutmix_rate = 0.5  # share of CutMix among the mixed images, where both alphas are set
    augment.mix_rate = 0.5  # share of the images that are mixed
    return augment


def _model():
    model: Config = ConfigDict()
    model.name = "vit"  # "resnet18": only hidden_size, stem and zero_init_residual concern it
    model.size = ""  # "Ti/16", "S/16", "B/16", "L/16", with any patch size: fills the keys at 0
    model.patch_size = 0  # pixels
    model.hidden_size = 0  # width of a token; resnet18: channels of its first stage, 0: 64
    model.depth = 0  # number of encoder blocks
    model.num_heads = 0  # attention heads per block
    model.mlp_dim = 0  # width of the MLP's hidden layer
    model.attention = "softmax"  # "differential": each head subtracts one softmax from another
    model.patchify = "conv"  # "manual": reshape into patches, then a dense layer
    model.pos_embed = "learned_1d"  # none, learned_2d, sinusoidal/sincos_2d, rope_2d, relative_bias
    model.pool = "cls"  # "cls": class token; "mean": mean of the patch tokens
    model.dropout_rate = 0.0  # after the embedding, attention and both MLP layers
    model.attention_dropout_rate = 0.0  # on the attention weights
    model.drop_path_rate = 0.0  # stochastic depth of the last block; linear from 0 at the first
    model.qkv_bias = True  # bias of query, key and value; differential: of the output layer too
    model.gelu = "tanh"  # "erf" is the exact form
    model.norm_eps = 1e-6  # of every LayerNorm
    model.representation_size = 0  # width of a tanh layer before the head; 0: none
    model.init = "default"  # of the blocks' kernels; "mimetic": attention as in pretrained ViTs
    model.head_zero_init = True  # begin with equal probabilities; False: at random, for evaluation
    model.stem = "cifar"  # resnet18: 3x3 convolution; "imagenet": 7x7, stride 2, max pooling
    model.zero_init_residual = False  # resnet18: blocks begin as identity
    return model


def _optim():
    optim: Config = ConfigDict()
    optim.name = "adamw"  # adamw, adam, sgd (with momentum), muon (AdamW on all but block kernels)
    optim.learning_rate = 1e-3  # peak
    optim.schedule = "cosine"  # constant, cosine, linear, step, reduce_on_plateau; after warm-up
    optim.end_learning_rate = 0.0  # where cosine and linear end; the least of reduce_on_plateau
    optim.warmup_steps = 0  # linear, from peak / steps; give at most one of the three
    optim.warmup_epochs = 0.0  # passes over the training data
    optim.warmup_percent = 0.0  # of the whole run
    optim.decay_at_percent = (50.0, 75.0)  # step: where in the run the rate is multiplied
    optim.decay_factor = 0.1  # step, reduce_on_plateau: by what
    optim.plateau_patience = 10  # evaluations without a lower validation loss that are borne
    optim.plateau_cooldown = 0  # evaluations after a reduction that are not counted
    optim.plateau_threshold = 1e-4  # a loss is lower if it is by this share
    optim.weight_decay = 0.0  # on kernels; adamw, muon: decoupled; adam, sgd: added to the gradient
    optim.b1 = 0.9  # adam, adamw, and the AdamW part of muon
    optim.b2 = 0.999  # adam, adamw, and the AdamW part of muon
    optim.eps = 1e-8  # adam, adamw, and the AdamW part of muon
    optim.muon_momentum = 0.95  # muon: decay of the Nesterov momentum
    optim.muon_rms = 0.2  # muon: RMS of an update before the learning rate; AdamW's is about 0.2
    optim.muon_iterations = 5  # muon: Newton-Schulz iterations that orthogonalise an update
    optim.layer_decay = 1.0  # the learning rate falls by this factor from block to block downwards
    optim.momentum = 0.9  # sgd
    optim.nesterov = False  # sgd
    optim.grad_clip_norm = 0.0  # clip the global norm of the gradients to this; 0: off
    optim.ema_decay = 0.0  # moving average of the weights, used by evaluation; 0: off
    return optim


def _train():
    train: Config = ConfigDict()
    train.epochs = 0.0  # length of the run in passes over the training data; or give train.steps
    train.steps = 0  # optimizer updates
    train.num_seeds = 1  # runs per variant, with seeds seed, seed + 1, ...
    train.seeds_at_once = "auto"  # "always": in one program, with the memory of all; "never"
    train.steps_at_once = "auto"  # several in a call, where that is faster; "always"; "never"
    train.batch_size = 128  # over all devices and processes; one optimizer update
    train.accumulation_steps = 0  # split the batch into this many, to save memory; 0: the fastest
    train.label_smoothing = 0.0  # share of the target spread over all classes
    train.dtype = "auto"  # of the computation; auto: bfloat16 on GPU and TPU, float32 on CPU
    train.remat = False  # recompute each block in the backward pass: less memory, more time
    train.cache_features = True  # compute the head's input once, where nothing below it changes
    train.eval_every_steps = 0  # validate and checkpoint; none of the three: at the end only
    train.eval_every_epochs = 1.0  # likewise, in passes over the training data
    train.eval_every_percent = 0.0  # likewise, in percent of the whole run
    train.eval_batch_size = 256  # changes no result
    train.select = "best"  # the checkpoint of the results: "best" (validation accuracy) or "last"
    return train


def _log():
    log: Config = ConfigDict()
    log.every_steps = 50  # a row of training metrics; none of the three: at evaluations only
    log.every_epochs = 0.0  # likewise, in passes over the training data
    log.every_percent = 0.0  # likewise, in percent of the whole run
    log.tensorboard = True  # write event files
    log.wandb = False  # send the same to Weights & Biases; needs the package wandb
    log.figures_every = 0  # rollout and positions, at every so many evaluations, as images; 0: off
    log.explain_images = 64  # test images on which the best run's explanations are scored; 0: off
    log.kernel_magnitudes = False  # of every layer before and after, to summary.json and a figure
    return log


def _sharding():
    sharding: Config = ConfigDict()
    sharding.distributed = False  # one of several processes (SLURM, TPU pod, ...) of a single run
    sharding.cpu_devices = 0  # CPU only: devices of each process; 0: one per core that it has
    sharding.fsdp = False  # split weights, averages and optimizer state over the devices
    return sharding


def flatten(config, prefix: str = "") -> dict:
    """Returns {"section.key": value} of a (nested) config."""
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def check_key(key: str, what: str) -> None:
    """Raises UserError, with a suggestion, if `key` is no setting; `what` names its source."""
    known = flatten(get_config())
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        leaf = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
        hint = (leaf or near or [""])[0]
        hint = f"; did you mean {hint}?" if hint else "; vit_jax/config/settings.py lists them"
        raise UserError(f"unknown config key {key} in {what}{hint}")


def with_overrides(config: Config, overrides: dict, what: str) -> Config:
    """Returns a copy of `config` changed by {"section.key": value}.

    Raises UserError if a key is unknown or a value has the wrong type; `what` names the source.
    """
    config = config.copy_and_resolve_references()
    for key, value in overrides.items():
        check_key(key, what)
        try:
            if value is None:  # which ml_collections would take for any type
                raise TypeError
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError, OverflowError):
            raise UserError(wrong_type(key, value, what)) from None
    return config


def wrong_type(key: str, value, what: str) -> str:
    """Returns the sentence for a value that `key` cannot take; `what` names its source."""
    kinds = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    kind = kinds.get(type(flatten(get_config()).get(key)), "a tuple such as (0.5,)")
    return f"config key {key} in {what} takes {kind}, not {truncate_repr(value)}"


def resolve(config: Config, weights: dict | None = None, given: Collection[str] = ()) -> Config:
    """Returns a copy in which nothing is left open.

    Named sizes and kinds fill the keys at 0; what the weights of `init_from` were trained with
    fills the rest and the keys that have their default.

    Args:
      config: of a variant.
      weights: {"model.depth": 12, ...}, the settings of the weights.
      given: keys that were set on purpose, and are not to be changed even if at their default.

    Raises:
      UserError: an unknown size, or settings that contradict the weights.
    """
    config = config.copy_and_resolve_references()
    _resolve_size(config.model)
    if weights is not None:
        _adopt(config, weights, given)
    if config.model.name == "resnet18":
        config.model.hidden_size = config.model.hidden_size or 64  # He et al. 2016, table 1
    _resolve_augment(config, given)
    return config


def _resolve_size(model):
    if not model.size or model.name == "resnet18":
        return
    match = re.fullmatch(r"(\w+)/(\d{1,9})", model.size)
    if not match or match[1] not in MODEL_SIZES:
        names = ", ".join(MODEL_SIZES)
        raise UserError(
            f"model.size={truncate_repr(model.size)} is unknown: give one of {names}, a slash and "
            "the patch size, such as S/16"
        )
    filled = dict(zip(DIMENSIONS, MODEL_SIZES[match[1]], strict=True), patch_size=int(match[2]))
    if all(model[key] not in (0, value) for key, value in filled.items()):
        raise UserError(
            f"model.size={model.size!r} does nothing, because {', '.join(filled)} "
            "are all set: leave one or the other out"
        )
    for key, value in filled.items():
        model[key] = model[key] or value
    model.size = ""


def _adopt(config, weights, given):
    default, now = flatten(get_config()), flatten(config)
    for key, value in weights.items():
        old = now[key]
        resized = key in ("data.image_size", "model.patch_size") and old
        # The tanh layer before the head is taken over on request only, as in the official code.
        if old == value or resized or key == "model.representation_size":
            continue
        unset = old == default[key] or (type(old) is int and old == 0)
        if key in given or not unset:
            raise UserError(
                f"{key}={old} contradicts the weights of init_from={config.init_from}, which "
                f"have {key}={value}: leave it out"
            )
        config.update_from_flattened_dict({key: value})


def _resolve_augment(config, given):
    augment = config.augment
    filled = {}
    if augment.kind == "cutout":
        filled = {"cutout_length": config.data.image_size // 2}
    elif augment.kind == "strong":
        filled = {"erasing_rate": 0.25, "mixup_alpha": 1.0, "cutmix_alpha": 1.0}
    for key, value in filled.items():
        if f"augment.{key}" not in given:  # a 0 on purpose switches off
            augment[key] = augment[key] or value


def steps_of(section, stem: str, steps_per_epoch: int, total_steps: int) -> int:
    """Returns a duration in steps, from whichever of its keys is set; 0 if none is.

    Args:
      section: part of the config that holds `{stem}_steps`, `_epochs` and `_percent`.
      stem: e.g. "warmup".
      steps_per_epoch: optimizer updates per pass over the training data.
      total_steps: optimizer updates of the whole run, for `_percent`.
    """
    if section[f"{stem}_steps"]:
        return section[f"{stem}_steps"]
    if section[f"{stem}_epochs"]:
        return max(1, round(section[f"{stem}_epochs"] * steps_per_epoch))
    if section[f"{stem}_percent"]:
        return max(1, round(section[f"{stem}_percent"] / 100 * total_steps))
    return 0


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """Returns the run's length in optimizer updates."""
    return config.train.steps or max(1, round(config.train.epochs * steps_per_epoch))
