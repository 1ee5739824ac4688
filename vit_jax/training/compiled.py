"""Compiled steps of a variant, for one seed or several vectorised ones."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models, pretrained
from vit_jax.data.batches import MOST_STEPS
from vit_jax.data.images import stored_size
from vit_jax.evaluation.evaluate import Result, evaluate, evaluate_together
from vit_jax.evaluation.metrics import Sums
from vit_jax.evaluation.steps import make_eval_step, make_feature_step
from vit_jax.models.initialization import impulse_parameters, mimetic_kernels
from vit_jax.runtime import sharding
from vit_jax.storage.checkpoint import abstract
from vit_jax.training import optim
from vit_jax.training.seeds import SeedAxis
from vit_jax.training.setup import Setup, one_image
from vit_jax.training.step import TrainState, make_init, make_multi_step, make_train_step


@dataclasses.dataclass(frozen=True)
class CompiledSteps:
    """Jitted functions of a variant; each is compiled at its first call."""

    setup: Setup
    axis: SeedAxis  # of the vectorised seeds
    shapes: TrainState  # of one seed: shapes, dtypes and shardings
    init: Callable  # (key, images) -> TrainState of one seed, at random weights
    train: Callable  # (state, keys, batch, *constants) -> state, of all seeds; donates the state
    train_whole: Callable | None  # as `train`, after the steps with patch dropout
    eval_step: Callable  # (variables, sums, batch) -> (sums, logits) of one seed
    eval_sums: Callable | None  # (variables, sums, batch) -> sums of all seeds; None for one seed
    feature_step: Callable  # (variables, batch) -> features of one seed

    @functools.cached_property
    def constants(self) -> tuple:
        """The constant arguments of `train`: (variables of the teacher,) on the devices, or ()."""
        teacher, mesh = self.setup.teacher, self.setup.mesh
        return () if teacher is None else (sharding.replicate(mesh, teacher.variables),)

    def batches(
        self, split: Any, seeds: Sequence[int], start: int, max_steps: Callable[[int], int]
    ) -> Iterator[tuple[int, dict]]:
        """Yield (n, batch): `train` takes the batch for the next n steps, from `start` to the end.

        Args:
          split: training split of the data.
          seeds: in the order of the axis.
          start: steps done.
          max_steps: step -> how many steps, from that one on, one call may take.
        """
        seed = seeds[0] if self.axis.num_seeds == 1 else tuple(seeds)
        total, size = self.setup.lengths.total, self.setup.config.train.batch_size
        if self.setup.multi_step:
            return split.train_at_once(seed, start, total, size, max_steps, self._balanced)
        return ((1, batch) for batch in split.train(seed, start, total, size, self._balanced))

    @property
    def _balanced(self):
        return self.setup.config.train.sampling == "balanced"

    def train_at(self, step: int) -> Callable:
        """Choose the training step after `step` updates."""
        if self.train_whole is None or self.setup.lengths.has_patch_dropout(step):
            return self.train
        return self.train_whole

    def evaluate(self, variables, batches, stop: Callable[[], bool]) -> list[Result] | None:
        """Evaluate all seeds; None if stopped."""
        sums = self.axis.device_put([Sums.empty()] * self.axis.num_seeds)
        if self.eval_sums is None:
            keep = self.setup.config.data.multi_label  # for the mAP
            result = evaluate(self.eval_step, variables, sums, batches, stop, keep)
            return None if result is None else [result]
        return evaluate_together(self.eval_sums, variables, sums, batches, stop)

    def initial_state(self, key: jax.Array) -> TrainState:
        """Make one seed's initial TrainState, with random weights or those of `init_from`."""
        state = self.init(key, one_image(self.setup.config))
        fresh = pretrained.flat_weights(*state.variables.values())
        if self.setup.weights is not None:
            given = self.setup.weights.arrays
        elif (kind := self.setup.config.model.init) != "default":
            seed = int(jax.random.key_data(key)[-1])
            draw = mimetic_kernels if kind == "mimetic" else impulse_parameters
            given = draw({path: x.shape for path, x in fresh.items()}, seed)
        else:
            return state
        fresh = sharding.to_host({path: x for path, x in fresh.items() if path not in given})
        params, batch_stats = pretrained.nested_weights(fresh | given)
        layout = jax.tree.map(lambda x: x.sharding, self.shapes)
        variables = {"params": params, "batch_stats": batch_stats}
        variables = sharding.device_put(variables, layout.variables)
        state = state.replace(**variables)
        if state.ema is not None:
            state = state.replace(ema=jax.tree.map(jnp.copy, variables))
        if self.setup.config.optim.name == "schedule_free_adamw":  # its state holds parameters
            init = jax.jit(self.setup.optimizer().init, out_shardings=layout.opt_state)
            state = state.replace(opt_state=init(state.params))
        return state


