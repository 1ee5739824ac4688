"""Attribution and inspection of a model: arrays in, arrays out.

Arguments that the functions share:
  attention: layers, first to last, of weights [b, h, n, n] whose rows are queries.
  gradients: of a logit with respect to each attention weight, of the same shapes.
  grid: rows and columns of patches.
  has_cls: whether token 0 is the class token. n must be the number of tokens, else ValueError.
  registers: number of register tokens, after the class token and before the patches.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FUSIONS = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}


def rollout(
    attention: Sequence[jax.Array] | jax.Array,
    fusion: str = "mean",
    discard: float = 0.0,
    has_cls: bool = True,
) -> jax.Array:
    """Compute attention rollout, [b, n, n]: the fraction of each input token in each output token.

    Abnar & Zuidema 2020 (arXiv:2005.00928), section 3: with A_l the heads' weights fused, the
    residual connection makes a layer (A_l + I), its rows divided by their sums; the layers are
    multiplied, the last one leftmost. Rows are output tokens and sum to 1. Negative weights, which
    differential attention has, count as 0.

    Args:
      fusion: "mean", "max" or "min" over the heads.
      discard: fraction, in [0, 1), of a layer's weights that are set to 0 before I is added: of
        each image's fused map the lowest floor(discard * k), of the k entries outside the class
        token's column, so that every row keeps the fraction that comes from no patch. Entries that
        tie at the threshold are kept.
    """
    fused = [FUSIONS[fusion](_positive(a), axis=1) for a in attention]
    return _chained(fused, discard, has_cls)


def _positive(weights):
    return jnp.maximum(jnp.asarray(weights, jnp.float32), 0)


def gradient_rollout(
    attention: Sequence[jax.Array] | jax.Array,
    gradients: Sequence[jax.Array] | jax.Array,
    discard: float = 0.0,
    has_cls: bool = True,
) -> jax.Array:
    """Compute rollout with gradients, [b, n, n]: how far each input token supports a class.

    The heads are fused to the mean of max(A * d logit / d A, 0), as in Chefer et al. 2021
    (arXiv:2103.15679); the rest is `rollout`. A product is positive where the weight, as it is,
    supports the class: that may be a negative weight of differential attention.
    """
    return _chained(_supporting(attention, gradients), discard, has_cls)


def chefer(
    attention: Sequence[jax.Array] | jax.Array, gradients: Sequence[jax.Array] | jax.Array
) -> jax.Array:
    """Compute the relevance of Chefer et al. 2021, [b, n, n], as published (arXiv:2103.15679).

    Equations 5 and 6 for self-attention: R = I, then R <- R + E R for each layer, first to last,
    with E the mean over heads of max(A * d logit / d A, 0). In contrast to `gradient_rollout`, no
    row is divided by its sum, so that layers with large gradients count more.
    """
    found = jnp.eye(attention[0].shape[-1])
    for one in _supporting(attention, gradients):
        found = found + jnp.matmul(one, found, precision=jax.lax.Precision.HIGHEST)
    return found


def _supporting(attention, gradients):
    """Compute the mean over heads of max(A * d logit / d A, 0) of each layer, [b, n, n]."""
    # The products are taken in float32: bfloat16 would round them to 8 bits.
    products = (
        jnp.asarray(a, jnp.float32) * jnp.asarray(g, jnp.float32)
        for a, g in zip(attention, gradients, strict=True)
    )
    return [_positive(product).mean(1) for product in products]


def _chained(fused, discard, has_cls):
    """Multiply the layers' fused maps [b, n, n], first to last."""
    layers = []
    for one in fused:
        one = _without_lowest(one, discard, int(has_cls)) + jnp.eye(one.shape[-1])
        layers.append(one / one.sum(-1, keepdims=True))
    # In full float32, also where the default is less: twelve roundings would show in the sums.
    multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return functools.reduce(lambda below, layer: multiply(layer, below), layers)


def _without_lowest(fused, fraction, first):
    patches = fused[:, :, first:]
    count = int(fraction * patches[0].size)
    if not count:
        return fused
    border = jnp.sort(patches.reshape(len(patches), -1), -1)[:, count, None, None]
    return fused.at[:, :, first:].set(jnp.where(patches < border, 0.0, patches))


def patch_relevance(
    maps: jax.Array, grid: tuple[int, int], has_cls: bool, registers: int = 0
) -> jax.Array:
    """Reduce maps [..., n, n], whose rows are output tokens, to patches: [..., rows, columns].

    The relevance of a patch is in the row of the class token, the only token that the head sees;
    without one, the head sees the mean of the patches, and so it is the mean over their rows.
    """
    _check_tokens(maps.shape[-1] - registers, grid, has_cls)
    maps = jnp.asarray(maps, jnp.float32)
    first = int(has_cls) + registers
    seen = maps[..., 0, first:] if has_cls else maps[..., first:, first:].mean(-2)
    return seen.reshape(*seen.shape[:-1], *grid)


