"""Setup of a variant, before anything is compiled."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import models, pretrained
from vit_jax.config import Config, flatten, steps_of, total_steps
from vit_jax.config.rules import one_step_at_a_time, parse_freeze
from vit_jax.config.schema import SCHEMA
from vit_jax.config.setting import COUNTABLE
from vit_jax.data import Data, relabel
from vit_jax.data.labels import table_identity
from vit_jax.data.splits import differing_splits
from vit_jax.evaluation.labels import METRICS
from vit_jax.models import lora
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import warn
from vit_jax.training import optim, step
from vit_jax.training.flops import Flops, training_flops
from vit_jax.training.loss import find_class_weights
from vit_jax.training.teacher import Teacher, load_teacher

# Images per BatchNorm. ResNet-50's ImageNet error is 1.2 points higher with 8 images than with 32,
# 3.7 with 4, and 11.1 with 2 (Wu & He 2018, arXiv:1803.08494, table 2).
SMALLEST_MICRO_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Durations of a run, in optimizer updates."""

    epoch: int  # one pass over the training data
    total: int  # the whole run; 0 where nothing is trained
    warmup: int  # of the learning rate
    eval_every: int  # between evaluations
    log_every: int  # between log entries
    patch_drop: int  # steps with patch dropout, which the others are without

    def has_patch_dropout(self, step: int) -> bool:
        """Whether the update after `step` updates is one with patch dropout."""
        return step < self.patch_drop

    def is_evaluated(self, step: int) -> bool:
        """Whether the state after `step` updates is evaluated and saved."""
        return step % self.eval_every == 0 or step == self.total

    def is_logged(self, step: int) -> bool:
        """Whether training metrics are logged after `step` updates."""
        return step % self.log_every == 0 or self.is_evaluated(step)


@dataclasses.dataclass(frozen=True)
class Setup:
    """Setup that all seeds of a variant share."""

    config: Config  # resolved and valid
    mesh: Mesh  # of all devices
    num_classes: int  # width of the head
    lengths: Lengths
    shapes: dict[str, tuple[int, ...]]  # {path: shape} of all parameters and statistics
    trained: frozenset[str]  # paths of the trained parameters
    weights: pretrained.Fitted | None  # initial weights of `init_from`
    teacher: Teacher | None  # whose predictions are learned
    class_weights: np.ndarray | None  # of the loss, [classes]
    fingerprint: dict  # of the data, the initial weights and the teacher
    on_features: bool  # whether the head is trained on cached features instead of images
    multi_step: bool  # whether one call of the training step takes several steps
    notes: tuple[str, ...]  # on the initial weights and the teacher

    @property
    def metric(self) -> str:
        """The metric that selects a checkpoint, in prose."""
        return METRICS["map" if self.config.data.multi_label else "accuracy"]

    @property
    def metric_names(self) -> dict[str, str]:
        """The names of the sums in metrics.jsonl, where they are others."""
        return {"accuracy": "label_accuracy"} if self.config.data.multi_label else {}

    @functools.cached_property
    def flops(self) -> Flops:
        """FLOPs of training, counted at the first access: it takes a fraction of a second."""
        return training_flops(self)

    def schedule(self) -> Callable:
        """Build the learning-rate schedule, step -> learning rate."""
        return optim.make_schedule(self.config.optim, self.lengths.warmup, self.lengths.total)

    def optimizer(self, mesh: Mesh | None = None):
        """Build the optimizer; the devices of `mesh` share its matrix products."""
        trained = None if self.config.freeze == "full" else self.trained
        return optim.make_optimizer(self.config.optim, self.schedule(), trained, mesh)

    def model(self, patch_dropout: bool = True):
        """Build the model that is trained, with the norms of frozen layers frozen."""
        train, norms = self.config.train, _batch_norms(self.shapes)
        config = self.config.model.to_dict()
        config["patch_drop_rate"] *= patch_dropout
        frozen_norms = {norm for norm in norms if f"{norm}/scale" not in self.trained}
        # Without recomputation, activations are most of the memory, and FSDP saves little of it.
        remat = train.remat or ("dense" if self.config.sharding.fsdp else False)
        model = models.build(
            config,
            self.num_classes,
            sharding.dtype_of(train.dtype, self.mesh),
            frozen_norms,
            remat,
            sharding.has_fused_attention(self.mesh),
        )
        return lora.adapt(model, self.config)

    def merged(self, params: dict) -> dict:
        """Merge LoRA adapters, if there are any, into parameters on the host."""
        return lora.merge(params, lora.scale_of(self.config))


