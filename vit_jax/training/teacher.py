"""Distillation: a finished model, the teacher, whose predictions the trained model learns."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vit_jax import models, pretrained
from vit_jax.config import Config, get_config, resolve, with_overrides
from vit_jax.data.checks import match_names
from vit_jax.runtime.errors import UserError, join_names
from vit_jax.runtime.sharding import dtype_of, has_fused_attention


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A finished model that predicts the classes of a dataset.

    Attributes:
      config: of the model.
      model: maps normalised images to logits.
      variables: of the model, on the host.
      order: index of each class of the dataset among the model's.
      scale: factor, and
      shift: summand per channel, from the student's normalisation of images to the teacher's.
      identity: of the model, as `pretrained.identity_of`.
    """

    config: Config
    model: Any
    variables: dict
    order: list[int]
    scale: np.ndarray
    shift: np.ndarray
    identity: dict

    def logits(self, variables: dict, images: jax.Array) -> jax.Array:
        """Compute logits [b, classes] of images as the student sees them, without dropout."""
        images = images * self.scale.astype(images.dtype) + self.shift.astype(images.dtype)
        logits = self.model.apply(variables, images)[:, np.array(self.order)]
        return jax.lax.stop_gradient(logits)


def load_teacher(config: Config, class_names: list[str], mesh: Mesh) -> Teacher | None:
    """Load the model of `train.teacher`, for a dataset with these classes; None without one.

    The devices of `mesh` decide its compute dtype, as that of the trained model.

    Raises UserError if the path holds no model, or one for other classes, image sizes, channels or
    levels.
    """
    path = config.train.teacher
    if not path:
        return None
    try:
        weights = pretrained.load_once(pathlib.Path(path).expanduser())
    except UserError as error:
        raise UserError(f"train.teacher={path}: {error}") from None
    info = weights.info
    if info.get("multi_label") or info.get("thresholds"):  # earlier versions lack the first
        raise UserError(f"train.teacher={path} predicts several labels per image: use another")
    own = resolve(with_overrides(get_config(), info["settings"] | {"train.steps": 1}, path))
    for key in ("image_size", "channels"):
        if own.data[key] != config.data[key]:
            raise UserError(
                f"train.teacher={path} was trained with data.{key}={own.data[key]}, but "
                f"data.{key}={config.data[key]}: both need the same image size and channels"
            )
    levels = tuple(info.get("level_range", ()))
    if levels and levels != tuple(config.data.level_range):
        raise UserError(
            f"train.teacher={path} was trained with data.level_range={levels}: set it, so that the "
            "teacher sees the same images"
        )
    names = info["class_names"]
    if not names:
        raise UserError(f"train.teacher={path} records no class names: fine-tune it first")
    order = match_names(class_names, names)
    if None in order:
        missing = [name for name, i in zip(class_names, order, strict=True) if i is None]
        raise UserError(f"train.teacher={path} lacks the classes {join_names(missing)}")
    pretrained.check_shapes(weights)
    student, teacher = (
        [np.broadcast_to(np.float32(one.data[key]), one.data.channels) for key in ("mean", "std")]
        for one in (config, own)
    )
    dtype, fused = dtype_of(config.train.dtype, mesh), has_fused_attention(mesh)
    return Teacher(
        config=own,
        model=models.build(own.model, len(names), dtype, fused_attention=fused),
        variables=weights.variables,
        order=[i for i in order if i is not None],
        scale=student[1] / teacher[1],
        shift=(student[0] - teacher[0]) / teacher[1],
        identity=pretrained.identity_of(info),
    )


def distillation_loss(logits: jax.Array, teacher_logits: jax.Array, temperature: float):
    """Compute T² KL(softmax(teacher / T) ‖ softmax(student / T)) per example (Hinton et al. 2015).

    Args:
      logits: of the student, [b, classes].
      teacher_logits: [b, classes].
      temperature: T.

    Returns:
      Losses [b], arXiv:1503.02531. T² keeps the size of the gradient at any temperature.
    """
    log_student = jax.nn.log_softmax(logits / temperature)
    log_teacher = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
    return math.pow(temperature, 2) * optax.losses.kl_divergence_with_log_targets(
        log_student, log_teacher
    )
