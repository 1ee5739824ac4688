"""What all seeds of one config share: the model, the jitted steps, the weights to begin with."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from vit_jax import models, pretrained
from vit_jax.config import Config, steps_of, total_steps
from vit_jax.config.rules import one_step_at_a_time, parse_freeze
from vit_jax.config.schema import COUNTABLE
from vit_jax.data import Data
from vit_jax.data.images import stored_size
from vit_jax.evaluation.steps import make_eval_step, make_feature_step
from vit_jax.models.initialization import mimetic_kernels
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.sharding import dtype_of
from vit_jax.training import optim, step


@dataclasses.dataclass(frozen=True)
class Program:
    """What all seeds of one config share: the model, the jitted steps and the lengths."""

    config: Config
    mesh: Mesh
    layout: Any  # a TrainState of the arrays' shardings
    init: Callable
    train_step: Callable
    steps_at_once: Callable | None  # if several steps are taken in one call
    eval_step: Callable
    pure_steps: tuple[Callable, Callable]  # the two before `jit`, for several seeds at once
    feature_step: Callable | None  # if the other steps take features instead of images
    features: dict  # checksum of the trunk's weights -> Data of its features; filled by the runs
    weights: pretrained.Fitted | None
    fingerprint: dict  # of the data, and of the weights to begin with
    trained: frozenset[str]
    schedule: Callable
    plateau: optim.Plateau | None
    steps_per_epoch: int
    total_steps: int
    eval_every: int
    log_every: int


def build_program(config, data: Data, mesh: Mesh) -> Program:
    """Builds the program of a resolved, valid config.

    Raises:
      UserError: the batch is larger than the training set or does not split over the devices, the
        warm-up never ends, `freeze` does not fit the model, or the weights of `init_from` do not;
        or what is to be done at once cannot be.
    """
    train = config.train
    _check_batch(train, data, mesh)
    per_epoch = len(data.train) // train.batch_size
    freeze = parse_freeze(config.freeze)
    total = total_steps(config, per_epoch) if freeze != "none_trained" else 0
    if total > COUNTABLE:
        raise UserError(f"train.epochs={train.epochs} are {total} steps, more than {COUNTABLE}")
    model = models.build(config.model, len(data.class_names), dtype_of(train.dtype))
    shapes = _shapes(model, config)
    trained = optim.trained_paths([path for path in shapes if "batch_stats/" not in path], freeze)
    if config.optim.layer_decay != 1 and _head_only(trained):
        raise UserError(
            f"optim.layer_decay={config.optim.layer_decay} has no effect where the head alone is "
            "trained"
        )
    warmup = steps_of(config.optim, "warmup", per_epoch, total)
    if warmup >= total > 0:
        raise UserError(
            f"the warm-up of {warmup} steps is as long as the whole run of {total}: lower "
            "optim.warmup_steps, _epochs or _percent, whichever is set"
        )
    schedule = optim.make_schedule(config.optim, warmup, total)
    plateau = optim.make_plateau(config.optim)
    weights = _fitted(config, shapes, data.class_names)
    return Program(
        config=config,
        mesh=mesh,
        **_jitted_steps(config, data, mesh, shapes, trained, schedule, plateau),
        features={},
        weights=weights,
        fingerprint=data.fingerprint | ({"weights": weights.identity} if weights else {}),
        trained=trained,
        schedule=schedule,
        plateau=plateau,
        steps_per_epoch=per_epoch,
        total_steps=total,
        eval_every=steps_of(train, "eval_every", per_epoch, total) or total,
        log_every=steps_of(config.log, "every", per_epoch, total) or total,
    )


def _head_only(trained):
    return bool(trained) and all(path.startswith("head/") for path in trained)


def _jitted_steps(config, data, mesh, shapes, trained, schedule, plateau) -> dict[str, Any]:
    """Returns the functions of a Program."""
    train, classes = config.train, len(data.class_names)
    frozen_norms = {
        path.removesuffix("/scale")
        for path in shapes
        if path not in trained and f"batch_stats/{path.removesuffix('/scale')}/mean" in shapes
    }
    model = models.build(config.model, classes, dtype_of(train.dtype), frozen_norms, train.remat)
    rates = (config.model[f"{key}_rate"] for key in ("dropout", "attention_dropout", "drop_path"))
    # Where the head always gets the same of an image, that is computed once.
    on_features = (
        _head_only(trained)
        and train.cache_features
        and config.augment.kind == "none"
        and not any(rates)
    )
    stepped = models.Head(classes) if on_features else model
    make_optimizer = functools.partial(
        optim.make_optimizer, config.optim, schedule, None if config.freeze == "full" else trained
    )
    optimizer = make_optimizer(mesh)
    whole, split, fsdp = sharding.replicated(mesh), sharding.split(mesh), config.sharding.fsdp
    init = jax.jit(step.make_init(model, optimizer, config, plateau))  # traced once for both uses
    state = jax.eval_shape(init, jax.random.key(0), one_image(config))
    layout = sharding.of_state(mesh, state, fsdp)

    def make_step(optimizer, *parts):
        return step.make_train_step(stepped, optimizer, config, trained, on_features, *parts)

    # Split weights are gathered layer by layer where the compiler sees the whole batch.
    train_step = make_step(optimizer, _parts(config, mesh.size), None if fsdp else mesh)
    # Where each device has seeds of its own, it has their whole batches.
    of_one_device = make_step(make_optimizer(), _parts(config, 1))
    eval_step = make_eval_step(stepped, config, on_features)
    feature_step = make_feature_step(model, config)
    if on_features and train.seeds_at_once == "always":
        raise UserError(
            "train.seeds_at_once=always does not go with features that are computed once: use "
            "auto, or train.cache_features=False"
        )
    arrays, around = layout, lambda step: step
    if on_features:
        train_step, around, changing = _without_frozen(train_step, state, trained)
        arrays = [jax.tree.leaves(layout)[i] for i in changing]

    def donating(step, batch):
        return around(_jit(step, (arrays, whole, batch), arrays, donate_argnums=0))

    at_once = None
    if _steps_at_once(config, data, on_features):
        at_once = donating(step.make_steps_at_once(train_step, split), whole)
    return dict(
        layout=layout,
        init=jax.jit(init, out_shardings=layout),
        train_step=donating(train_step, split),
        steps_at_once=at_once,
        eval_step=_jit(eval_step, (layout.variables, whole, split), whole),
        pure_steps=(of_one_device, eval_step),
        feature_step=_jit(feature_step, (layout.variables, split), whole) if on_features else None,
    )


def _jit(function, inputs, outputs, **options):
    return jax.jit(function, in_shardings=inputs, out_shardings=outputs, **options)


def _steps_at_once(config, data, on_features):
    """Returns whether several steps are taken in one call, if they are short."""
    choice, resident = config.train.steps_at_once, on_features or data.train.resident
    if choice == "always" and not resident:
        raise UserError(
            "train.steps_at_once=always does not go with data that are streamed: use auto, or "
            "set data.resident=always"
        )
    if choice != "auto":
        return choice == "always"
    # Measured on a CPU: steps of a few milliseconds become a third shorter, those of a second no
    # longer. GPUs were not measured.
    return jax.default_backend() == "cpu" and resident and not one_step_at_a_time(config)


def _parts(config, devices):
    """Returns the number of parts in which a batch is fastest, unless the config says it."""
    model, train = config.model, config.train
    if train.accumulation_steps or jax.default_backend() != "cpu" or model.name != "vit":
        return train.accumulation_steps or 1
    # Measured on a CPU: a part is best when its tokens stay in the cache from layer to layer.
    image = model.hidden_size * (config.data.image_size // model.patch_size) ** 2
    images, fitting = train.batch_size // devices, max(1, 100_000 // image)
    sizes = (size for size in range(min(fitting, images), images + 1) if images % size == 0)
    return images // next(sizes)


def _without_frozen(train_step, state, trained):
    """Splits a training step on features in what the devices do and what goes around it.

    The step of a head is so small that handing hundreds of frozen arrays to the devices and back
    would take most of its time.

    Args:
      train_step: that uses no frozen parameter.
      state: shapes of a TrainState.
      trained: paths of the trained parameters.

    Returns:
      (arrays that change, key, batch) -> the same arrays after the step, to be jitted; a function
      from the jitted one to (state, key, batch) -> state; and which leaves of a state change.
    """
    shapes, structure = jax.tree.flatten(state)
    changing = []
    for i, (path, _) in enumerate(jax.tree.leaves_with_path(state)):
        name = optim.path_of(path).removeprefix("ema/")
        frozen = name.startswith("params/") and name.removeprefix("params/") not in trained
        if not frozen and not name.startswith("batch_stats/"):
            changing.append(i)

    def light(arrays, key, batch):
        leaves = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]  # compiled away
        for i, array in zip(changing, arrays, strict=True):
            leaves[i] = array
        after = jax.tree.leaves(train_step(structure.unflatten(leaves), key, batch))
        return [after[i] for i in changing]

    def call(jitted):
        def step(state, key, batch):
            leaves = jax.tree.leaves(state)
            arrays = jitted([leaves[i] for i in changing], key, batch)
            for i, array in zip(changing, arrays, strict=True):
                leaves[i] = array
            return structure.unflatten(leaves)

        return step

    return light, call, changing


def _check_batch(train, data, mesh):
    if train.batch_size > len(data.train):
        raise UserError(
            f"train.batch_size={train.batch_size} is larger than the training set of "
            f"{len(data.train)} images"
        )
    parts = train.accumulation_steps or 1
    if train.batch_size // parts % mesh.size:
        raise UserError(
            f"train.batch_size={train.batch_size} in {parts} part(s) does not "
            f"split evenly over {mesh.size} devices"
        )


def _shapes(model, config):
    """Returns {path: shape} of all parameters and statistics."""
    tree = step.init.eval_shape(model, jax.random.key(0), one_image(config))
    flat = pretrained.flat_weights(tree["params"], tree.get("batch_stats", {}))
    return {path: leaf.shape for path, leaf in flat.items()}


def _fitted(config, shapes, class_names):
    if not config.init_from:
        return None
    weights = pretrained.load_once(pathlib.Path(config.init_from).expanduser())
    return pretrained.fit(weights, shapes, class_names, config.model.pool == "cls")


def first_state(program: Program, key: jax.Array) -> Any:
    """Returns the TrainState before the first step: fresh, or with the weights of init_from."""
    state = program.init(key, one_image(program.config))
    fresh = pretrained.flat_weights(*state.variables.values())
    if program.weights is not None:
        given = program.weights.arrays
    elif program.config.model.init == "mimetic":
        seed = int(jax.random.key_data(key)[-1])
        given = mimetic_kernels({path: x.shape for path, x in fresh.items()}, seed)
    else:
        return state
    fresh = sharding.to_host({path: x for path, x in fresh.items() if path not in given})
    params, batch_stats = pretrained.nested_weights(fresh | given)
    layout = (program.layout.params, program.layout.batch_stats)
    params, batch_stats = sharding.put((params, batch_stats), layout)
    ema = None
    if state.ema is not None:
        ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    return state.replace(params=params, batch_stats=batch_stats, ema=ema)


def compile_ahead(program: Program, state, part) -> Future | None:
    """Lowers the training step of one seed, and starts to compile it, beside what makes its state.

    Args:
      program: of the step.
      state: shapes, dtypes and shardings of a TrainState.
      part: of the data, to train on.

    Returns:
      what to wait for before the first step, or None where nothing was started: on features, whose
      width a run finds out, and of several processes, which are to compile in the same order.
    """
    if program.feature_step is not None or jax.process_count() > 1:
        return None
    step, size = program.steps_at_once, program.config.train.batch_size
    if step:
        _, batch = next(part.train_at_once(0, 0, 1, size, lambda step: 1))
    else:
        step, split = program.train_step, sharding.split(program.mesh)
        data = program.config.data
        shapes = {
            "image": ((size, stored_size(data), stored_size(data), data.channels), np.uint8),
            "label": ((size,), np.int32),
            "mask": ((size,), bool),
        }
        batch = {k: jax.ShapeDtypeStruct(*like, sharding=split) for k, like in shapes.items()}
    # Python traces and lowers; beside other Python, as that which makes the state, it would wait.
    lowered = step.lower(state, jax.random.key(0), batch)
    pool = ThreadPoolExecutor(1)
    started = pool.submit(lowered.compile)
    pool.shutdown(wait=False)
    return started


def print_parameters(program: Program) -> None:
    """Prints the table of parameters, how many are trained, and what became of init_from."""
    state = jax.eval_shape(program.init, jax.random.key(0), one_image(program.config))
    params = state.params
    print(parameter_overview.get_parameter_overview(params, include_stats=False))
    total, trained = sum(x.size for x in jax.tree.leaves(params)), num_trained(program, params)
    fresh = " at random values, as there is no init_from" * (program.weights is None)
    frozen = f"{total - trained:,} frozen{fresh if trained < total else ''}"
    print(f"freeze={program.config.freeze}: {trained:,} trained, {frozen}")
    if program.config.sharding.fsdp:
        held = sharding.bytes_per_device(state, program.layout)
        print(f"sharding.fsdp: {held / 2**20:.2f} MiB of weights and optimizer state per device")
    if program.weights is not None:
        print(pretrained.table(program.weights, program.config.init_from))
    sys.stdout.flush()


def num_trained(program: Program, params) -> int:
    """Returns the number of trained parameters."""
    leaves = jax.tree.leaves_with_path(params)
    return sum(x.size for path, x in leaves if optim.path_of(path) in program.trained)


def one_image(config) -> np.ndarray:
    """Returns a batch of the shape that the model is initialised with."""
    size = config.data.image_size
    return np.zeros((1, size, size, config.data.channels), np.float32)
