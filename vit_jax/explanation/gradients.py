"""Attribution of a class logit to an image by its gradients, or by random masks: arrays in and out.

Arguments that the functions share:
  logits_fn: maps images [b, height, width, channels] to logits [b, num_classes]. Within `jit`, pass
    the parameters that it uses as arguments.
  images: normalised, as `logits_fn` takes them.
  classes: int [b], the class of each image that is explained; None: the predicted one.
  grid: rows and columns of equal parts of the image, which must divide it.
  baseline: uninformative pixels, such as the mean colour, which broadcast to the images' shape.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_CELLS = 7  # a mask's cells per side (Petsiuk et al. 2018)
_MASKS_PER_CALL = 8


def pick(logits: jax.Array, classes: jax.Array | None) -> jax.Array:
    """Select the entry of each row of [b, num_classes] that belongs to its class: [b]."""
    classes = logits.argmax(-1) if classes is None else classes
    return jnp.take_along_axis(logits, classes[:, None], 1)[:, 0]


def sum_parts(pixels: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Sum pixels [b, height, width, channels] over the channels and each part: [b, *grid]."""
    (b, height, width, _), (rows, columns) = pixels.shape, grid
    if height % rows or width % columns:
        raise ValueError(f"{rows} x {columns} parts do not divide {height} x {width} pixels")
    pixels = pixels.sum(-1).reshape(b, rows, height // rows, columns, width // columns)
    return pixels.sum((2, 4))


def _pixel_gradients(logits_fn, images, classes):
    return jax.grad(lambda images: pick(logits_fn(images), classes).sum())(images)


def input_x_gradient(
    logits_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    classes: jax.Array | None,
    grid: tuple[int, int],
) -> jax.Array:
    """Compute the image times the gradient of the class logit, [b, *grid].

    Shrikumar et al. 2016 (arXiv:1605.01713). Entries have signs.
    """
    return sum_parts(images * _pixel_gradients(logits_fn, images, classes), grid)


def integrated_gradients(
    logits_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    classes: jax.Array | None,
    grid: tuple[int, int],
    baseline: jax.Array | float = 0.0,
    steps: int = 32,
) -> jax.Array:
    """Compute integrated gradients, [b, *grid] (Sundararajan et al. 2017, arXiv:1703.01365).

    The gradient is averaged over the straight path from the baseline to the image, by
    Gauss-Legendre quadrature with `steps` points. Entries have signs; without the error of the
    quadrature, their sum is the difference of the class logit from that of the baseline: see
    `residual`.
    """
    classes = logits_fn(images).argmax(-1) if classes is None else classes
    points, weights = np.polynomial.legendre.leggauss(steps)
    path = jnp.asarray((points + 1) / 2, jnp.float32), jnp.asarray(weights / 2, jnp.float32)

    def add(total, step):
        place, weight = step
        gradients = _pixel_gradients(logits_fn, baseline + place * (images - baseline), classes)
        return total + weight * gradients, None

    mean, _ = jax.lax.scan(add, jnp.zeros_like(images), path)
    return sum_parts((images - baseline) * mean, grid)


def residual(
    logits_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    classes: jax.Array | None,
    baseline: jax.Array | float,
    maps: jax.Array,
) -> jax.Array:
    """Compute |sum of the map - difference| / |difference| of integrated gradients, [b].

    The difference is that of the class logits of image and baseline, which the map [b, *grid] adds
    up to, except for the error of the quadrature.
    """
    logits = logits_fn(images)
    classes = logits.argmax(-1) if classes is None else classes
    of_baseline = logits_fn(jnp.broadcast_to(baseline, images.shape))
    difference = pick(logits, classes) - pick(of_baseline, classes)
    error = jnp.abs(maps.sum((1, 2)) - difference)
    return error / jnp.maximum(jnp.abs(difference), 1e-12)


def grad_cam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """Compute Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391), [b, rows, columns].

    The channels are weighted by their mean gradient and summed; negative sums become 0.

    Args:
      activations: [b, rows, columns, channels].
      gradients: of the class logit with respect to them.
    """
    activations, gradients = (jnp.asarray(a, jnp.float32) for a in (activations, gradients))
    weights = gradients.mean((1, 2), keepdims=True)
    return jnp.maximum((weights * activations).sum(-1), 0)


def token_gradients(
    model: nn.Module, variables: dict, images: jax.Array, classes: jax.Array | None, layer: int
) -> tuple[jax.Array, jax.Array]:
    """Compute the tokens of one layer of a ViT, and the gradients of the class logit: [b, n, d].

    `layer` is the index in "tokens", 0 after the embedding.
    """
    apply = functools.partial(model.apply, capture=True)
    shape = jax.eval_shape(apply, variables, images)[1]["tokens"][layer]

    def of_class(added):
        logits, seen = apply(variables, images, added_tokens={layer: added})
        return pick(logits, classes).sum(), seen["tokens"][layer]

    gradients, tokens = jax.grad(of_class, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    return tokens, gradients


def rise(
    logits_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    classes: jax.Array | None,
    grid: tuple[int, int],
    baseline: jax.Array | float = 0.0,
    masks: int = 512,
    seed: int = 0,
    probabilities_of: Callable[[jax.Array], jax.Array] = jax.nn.softmax,
) -> jax.Array:
    """Compute RISE (Petsiuk et al. 2018, arXiv:1806.07421), [b, *grid], without gradients.

    Each of `masks` random masks shows about half of the image: 7 x 7 cells, or as many as there are
    parts, each shown with probability 1/2, enlarged bilinearly and shifted at random. An entry is
    the mean probability of the class, weighted by how much of the part the mask shows, minus the
    unweighted mean: by how much it rises where the part is shown. All images have the same masks,
    of `seed`. `probabilities_of` maps logits to probabilities.
    """
    classes = logits_fn(images).argmax(-1) if classes is None else classes
    _, height, width, _ = images.shape
    cells = min(_CELLS, *grid)
    tall, wide = -(-height // cells), -(-width // cells)

    def try_mask(key):
        key_cells, key_shift = jax.random.split(key)
        shown = jax.random.bernoulli(key_cells, 0.5, (cells, cells)).astype(jnp.float32)
        large = jax.image.resize(shown, ((cells + 1) * tall, (cells + 1) * wide), "linear")
        shift = jax.random.randint(key_shift, (2,), 0, jnp.array([tall, wide]))
        mask = jax.lax.dynamic_slice(large, shift, (height, width))[None, :, :, None]
        logits = logits_fn(baseline + mask * (images - baseline)).astype(jnp.float32)
        return pick(probabilities_of(logits), classes), sum_parts(mask, grid)[0]

    keys = jax.random.split(jax.random.key(seed), masks)
    probabilities, shown = jax.lax.map(try_mask, keys, batch_size=min(_MASKS_PER_CALL, masks))
    shown = shown / jnp.maximum(shown.sum(0), 1e-12)
    probabilities -= probabilities.mean(0)
    return jnp.einsum("mb,mrc->brc", probabilities, shown, precision=jax.lax.Precision.HIGHEST)
