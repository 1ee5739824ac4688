"""Seeded, stratified choices of examples: the train, validation and test parts."""

import dataclasses

import numpy as np

from vit_jax.data.sources import VALIDATION_NAMES, Examples, Source
from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Splits:
    """The three parts of a data set."""

    class_names: list[str]
    train: Examples
    val: Examples
    test: Examples


def stratified(labels: np.ndarray, count: int, seed) -> tuple[np.ndarray, np.ndarray]:
    """Chooses `count` examples at random with every class in proportion.

    Args:
      labels: int [n].
      count: number of examples to choose, at most n.
      seed: an int or a sequence of ints.

    Returns:
      Sorted indices of the chosen [count] and of the rest [n - count].
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    sizes = np.bincount(labels)
    by_class = order[np.argsort(labels[order], kind="stable")]  # grouped; shuffled in each class
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    # The j-th of a class of m stands at (j + 1/2) / m: the `count` lowest are in proportion.
    position = np.empty(len(labels))
    position[by_class] = (np.arange(len(labels)) - first + 0.5) / np.repeat(sizes, sizes)
    ranked = order[np.argsort(position[order], kind="stable")]
    return np.sort(ranked[:count]), np.sort(ranked[count:])


def first_of_each_class(labels: np.ndarray, per_class: int, seed) -> np.ndarray:
    """Returns the sorted indices of `per_class` random examples of every class.

    Raises UserError if a class has fewer.
    """
    fewest = np.bincount(labels).min()
    if fewest < per_class:
        raise UserError(
            f"data.examples_per_class={per_class}, but a class has only {fewest} training examples"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def make_splits(source: Source, config) -> Splits:
    """Divides a source into train, validation and test as `config.data` says.

    Test, then validation, are carved from the training examples where the set has none of its
    own. The three parts, and a subset of train, depend on `split_seed` alone.

    Raises:
      UserError: a part would be empty, or larger than what it is taken from.
    """
    has = source.split_names
    train = source.examples(config.train_split if has else "")
    test = val = None
    if config.test_split != "auto" and has:
        test = source.examples(config.test_split)
    elif "test" in has:
        test = source.examples("test")
    if config.val_split != "auto" and has:
        val = source.examples(config.val_split)
    elif found := [name for name in VALIDATION_NAMES if name in has]:
        val = source.examples(found[0])
    if test is None:
        test, train = _carve(train, "test_size", config, 0)
    if val is None:
        val, train = _carve(train, "val_size", config, 1)
    if config.train_examples > len(train):
        raise UserError(
            f"data.train_examples={config.train_examples}, but only {len(train)} are left for "
            "training"
        )
    if config.train_examples:
        chosen, _ = stratified(train.labels, config.train_examples, (config.split_seed, 2))
        train = train.take(chosen)
    elif config.examples_per_class:
        train = train.take(
            first_of_each_class(train.labels, config.examples_per_class, (config.split_seed, 2))
        )
    return Splits(source.class_names, train, val, test)


def _carve(train, key, config, stream):
    size = config[key]
    count = round(size * len(train)) if size < 1 else int(size)
    if not 0 < count < len(train):
        raise UserError(
            f"data.{key}={size:g} asks for {count} of {len(train)} training examples: "
            "it must leave some on both sides"
        )
    chosen, rest = stratified(train.labels, count, (config.split_seed, stream))
    return train.take(chosen), train.take(rest)