def explanation(
    name: str,
    attention: Sequence[jax.Array] | jax.Array,
    gradients: Sequence[jax.Array] | jax.Array,
    grid: tuple[int, int],
    has_cls: bool,
    registers: int = 0,
    **options: Any,
) -> jax.Array:
    """Compute the relevance of each patch, [b, rows, columns].

    By name, it is "gradient rollout" or "Chefer", which alone depend on `gradients`; "rollout"; or
    "last layer", the mean of that layer's heads, with negative weights as 0. Of `chefer`, it is
    R - I: what a token contributes to itself through the residual connections is left out.
    `options` are those of `gradient_rollout` and `rollout`.
    """
    if name == "Chefer":
        maps = chefer(attention, gradients)
        maps = maps - jnp.eye(maps.shape[-1])
    elif name == "gradient rollout":
        maps = gradient_rollout(attention, gradients, has_cls=has_cls, **options)
    elif name == "rollout":
        maps = rollout(attention, has_cls=has_cls, **options)
    else:
        maps = _positive(attention[-1]).mean(1)
    return patch_relevance(maps, grid, has_cls, registers)


def mean_attention_distance(
    attention: Sequence[jax.Array] | jax.Array,
    grid: tuple[int, int],
    patch_size: int,
    has_cls: bool,
    registers: int = 0,
) -> jax.Array:
    """Compute the mean attention distance of each head, in pixels: [layers, h].

    Dosovitskiy et al. 2021 (arXiv:2010.11929), figure 7 and appendix D.7: the distances between
    the centres of the query's and the keys' patches, of `patch_size` pixels, weighted by attention,
    averaged over queries and images. Class token and registers are left out, as queries and as
    keys, and each row is divided by its sum. Negative weights count as 0; a query without a
    positive weight is left out, and a head of only such queries is NaN.
    """
    places = np.argwhere(np.ones(grid)) * float(patch_size)  # [patches, 2]
    lengths = np.linalg.norm(places[:, None] - places[None], axis=-1)  # [patches, patches]
    first, found = int(has_cls) + registers, []
    for weights in attention:
        _check_tokens(weights.shape[-1] - registers, grid, has_cls)
        weights = _positive(weights)[..., first:, first:]
        total = weights.sum(-1)  # [b, h, patches]
        mean = (weights * lengths).sum(-1) / jnp.where(total > 0, total, 1.0)
        found.append(mean.mean((0, 2), where=total > 0))
    return jnp.stack(found)


def position_similarity(table: jax.Array, grid: tuple[int, int], has_cls: bool) -> jax.Array:
    """Compute cosine similarities of position embeddings [n, d]: [rows, columns, rows, columns].

    Entry [i, j] is the map of patch (i, j) (Dosovitskiy et al. 2021, figure 7, centre). The class
    token is left out.
    """
    _check_tokens(len(table), grid, has_cls)
    table = jnp.asarray(table, jnp.float32)[int(has_cls) :]
    lengths = jnp.linalg.norm(table, axis=-1, keepdims=True)
    table = table / jnp.where(lengths > 0, lengths, 1.0)
    cosines = jnp.matmul(table, table.T, precision=jax.lax.Precision.HIGHEST)
    return cosines.reshape(*grid, *grid)


def _check_tokens(found, grid, has_cls):
    rows, columns = grid
    if found != rows * columns + has_cls:
        extra = " and a class token" if has_cls else ""
        raise ValueError(f"{found} tokens, not a grid of {rows} x {columns} patches{extra}")


def patch_filters(kernel: jax.Array, count: int) -> jax.Array:
    """Compute `count` principal components of a patch embedding [p, p, c, d]: [count, p, p, c].

    The filters, less their mean, are the samples (Dosovitskiy et al. 2021, figure 7, left). A
    component's sign is arbitrary: here the entry with the largest magnitude is positive. They are
    scaled as by `filter_images`.

    Raises:
      ValueError: `count` exceeds d or p * p * c.
    """
    *shape, d = kernel.shape
    filters = jnp.asarray(kernel, jnp.float32).reshape(-1, d).T  # [d, p * p * c]
    if not 0 < count <= min(filters.shape):
        raise ValueError(f"count is {count}, not in 1 to {min(filters.shape)}")
    _, _, components = jnp.linalg.svd(filters - filters.mean(0), full_matrices=False)
    components = components[:count]
    largest = jnp.abs(components).argmax(-1)[:, None]
    components *= jnp.sign(jnp.take_along_axis(components, largest, 1))
    return filter_images(components.T.reshape(*shape, count))


