"""Seeded, stratified choices of examples: the train, validation and test parts."""

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np

from vit_jax.data.examples import Examples
from vit_jax.data.sources import VALIDATION_NAMES, Source
from vit_jax.runtime.errors import UserError


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


def some_of_each_class(labels: np.ndarray, num_classes: int, per_class: int, seed) -> np.ndarray:
    """Returns the sorted indices of `per_class` random examples of every class.

    Raises UserError if a class has fewer.
    """
    fewest = np.bincount(labels, minlength=num_classes).min()
    if fewest < per_class:
        raise UserError(
            f"data.examples_per_class={per_class}, but a class has only {fewest} training examples"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def one_of_each(labels: np.ndarray, classes: Iterable[int], seed) -> np.ndarray:
    """Returns the index of a random example of each of some classes, all of which have one."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(labels == c)) for c in classes])


def make_splits(source: Source, config) -> Splits:
    """Divides a source into train, validation and test as `config.data` says.

    Test, then validation, are carved from the training examples where the set has none of its
    own. The three parts, and a subset of train, depend on `split_seed` alone.

    Raises:
      UserError: a part would be empty, or larger than what it is taken from.
    """
    names = _split_names(source, config)
    train = source.examples(names["train"])
    val, test = (source.examples(names[part]) if names[part] else None for part in ("val", "test"))
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
        chosen = some_of_each_class(
            train.labels,
            len(source.class_names),
            config.examples_per_class,
            (config.split_seed, 2),
        )
        train = train.take(chosen)
    return Splits(source.class_names, train, val, test)


def carves_test(source: Source, config) -> bool:
    """Returns whether the test part is divided off from the training examples."""
    return not _split_names(source, config)["test"]


def undivided(source: Source, config) -> list[Examples]:
    """Returns the examples of all splits that `config.data` names, with none carved or left out."""
    names = _split_names(source, config)
    others = [names[part] for part in ("val", "test") if names[part]]
    return [source.examples(name) for name in (names["train"], *others)]


def _split_names(source, config):
    """Returns {part: split of the source}, "" for a part that is to be carved or for one piece."""
    has = source.split_names
    names = {
        "train": config.train_split if has else "",
        "val": _split_name(config, "val_split", has, VALIDATION_NAMES),
        "test": _split_name(config, "test_split", has, ("test",)),
    }
    for one, other in itertools.combinations([part for part in names if names[part]], 2):
        if source.overlap(names[one], names[other]):
            raise UserError(
                f"data.{one}_split={names[one]!r} and data.{other}_split={names[other]!r} share "
                "examples"
            )
    return names


def _split_name(config, key, has, standard):
    """Returns the split of the source to use, "" if the part is to be carved."""
    if config[key] != "auto" and not has:
        raise UserError(
            f"data.{key}={config[key]!r}, but {config.name} comes in one piece: leave it at 'auto'"
        )
    if config[key] != "auto":
        return config[key]
    return next((name for name in standard if name in has), "")


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
