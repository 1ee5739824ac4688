"""Tests of explanations: SaCo, and whether a map depends on the weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.explanation.gradients import pick

_GROUPS = 10  # Wu et al. 2024


def saco(
    logits_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    relevance: jax.Array,
    baseline: jax.Array | float,
    groups: int | None = None,
    probabilities_of: Callable[[jax.Array], jax.Array] = jax.nn.softmax,
) -> jax.Array:
    """Compute the salience-guided faithfulness coefficient, [b] (Wu et al. 2024, arXiv:2404.01415).

    The parts are sorted by relevance and cut into equal groups. Each group alone is replaced by the
    baseline; a pair of groups agrees if the one with more relevance lowers the probability of the
    predicted class at least as much. The result is the sum over all pairs of the difference in
    relevance, negative where a pair disagrees, divided by the sum of its magnitudes: 1 if all
    agree, -1 if none, 0 on average for a random order, and 0 for a constant map.

    Args:
      logits_fn: maps images [b, height, width, channels] to logits [b, num_classes].
      images: normalised, as `logits_fn` takes them.
      relevance: [b, rows, columns] of equal parts of the image.
      baseline: uninformative pixels, such as the mean colour, which broadcast to the images' shape.
      groups: number of groups; None: as in `number_of_groups`. If it does not divide the parts,
        the remaining ones in the middle of the order are left out.
      probabilities_of: maps logits to probabilities.

    Raises:
      ValueError: parts that do not divide the image, or fewer than two groups.
    """
    (b, height, width, _), (_, rows, columns) = images.shape, relevance.shape
    if height % rows or width % columns:
        raise ValueError(f"{rows} x {columns} parts do not divide {height} x {width} pixels")
    parts = rows * columns
    groups = number_of_groups(parts) if groups is None else groups
    if not 2 <= groups <= parts:
        raise ValueError(f"groups is {groups}, not in 2 to {parts}")
    values = jnp.asarray(relevance, jnp.float32).reshape(b, parts)
    ranks = jnp.argsort(jnp.argsort(-values, stable=True))  # 0: the most relevant
    group = jnp.asarray(_group_of_rank(parts, groups))[ranks]  # [b, parts]
    logits = logits_fn(images)
    classes = logits.argmax(-1)

    def of_group(index):
        replaced = (group == index).reshape(b, rows, columns, 1)
        replaced = replaced.repeat(height // rows, 1).repeat(width // columns, 2)
        changed = logits_fn(jnp.where(replaced, baseline, images)).astype(jnp.float32)
        return pick(probabilities_of(changed), classes), (values * (group == index)).sum(1)

    left, sums = jax.lax.map(of_group, jnp.arange(groups))  # [groups, b] each
    first, second = np.triu_indices(groups, 1)
    weights = sums[first] - sums[second]  # not negative
    # The probability of the whole image cancels out of the comparison of two drops.
    signed = jnp.where(left[first] <= left[second], weights, -weights).sum(0)
    total = weights.sum(0)
    return jnp.where(total > 0, signed / jnp.where(total > 0, total, 1.0), 0.0)


def number_of_groups(parts: int) -> int:
    """Choose the number of groups, up to 10, that leaves the fewest parts over."""
    return min(range(min(_GROUPS, parts), min(6, parts) - 1, -1), key=lambda count: parts % count)


def _group_of_rank(parts, groups):
    """Compute the group of each rank, [parts]; -1 for those in the middle that are left out."""
    size, left_out = divmod(parts, groups)
    numbers = np.repeat(np.arange(groups), size)
    return np.insert(numbers, size * (groups // 2), [-1] * left_out)


def shuffle_weights(variables: dict, seed: int = 0) -> dict:
    """Shuffle the entries of each array of parameters: the same values in random places.

    This randomises all layers, as Adebayo et al. 2018 (arXiv:1810.03292) do, but keeps the scale of
    each array, so that the outputs are neither constant nor infinite.
    """
    rng = np.random.default_rng(seed)

    def shuffled(array):
        return jnp.asarray(rng.permutation(np.asarray(array).ravel()).reshape(array.shape))

    return variables | {"params": jax.tree.map(shuffled, variables["params"])}


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute Spearman's rank correlation of two maps [b, rows, columns] per image, [b].

    Of a constant map, which has no ranks, it is 1 with an equal map, else 0.
    """
    import scipy.stats  # slow to import

    ranks = [scipy.stats.rankdata(a.reshape(len(a), -1), axis=1) for a in (maps, others)]
    x, y = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    equal = (maps == others).all((1, 2)).astype(float)
    return np.where(scale > 0, (x * y).sum(1) / np.where(scale > 0, scale, 1.0), equal)