def filter_images(kernel: jax.Array) -> jax.Array:
    """Scale the filters of a convolution [h, w, c, d] to images [d, h, w, c] in [0, 1].

    Each filter is divided by its largest magnitude; its zero is the grey 0.5.
    """
    filters = jnp.moveaxis(jnp.asarray(kernel, jnp.float32), -1, 0)
    largest = jnp.abs(filters).max((1, 2, 3), keepdims=True)
    return 0.5 + 0.5 * filters / jnp.where(largest > 0, largest, 1.0)


def smoothness(kernel: jax.Array) -> float:
    """Correlate neighbouring weights of filters [h, w, c, d]: near 0 for noise, 1 if constant.

    nan without neighbours, which are weights next to each other in a row or column.
    """
    kernel = jnp.asarray(kernel, jnp.float32)
    pairs = [(kernel[1:], kernel[:-1]), (kernel[:, 1:], kernel[:, :-1])]
    one, other = (jnp.concatenate([a.ravel() for a in side]) for side in zip(*pairs, strict=True))
    return float(one @ other / jnp.sqrt((one @ one) * (other @ other)))


def deletion_insertion(
    logits_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    relevance: jax.Array,
    baseline: jax.Array,
    steps: int,
    probabilities_of: Callable[[jax.Array], jax.Array] = jax.nn.softmax,
) -> dict[str, jax.Array]:
    """Score a relevance map by deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421).

    Deletion replaces the parts of an image by the baseline, the most relevant first; insertion
    adds them to the baseline in that order. If the map is faithful, the probability of the
    predicted class falls early with deletion and rises early with insertion.

    Args:
      logits_fn: maps images [b, height, width, channels] to logits [b, num_classes]; compiled once.
        Within `jit`, pass the parameters that it uses as arguments.
      images: normalised, as `logits_fn` takes them.
      relevance: [b, rows, columns] of equal parts of the image, up to single pixels. Of equal
        entries the first, in reading order, counts as the most relevant.
      baseline: uninformative pixels, such as the mean colour, which broadcast to the images' shape.
      steps: number of steps from none to all parts; after step k, round(k / steps * parts) parts.
      probabilities_of: maps logits to probabilities.

    Returns:
      "fractions" [steps + 1] of parts replaced; "deletion" and "insertion" [b, steps + 1], the
      probabilities; "deletion_auc" and "insertion_auc" [b], the areas below them by the
      trapezoidal rule.

    Raises:
      ValueError: no steps, or parts that do not divide the image.
    """
    (_, height, width, _), (_, rows, columns) = images.shape, relevance.shape
    if height % rows or width % columns:
        raise ValueError(f"{rows} x {columns} parts do not divide {height} x {width} pixels")
    if steps < 1:
        raise ValueError(f"steps is {steps}, not at least 1")
    parts = rows * columns
    counts = replaced_counts(parts, steps)
    options = counts, probabilities_of
    deletion, insertion = _curves(logits_fn, images, relevance, baseline, *options)
    fractions = jnp.asarray(counts / parts, jnp.float32)
    return {
        "fractions": fractions,
        "deletion": deletion,
        "insertion": insertion,
        "deletion_auc": jnp.trapezoid(deletion, fractions),
        "insertion_auc": jnp.trapezoid(insertion, fractions),
    }


def replaced_counts(parts: int, steps: int) -> np.ndarray:
    """Compute how many parts are replaced after each step: round(k / steps * parts)."""
    return (2 * np.arange(steps + 1) * parts + steps) // (2 * steps)


def _curves(logits_fn, images, relevance, baseline, counts, probabilities_of):
    """Compute the probabilities [2, b, len(counts)] with that many parts deleted, or inserted."""
    (_, height, width, _), (b, rows, columns) = images.shape, relevance.shape
    order = jnp.argsort(-relevance.reshape(b, rows * columns), stable=True)
    ranks = jnp.argsort(order)  # 0: the most relevant
    classes = logits_fn(images).argmax(-1)[:, None]

    def probability(step):
        count, inserted = step
        replaced = ((ranks < count) != inserted).reshape(b, rows, columns, 1)
        replaced = replaced.repeat(height // rows, 1).repeat(width // columns, 2)
        logits = logits_fn(jnp.where(replaced, baseline, images))
        probabilities = probabilities_of(logits.astype(jnp.float32))
        return jnp.take_along_axis(probabilities, classes, 1)[:, 0]

    # A loop within the program: at any time there is one batch of changed images.
    inserted = np.repeat([False, True], len(counts))
    curves = jax.lax.map(probability, (jnp.tile(counts, 2), jnp.asarray(inserted)))
    return curves.reshape(2, len(counts), b).swapaxes(1, 2)
