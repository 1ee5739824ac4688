"""Gradients of a logit with respect to a model's intermediates."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def attention_gradients(
    model: nn.Module, variables: dict, images: jax.Array, classes: jax.Array | None = None
) -> tuple[jax.Array, dict, list[jax.Array]]:
    """Differentiate the logit of a class by every attention weight of a VisionTransformer.

    The weights are those that multiply the values: of differential attention the difference. They
    are taken as independent of each other, so the softmax before them is not differentiated. The
    images of a batch do not affect each other, so one backward pass serves all.

    Args:
      model: raises ValueError if it has no attention.
      variables: {"params": ...}.
      images: normalised [b, height, width, channels].
      classes: int [b]; None: the predicted ones.

    Returns:
      float32 logits [b, num_classes]; the intermediates of the call with `capture`; and the
      gradients, depth arrays [b, h, n, n] in the model's dtype.
    """
    seen = jax.eval_shape(lambda: model.apply(variables, images, capture=True))[1]
    if "attention" not in seen:
        raise ValueError(f"{type(model).__name__} has no attention")

    def of_class(added):
        logits, seen = model.apply(variables, images, capture=True, added=added)
        index = logits.argmax(-1) if classes is None else jnp.asarray(classes)
        return jnp.take_along_axis(logits, index[:, None], 1).sum(), (logits, seen)

    zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in seen["attention"]]
    gradients, (logits, seen) = jax.grad(of_class, has_aux=True)(zeros)
    return logits, seen, gradients
