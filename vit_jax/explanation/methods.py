"""The methods of explanation by name, for models of a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from vit_jax import models
from vit_jax.config import EXPLAINED_POOLS, Config
from vit_jax.explanation import attribution, gradients
from vit_jax.runtime.errors import UserError

_MOST_PARTS = 14  # per side of an image that has no patches


def token_layout(config: Config) -> tuple[tuple[int, int], bool, int]:
    """Compute the rows and columns of patches, whether the head sees a class token, and registers.

    The class token is token 0. Registers are counted; they come before the patches. A class token
    that the head does not see counts as one of them.
    """
    if config.model.name != "vit":
        return (0, 0), False, 0
    side = config.data.image_size // config.model.patch_size
    has_cls, extra = models.has_cls(config.model), config.model.class_token
    return (side, side), has_cls and not extra, config.model.num_registers + extra


def has_relevance(config: Config) -> bool:
    """Whether attention explains: the head sees the class token, the mean of patches, or both."""
    return config.model.name == "vit" and config.model.pool in EXPLAINED_POOLS


def relevance_grid(config: Config) -> tuple[int, int]:
    """Compute rows and columns of an explanation: patches, or equal parts for a ResNet18.

    A ResNet18 has the largest number of parts per side, up to 14, that divides the image.
    """
    if config.model.name == "vit":
        return token_layout(config)[0]
    size = config.data.image_size
    side = max(count for count in range(1, _MOST_PARTS + 1) if size % count == 0)
    return side, side


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of explanation.

    Attributes:
      name: in figures and tables.
      compute: (module, config, variables, normalised images [b, size, size, channels], classes
        int [b] or None: the predicted ones, **options) -> relevance [b, rows, columns].
      of_class: whether the result depends on the class.
      of_attention: whether it needs attention.
      options: names of options, with their defaults.
    """

    name: str
    compute: Callable[..., jax.Array]
    of_class: bool = True
    of_attention: bool = False
    options: Mapping[str, float | str] = FrozenDict()

    @property
    def key(self) -> str:
        """The name as an argument."""
        return self.name.lower().replace(" ", "_").replace("-", "_")


def baseline_of(kind: str, images: jax.Array, config: Config) -> jax.Array:
    """Compute the baseline of normalised images: their mean colours ("mean"), or "black"."""
    if kind == "mean":
        return images.mean((1, 2), keepdims=True)
    return -jnp.array(config.data.mean, jnp.float32) / jnp.array(config.data.std, jnp.float32)


def attention_relevance(
    name: str,
    attention: Sequence[jax.Array],
    gradients: Sequence[jax.Array],
    config: Config,
    **options: Any,
) -> jax.Array:
    """Compute `attribution.explanation` for what the head of a model sees.

    Of a class token and the mean of patches, it is the mean of their relevances.
    """
    grid, has_cls, registers = token_layout(config)
    explain = functools.partial(
        attribution.explanation, name, attention, gradients, grid, **options
    )
    found = explain(has_cls, registers)
    if config.model.pool == "cls_mean":  # the rows of the patches, as if there were no class token
        found = (found + explain(False, registers + 1)) / 2
    return found


def _of_attention(name, by_gradients, **options):
    def compute(module, config, variables, images, classes, **options):
        if by_gradients:
            _, seen, found = models.attention_gradients(module, variables, images, classes)
        else:
            seen, found = module.apply(variables, images, capture=True)[1], []
        return attention_relevance(name, seen["attention"], found, config, **options)

    return Method(name, compute, of_class=by_gradients, of_attention=True, options=options)


def _input_x_gradient(module, config, variables, images, classes):
    return gradients.input_x_gradient(
        lambda changed: module.apply(variables, changed), images, classes, relevance_grid(config)
    )


def _integrated_gradients(module, config, variables, images, classes, baseline, steps):
    return gradients.integrated_gradients(
        lambda changed: module.apply(variables, changed),
        images,
        classes,
        relevance_grid(config),
        baseline_of(baseline, images, config),
        steps,
    )