def compile_steps(setup: Setup, num_seeds: int = 1) -> CompiledSteps:
    """Jit the steps of a variant, for `num_seeds` vectorised seeds; nothing is compiled yet."""
    config, mesh = setup.config, setup.mesh
    model, plateau = setup.model(), optim.make_plateau(config.optim)
    trained_model = models.Head(setup.num_classes) if setup.on_features else model
    init = jax.jit(make_init(model, setup.optimizer(), config, plateau))  # traced once
    shapes = jax.eval_shape(init, jax.random.key(0), one_image(config))
    layout = sharding.state_sharding(mesh, shapes, config.sharding.fsdp)
    eval_step = make_eval_step(trained_model, config, setup.on_features)

    def jit_train(model):
        if num_seeds > 1:
            return _vectorize_train(setup, model, num_seeds)
        if setup.on_features:
            return _jit_head_step(setup, model, shapes, layout)
        return _jit_step(setup, _train_step(setup, model, mesh), layout)

    changes = setup.lengths.patch_drop < setup.lengths.total
    whole, split = sharding.replicated(mesh), sharding.split(mesh)
    return CompiledSteps(
        setup=setup,
        axis=SeedAxis(mesh, num_seeds),
        shapes=abstract(shapes, layout),
        init=jax.jit(init, out_shardings=layout),
        train=jit_train(trained_model),
        train_whole=jit_train(setup.model(patch_dropout=False)) if changes else None,
        eval_step=_jit(eval_step, (layout.variables, whole, split), whole),
        eval_sums=_vectorize_eval(setup, eval_step, num_seeds) if num_seeds > 1 else None,
        feature_step=_jit(make_feature_step(model, config), (layout.variables, split), whole),
    )


def _jit(function, inputs, outputs, **options):
    return jax.jit(function, in_shardings=inputs, out_shardings=outputs, **options)


def _train_step(setup, model, mesh):
    """Build the training step of one seed, whose batch the devices of `mesh` share."""
    config = setup.config
    train_step = make_train_step(
        model,
        setup.optimizer(mesh),
        config,
        setup.trained,
        setup.on_features,
        _micro_batches(setup, mesh.size if mesh else 1),
        # Sharded weights are gathered layer by layer if the compiler sees the whole batch.
        None if config.sharding.fsdp else mesh,
        setup.teacher,
        setup.class_weights,
    )
    return sharding.in_mesh(setup.mesh, train_step) if config.sharding.fsdp else train_step


def _jit_step(setup, train_step, state):
    """Jit a training step, or a multi-step; `state` is the sharding of its state."""
    whole, batch = sharding.replicated(setup.mesh), sharding.split(setup.mesh)
    if setup.multi_step:
        train_step, batch = make_multi_step(train_step, batch), whole
    inputs = (state, whole, batch, *([whole] if setup.teacher else []))
    return _jit(train_step, inputs, state, donate_argnums=0)


def _jit_head_step(setup, head, shapes, layout):
    """Jit the training step on features, which is called with the arrays that it uses alone.

    The step of a head is so small that handing hundreds of frozen arrays to the devices and back
    would take most of its time. A part of the head that is not trained is handed over as well.
    """
    passed, (leaves, structure) = [], jax.tree.flatten(shapes)
    for i, (path, _) in enumerate(jax.tree.leaves_with_path(shapes)):
        kind, _, name = optim.path_of(path).removeprefix("ema/").partition("/")
        is_used = name in setup.trained or name.startswith("head/")
        if kind != "batch_stats" and (kind != "params" or is_used):
            passed.append(i)
    train_step, places = _train_step(setup, head, setup.mesh), jax.tree.leaves(layout)

    def step_of_passed(arrays, key, batch):
        state = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves]  # compiled away
        for i, array in zip(passed, arrays, strict=True):
            state[i] = array
        after = jax.tree.leaves(train_step(structure.unflatten(state), key, batch))
        return [after[i] for i in passed]

    jitted = _jit_step(setup, step_of_passed, [places[i] for i in passed])

    def train(state, key, batch):
        arrays = jax.tree.leaves(state)
        after = jitted([arrays[i] for i in passed], key, batch)
        for i, array in zip(passed, after, strict=True):
            arrays[i] = array
        return structure.unflatten(arrays)

    return train


def _vectorize_train(setup, model, num_seeds):
    """Jit the training step of several seeds, on stacked arrays [s, ...].

    A device trains whole seeds, with their whole batches, where the number of devices divides
    theirs; else all devices share each seed's batch.
    """
    mesh = setup.mesh
    whole_seeds, state, batch = sharding.seeds_sharding(mesh, num_seeds)
    constants = [None] if setup.teacher else []
    train = jax.vmap(_train_step(setup, model, None), in_axes=(0, 0, 0, *constants))
    if whole_seeds:
        specs = (*[jax.P("data")] * 3, *(jax.P() for _ in constants))
        train = _shard_seeds(train, mesh, specs)
    if setup.multi_step:
        train, batch = make_multi_step(train, batch), sharding.replicated(mesh)
    inputs = (state, state, batch, *(sharding.replicated(mesh) for _ in constants))
    return _jit(train, inputs, state, donate_argnums=0)