def make_setup(config: Config, data: Data, mesh: Mesh) -> Setup:
    """Set up a variant, with a resolved and valid config.

    Raises UserError if the batch is larger than the training split or does not split over the
    devices, micro-batches are too small for BatchNorm, the warm-up never ends, `freeze` or the
    weights of `init_from` do not fit the model, or an acceleration that was asked for is
    impossible.
    """
    train, num_classes = config.train, len(data.class_names)
    _check_batch(train, len(data.train), mesh)
    freeze = parse_freeze(config.freeze)
    dtype = sharding.dtype_of(train.dtype, mesh)
    model = lora.adapt(models.build(config.model, num_classes, dtype), config)
    tree = step.init.eval_shape(model, jax.random.key(0), one_image(config))
    flat = pretrained.flat_weights(tree["params"], tree.get("batch_stats", {}))
    shapes = {path: leaf.shape for path, leaf in flat.items()}
    trained = optim.trained_paths([path for path in shapes if "batch_stats/" not in path], freeze)
    _check_micro_batches(train, [f"{norm}/scale" in trained for norm in _batch_norms(shapes)])
    head_only = bool(trained) and all(path.startswith("head/") for path in trained)
    if config.optim.layer_decay != 1 and head_only:
        raise UserError(
            f"optim.layer_decay={config.optim.layer_decay} has no effect if only the head is "
            "trained"
        )
    on_features = head_only and _caches_features(config)
    if on_features:
        _check_features(data, shapes["head/kernel"][0], config.data, mesh)
    weights = _initial_weights(config, shapes, trained, data.class_names)
    _check_head(config, trained, weights)
    teacher = load_teacher(config, data.class_names, mesh)
    class_weights = find_class_weights(config, lambda: data.train.labels, num_classes)
    fingerprint = dict(data.fingerprint)
    if weights:
        fingerprint["weights"] = weights.identity
    if teacher:
        fingerprint["teacher"] = teacher.identity
    epoch, notes = len(data.train) // train.batch_size, tuple(_describe_leaks(config))
    for note in notes:
        warn(note)
    setup = Setup(
        config=config,
        mesh=mesh,
        num_classes=num_classes,
        lengths=Lengths(epoch, 0, 0, 0, 0, 0),
        shapes=shapes,
        trained=trained,
        weights=weights,
        teacher=teacher,
        class_weights=class_weights,
        fingerprint=fingerprint,
        on_features=on_features,
        multi_step=_uses_multi_step(config, on_features or data.train.resident),
        notes=notes,
    )
    return dataclasses.replace(setup, lengths=_lengths(setup))


def _check_batch(train, count, mesh):
    """Raise UserError if the batch exceeds `count` images, or does not split over the devices."""
    if train.batch_size > count:
        raise UserError(
            f"train.batch_size={train.batch_size} is larger than the training split of {count} "
            "images: lower it"
        )
    micro_batches = train.accumulation_steps or 1
    if train.batch_size // micro_batches % mesh.size:
        raise UserError(
            f"train.batch_size={train.batch_size} in {micro_batches} micro-batch(es) does not "
            f"split evenly over {mesh.size} devices"
        )