def _grad_cam(module, config, variables, images, classes):
    if config.model.name != "vit":
        logits, seen = module.apply(variables, images, capture=True)
        classes = logits.argmax(-1) if classes is None else classes
        maps = seen["feature_maps"]["layer4_1"]
        # The head is a dense layer of the mean over positions: its gradient is its kernel.
        kernel = variables["params"]["head"]["kernel"].T[classes] / (maps.shape[1] * maps.shape[2])
        found = gradients.grad_cam(maps, jnp.broadcast_to(kernel[:, None, None], maps.shape))
        return jax.image.resize(found, (len(found), *relevance_grid(config)), "linear")
    grid, has_cls, registers = token_layout(config)
    # The patches that leave the last block have no effect where only the class token is pooled.
    layer = config.model.depth - (config.model.pool in ("cls", "cls_dist"))
    found = gradients.token_gradients(module, variables, images, classes, layer)
    first = int(has_cls) + registers
    return gradients.grad_cam(*(a[:, first:].reshape(len(a), *grid, -1) for a in found))


def _rise(module, config, variables, images, classes, masks, seed):
    return gradients.rise(
        lambda changed: module.apply(variables, changed),
        images,
        classes,
        relevance_grid(config),
        baseline_of("mean", images, config),
        masks,
        seed,
        probabilities_of(config),
    )


def probabilities_of(config: Config) -> Callable[[jax.Array], jax.Array]:
    """The function that maps a model's logits to probabilities."""
    return jax.nn.sigmoid if config.data.multi_label else jax.nn.softmax


METHODS = {
    method.key: method
    for method in (
        _of_attention("gradient rollout", True, discard=0.0),
        _of_attention("Chefer", True),
        _of_attention("rollout", False, fusion="mean", discard=0.0),
        _of_attention("last layer", False),
        Method("Grad-CAM", _grad_cam),
        Method("input x gradient", _input_x_gradient),
        Method(
            "integrated gradients", _integrated_gradients, options={"baseline": "mean", "steps": 32}
        ),
        Method("RISE", _rise, options={"masks": 512, "seed": 0}),
    )
}


def refusal(config: Config, key: str) -> str:
    """Explain why a model has no explanation by a method; "" if it has one."""
    model, method = config.model, METHODS[key]
    if method.of_attention and model.name != "vit":
        return f"is a {model.name}, which has no attention, as method={key!r} needs"
    if method.of_attention and not has_relevance(config):
        return f"has model.pool={model.pool}, but method={key!r} needs cls, mean or cls_mean"
    if model.name == "vit":
        return ""
    size, stride = config.data.image_size, 8 if model.stem == "cifar" else 32
    if relevance_grid(config) == (1, 1):
        return f"has data.image_size={size}, which no number from 2 to {_MOST_PARTS} divides"
    if key == "grad_cam" and size <= stride:
        return f"has a last stage of one position for {size} pixels: {key!r} needs several"
    return ""


_CHOICES = {"baseline": ("mean", "black"), "fusion": tuple(attribution.FUSIONS)}


def check_option(name: str, value: float | str) -> None:
    """Check the value of an option of a method; raises UserError."""
    if name in _CHOICES:
        if not isinstance(value, str) or value not in _CHOICES[name]:
            raise UserError(f"{name}={value!r} must be {' or '.join(_CHOICES[name])}")
        return
    least = int(name != "seed")
    is_discard = name == "discard"
    kinds = (int, np.integer, float, np.floating) if is_discard else (int, np.integer)
    is_valid = isinstance(value, kinds) and not isinstance(value, bool)
    if is_discard and not (is_valid and 0 <= float(value) < 1):
        raise UserError(f"discard={value!r} must be a fraction from 0 to below 1")
    if not is_discard and not (is_valid and least <= int(value) < 2**32):
        raise UserError(f"{name}={value!r} must be an integer of at least {least}, below 2**32")
