"""Floating-point operations (FLOPs) of training, counted from traced functions.

Matrix products and convolutions are counted, a multiply-add as two operations. Elementwise
operations and reductions, a few percent, are not. The backward pass has one product for each input
that depends on a trained parameter; what is recomputed to save memory is not counted. So the number
belongs to the model, not to the device, the batch split or the compiler, whose own count misses
products in library calls and counts the body of a loop once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import models
from vit_jax.config import Config, with_overrides
from vit_jax.models import lora
from vit_jax.training.optim import map_paths
from vit_jax.training.step import init


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of training.

    Attributes:
      step: of one optimizer update: forward, backward, and the matrix products of the optimizer
        and of merging LoRA adapters.
      whole_step: of one without patch dropout.
      features: of the cached features of the training images, once per run; else 0.
    """

    step: int
    whole_step: int
    features: int = 0


def training_flops(setup: Any) -> Flops:
    """Count the FLOPs of training a variant (`setup.Setup`); nothing is compiled."""
    size = setup.config.train.batch_size
    image = model_flops(setup.config, setup.num_classes, setup.trained)
    if setup.on_features:  # of the head, the forward product and the kernel's gradient
        head = 4 * math.prod(setup.shapes["head/kernel"])
        return Flops(head * size, head * size, (image - head) * setup.lengths.epoch * size)
    model, _, images = _variables(setup.config, setup.num_classes)
    adapted, optimizer = lora.adapt(model, setup.config), setup.optimizer()
    params = init.eval_shape(adapted, jax.random.key(0), images)["params"]
    marks = map_paths(lambda path, _: path in setup.trained, params)
    rest = count_flops(functools.partial(lora.merge, scale=1.0), (params,), (marks,))
    state = jax.eval_shape(optimizer.init, params)
    rest += count_flops(optimizer.update, (params, state, params))
    if setup.teacher is not None:
        taught = model_flops(setup.teacher.config, len(setup.teacher.order), frozenset())
        rest += taught * size
    whole = image
    if setup.config.train.patch_drop_percent < 100:
        config = with_overrides(setup.config, {"model.patch_drop_rate": 0.0}, "the run")
        whole = model_flops(config, setup.num_classes, setup.trained)
    return Flops(image * size + rest, whole * size + rest)


def model_flops(config: Config, num_classes: int, trained: Collection[str] | None = None) -> int:
    """Count the FLOPs of a model's forward and backward pass per image.

    Args:
      config: resolved.
      num_classes: width of the head.
      trained: paths of the trained parameters, none for the forward pass alone; None: all. A
        kernel with LoRA adapters, which is merged once per step, has a gradient.
    """
    model, variables, images = _variables(config, num_classes)

    def forward(variables, images, keys):
        found = model.apply(variables, images, train=True, keys=keys, mutable=["batch_stats"])
        return found[0]

    def mark(path, _):
        kind, _, name = path.partition("/")
        adapter = name.removesuffix("kernel") + "lora_a"
        return kind == "params" and (trained is None or name in trained or adapter in trained)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    return count_flops(
        forward, (variables, images, keys), (map_paths(mark, variables), False, False)
    )


def _variables(config, num_classes):
    """Build a model; return it with the shapes of its variables and of a batch of one image."""
    model = models.build(config.model, num_classes, jnp.dtype(jnp.float32))  # any has the same
    side, channels = config.data.image_size, config.data.channels
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return model, init.eval_shape(model, jax.random.key(0), images), images


def count_flops(function: Callable, arguments: tuple, trained: tuple | None = None) -> int:
    """Count the FLOPs of a function, and of its gradient if some arguments are trained.

    Args:
      function: of trees of arrays, or of their `jax.ShapeDtypeStruct`.
      arguments: of the function.
      trained: tree of bools like `arguments`: the leaves with a gradient; None: no gradient.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    marks = [False] * len(jaxpr.invars) if trained is None else jax.tree.leaves(trained)
    return _count(jaxpr, marks)[0]


def _count(jaxpr, marks):
    """Count the FLOPs of a jaxpr with marked inputs; return them and the marks of its outputs."""
    marked = {v for v, mark in zip(jaxpr.invars, marks, strict=True) if mark}
    total = 0
    for eqn in jaxpr.eqns:
        inputs = [not hasattr(v, "val") and v in marked for v in eqn.invars]  # val: of a literal
        outputs = [any(inputs)] * len(eqn.outvars)
        if eqn.primitive.name in _PRODUCTS:
            total += _PRODUCTS[eqn.primitive.name](eqn) * (1 + sum(inputs))
        elif inner := [j for value in eqn.params.values() for j in _jaxprs(value)]:
            found = [_count(j, _inner_marks(j, inputs)) for j in inner]
            total += max(count for count, _ in found) * eqn.params.get("length", 1)
            if len(found[0][1]) == len(outputs) and eqn.primitive.name != "scan":
                outputs = [any(marks) for marks in zip(*(m for _, m in found), strict=True)]
        marked |= {v for v, mark in zip(eqn.outvars, outputs, strict=True) if mark}
    return total, [not hasattr(v, "val") and v in marked for v in jaxpr.outvars]


def _jaxprs(value):
    """Find the jaxprs in a parameter of an equation, such as the branches of a condition."""
    values = value if isinstance(value, tuple | list) else (value,)
    found = (getattr(one, "jaxpr", one) for one in values)
    return [one for one in found if hasattr(one, "eqns")]


def _inner_marks(jaxpr, inputs):
    """Mark the inputs of an inner jaxpr: one by one where they correspond, else all of them."""
    same = len(jaxpr.invars) == len(inputs)
    return inputs if same else [any(inputs)] * len(jaxpr.invars)


def _dot(eqn):
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)


def _convolution(eqn):
    numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
    taps = math.prod(kernel) // kernel[numbers.rhs_spec[0]]  # of one output channel
    return 2 * math.prod(eqn.outvars[0].aval.shape) * taps


_PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _convolution}