def _initial_weights(config, shapes, trained, class_names):
    """Fit the weights of `init_from` to a model of these shapes; None without any."""
    if not config.init_from:
        return None
    found = pretrained.load_once(pathlib.Path(config.init_from).expanduser())
    size, trained_size = config.data.image_size, found.info["settings"]["data.image_size"]
    if size == SCHEMA["data.image_size"].default < trained_size:
        print(
            f"note: data.image_size={size}, but the weights were trained on images of "
            f"{trained_size} pixels: 0 takes that size",
            flush=True,
        )
    levels, now = (tuple(x) for x in (found.info.get("level_range", ()), config.data.level_range))
    if levels and now and levels != now:
        print(
            f"note: the weights were trained with data.level_range={levels}, not {now}", flush=True
        )
    own = {path: shape for path, shape in shapes.items() if not path.endswith(lora.NAMES)}
    has_cls = models.has_cls(config.model)
    weights = pretrained.fit(found, own, class_names, has_cls, config.keep_head)
    same = found.info["num_classes"] == len(class_names) and not found.info["class_names"]
    if same and not trained and not config.keep_head:
        raise UserError(
            f"freeze={config.freeze} would evaluate a new, untrained head, because the weights "
            "record no class names: set keep_head=True to evaluate their own head"
        )
    return weights


def _describe_leaks(config):
    """Describe weights of runs that were trained on the same dataset with other splits."""
    for key, path in (("init_from", config.init_from), ("train.teacher", config.train.teacher)):
        info = pretrained.load_once(pathlib.Path(path).expanduser()).info if path else {}
        before = info.get("data")
        if before and (others := differing_splits(before, config.data)):
            yield (
                f"{key}={path} was trained on this dataset with data.{others[0]}="
                f"{before[others[0]]}, not {config.data[others[0]]}: its training images may "
                "include test or validation images"
            )


def _check_head(config, trained, weights):
    """Raise UserError if no gradient passes the head, because it is 0 and is not trained."""
    loaded = weights is not None and "head/kernel" in weights.arrays
    is_zero = config.model.name == "vit" and config.model.head_zero_init and not loaded
    if is_zero and trained and "head/kernel" not in trained:
        raise UserError(
            f"freeze={config.freeze} does not train the new head, which is 0 and passes no "
            "gradient: begin with head/.*=trained, or set model.head_zero_init=False"
        )


def _batch_norms(shapes):
    """List the paths of the BatchNorm layers among the paths of all parameters and statistics."""
    means = (path for path in shapes if path.startswith("batch_stats/") and path.endswith("/mean"))
    return [path.removeprefix("batch_stats/").removesuffix("/mean") for path in means]


