"""Gradients of a logit with respect to what lies inside a model."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


def attention_gradients(
    model: nn.Module, variables: dict, images: jax.Array, classes: jax.Array | None = None
) -> tuple[jax.Array, dict, list[jax.Array]]:
    """Returns how the logit of a class changes with every attention weight.

    The weights are those that multiply the values: of differential attention the difference. They
    are taken as independent of each other, so the softmax before them is not differentiated. The
    images of a batch do not affect each other, so one backward pass serves all.

    Args:
      model: a VisionTransformer; jit with it fixed.
      variables: of the model, {"params": ...}.
      images: normalised [b, height, width, channels].
      classes: int [b], whose logit; None: the predicted ones.

    Returns:
      float32 logits [b, num_classes]; the intermediates of the call with `capture`; and the
      gradients, as "attention" there: depth arrays [b, h, n, n], in the model's dtype.

    Raises:
      ValueError: the model has no attention.
    """
    make = functools.partial(model.apply, capture=True)
    shapes = jax.eval_shape(make, variables, images)[1].get("attention")
    if not shapes:
        raise ValueError(f"{type(model).__name__} has no attention")

    def chosen(added):
        logits, seen = model.apply(variables, images, capture=True, added=added)
        of_class = logits.argmax(-1) if classes is None else jnp.asarray(classes)
        return jnp.take_along_axis(logits, of_class[:, None], 1).sum(), (logits, seen)

    zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
    gradients, (logits, seen) = jax.grad(chosen, has_aux=True)(zeros)
    return logits, seen, gradients