def _vectorize_eval(setup, eval_step, num_seeds):
    """Jit the evaluation step of several seeds: (variables, sums, batch) -> sums [s, ...]."""
    mesh = setup.mesh
    whole_seeds, state, _ = sharding.seeds_sharding(mesh, num_seeds)
    evaluate = jax.vmap(lambda *inputs: eval_step(*inputs)[0], in_axes=(0, 0, None))
    if whole_seeds:
        evaluate = _shard_seeds(evaluate, mesh, (jax.P("data"), jax.P("data"), jax.P()))
    return _jit(evaluate, (state, state, sharding.split(mesh)), state)


def _shard_seeds(function, mesh, in_specs):
    # The check rejects loops that begin with constants, as that of accumulation does.
    options: dict[str, Any] = dict(mesh=mesh, out_specs=jax.P("data"), check_vma=False)
    return jax.shard_map(function, in_specs=in_specs, **options)


def _micro_batches(setup, devices):
    """Choose the number of micro-batches of a batch: the config's, or the fastest."""
    config, model, train = setup.config, setup.config.model, setup.config.train
    whole = setup.on_features or model.name != "vit" or not sharding.on_cpu(setup.mesh)
    if train.accumulation_steps or whole:
        return train.accumulation_steps or 1
    # Measured on a CPU: a micro-batch is fastest if its tokens stay in the cache between layers.
    image = model.hidden_size * (config.data.image_size // model.patch_size) ** 2
    images, fitting = train.batch_size // devices, max(1, 100_000 // image)
    sizes = (size for size in range(min(fitting, images), images + 1) if images % size == 0)
    return images // next(sizes)


def can_compile_ahead(steps: CompiledSteps) -> bool:
    """Whether the training step can be compiled before the first call.

    Not for vectorised seeds; nor on features, whose width is not known yet; nor in several
    processes, which have to compile in the same order.
    """
    return not (steps.setup.on_features or steps.axis.num_seeds > 1 or jax.process_count() > 1)


def compile_ahead(steps: CompiledSteps, split: Any, step: int) -> Future:
    """Lower one seed's update after `step` updates; compile it in a thread while the state is made.

    Wait for the compilation that is returned before the first step; see `can_compile_ahead`.
    """
    # Python traces and lowers; in a thread it would wait for the Python that makes the state.
    lowered = lower_train(steps, steps.train_at(step), len(split))
    pool = ThreadPoolExecutor(1)
    compiled = pool.submit(lowered.compile)
    pool.shutdown(wait=False)
    return compiled


def lower_train(steps: CompiledSteps, train: Any, num_images: int) -> Any:
    """Lower a training step on images, with nothing on the devices, which need not be there.

    Args:
      steps: of a variant.
      train: `steps.train` or `steps.train_whole`.
      num_images: of the training split.
    """
    setup, axis = steps.setup, steps.axis
    key = axis.stack_shapes(jax.eval_shape(lambda: jax.random.key(0)))
    batch = _batch_shapes(setup, axis.num_seeds, num_images)
    constants = () if setup.teacher is None else (setup.teacher.variables,)
    whole = sharding.replicated(setup.mesh)
    constants = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), constants
    )
    return train.lower(axis.stack_shapes(steps.shapes), key, batch, *constants)


def _batch_shapes(setup, num_seeds, num_images):
    """Make the shapes, dtypes and shardings of the images and labels that a call takes."""
    config, mesh = setup.config, setup.mesh
    side, size = stored_size(config.data), config.train.batch_size
    place, indices = sharding.split(mesh), {}
    shape: tuple[int, ...] = (size,)
    if num_seeds > 1:
        shape, place = (num_seeds, size), sharding.seeds_sharding(mesh, num_seeds).batch
    arrays: dict[str, Any] = {"mask": (shape, bool)}
    if setup.multi_step:  # the indices come from the host
        indices = {
            "rows": jax.ShapeDtypeStruct((MOST_STEPS, *shape), np.int32),
            "count": jax.ShapeDtypeStruct((), np.int32),
        }
        shape, place, arrays = (num_images,), sharding.replicated(mesh), {}
    arrays["image"] = (*shape, side, side, config.data.channels), np.uint8
    several = config.data.multi_label
    arrays["label"] = ((*shape, setup.num_classes), np.uint8) if several else (shape, np.int32)
    structs = {k: jax.ShapeDtypeStruct(*array, sharding=place) for k, array in arrays.items()}
    return structs | indices