def _check_micro_batches(train, trained_norms):
    """Raise UserError if micro-batches are too small for trained BatchNorm layers."""
    count, size = train.accumulation_steps or 1, train.batch_size
    if count > 1 and size // count < SMALLEST_MICRO_BATCH and any(trained_norms):
        most = max(1, size // SMALLEST_MICRO_BATCH)
        most = next(fewer for fewer in range(most, 0, -1) if size % fewer == 0)
        raise UserError(
            f"train.accumulation_steps={count} makes micro-batches of {size // count} image(s), "
            f"but BatchNorm needs {SMALLEST_MICRO_BATCH}: use train.accumulation_steps={most}"
        )


def _lengths(setup):
    """Convert the durations of a config, whose setup knows only the length of an epoch."""
    config, epoch = setup.config, setup.lengths.epoch
    total = 0
    if setup.trained:
        budget = config.train.budget_pflop
        total = (
            _affordable_steps(config.train, setup.flops) if budget else total_steps(config, epoch)
        )
    if total > COUNTABLE:
        lengths = {key: config.train[key] for key in ("epochs", "steps", "budget_pflop")}
        what = next(f"train.{key}={value}" for key, value in lengths.items() if value)
        raise UserError(f"{what} are {total} steps, more than {COUNTABLE}")
    warmup = steps_of(config.optim, "warmup", epoch, total)
    if warmup >= total > 0:
        keys = (f"optim.warmup_{unit}" for unit in ("steps", "epochs", "percent"))
        values = flatten(config)
        key = next(key for key in keys if values[key])
        raise UserError(
            f"{key}={values[key]:g} is a warm-up of {warmup} steps, but the whole run has {total}: "
            "lower it, or train for longer"
        )
    eval_every = steps_of(config.train, "eval_every", epoch, total) or total
    log_every = steps_of(config.log, "every", epoch, total) or total
    patch_drop = round(config.train.patch_drop_percent / 100 * total)
    return Lengths(epoch, total, warmup, max(1, eval_every), max(1, log_every), patch_drop)


def _affordable_steps(train, flops):
    """Compute how many steps a budget in PFLOP pays for."""
    share = train.patch_drop_percent / 100
    step = share * flops.step + (1 - share) * flops.whole_step
    steps = int((train.budget_pflop * 1e15 - flops.features) // step)
    if steps < 1:
        least = (flops.features + step) / 1e15
        raise UserError(
            f"train.budget_pflop={train.budget_pflop:g} is less than a step, {least:.3g}: raise it"
        )
    return steps


def _check_features(data, width, data_config, mesh):
    """Raise UserError if features take more memory than `data.device_resident_max_gib`."""
    count = sum(map(len, (data.train, data.val, data.test)))
    copies = mesh.size if sharding.on_cpu(mesh) else 1  # which share one memory
    gib, most = 4 * count * width * copies / 2**30, data_config.device_resident_max_gib
    if gib > most:
        raise UserError(
            f"the features of {count:,} images would take {gib:.1f} GiB, more than "
            f"data.device_resident_max_gib={most:g}: raise it, or set train.cache_features=False"
        )


def _caches_features(config):
    """Whether features are cached, which requires that an image always has the same features."""
    model, train = config.model, config.train
    kinds = ("dropout", "attention_dropout", "drop_path", "patch_drop")
    rates = (model[f"{kind}_rate"] for kind in kinds)
    cached = train.cache_features and config.augment.kind == "none" and not any(rates)
    cached = cached and not train.teacher  # which needs the images
    if cached and train.vmap_seeds == "always":
        raise UserError(
            "train.vmap_seeds=always cannot be combined with cached features: use auto, or set "
            "train.cache_features=False"
        )
    return cached


def _uses_multi_step(config, resident):
    """Whether one call takes several steps, which is faster if steps are short."""
    choice = config.train.multi_step
    if choice == "always" and not resident:
        raise UserError(
            "train.multi_step=always cannot be combined with streamed data: use auto, or set "
            "data.device_resident=always"
        )
    if choice != "auto":
        return choice == "always"
    # Measured on a CPU: steps of a few milliseconds become a third shorter, those of a second stay
    # as they are. Accelerators were not measured; short steps leave them waiting for the host.
    return resident and not one_step_at_a_time(config)


def one_image(config: Config) -> np.ndarray:
    """Make a batch [1, h, w, c] of the shape that the model is initialised with."""
    size = config.data.image_size
    return np.zeros((1, size, size, config.data.channels), np.float32)


def num_trained(setup: Setup) -> int:
    """Count the trained parameters."""
    return sum(math.prod(setup.shapes[path]) for path in setup.trained)


def num_params(setup: Setup) -> int:
    """Count the parameters."""
    return sum(math.prod(x) for path, x in setup.shapes.items() if "batch_stats/" not in path)


def input_identity(key: str, path: pathlib.Path) -> dict | None:
    """Identify a file that a run starts with, of `run_folder.INPUTS`.

    None for a missing table of labels, and for a run of an earlier version, which records no
    checksum. Raises UserError for other faults.
    """
    if key == "data.relabel":
        return relabel.read(path).identity
    if key == "data.labels":
        return table_identity(path) if path.is_file() else None
    info = pretrained.read_info(path)
    return None if info["checksum"] is None else pretrained.identity_of(info)
