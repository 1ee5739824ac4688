"""Images of a dataset that figures show: of given classes, at random, or by index."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data import checks
from vit_jax.data.examples import describe_label
from vit_jax.data.sources import open_source
from vit_jax.data.splits import choice_of_images, make_splits, one_of_each
from vit_jax.runtime.errors import UserError


def check_same_images(models: Sequence[Any], split: str = "test") -> None:
    """Raise UserError if the settings of `Classifier`s choose different images for a split."""
    choices = {(*m.class_names, choice_of_images(m.config.data, split)) for m in models}
    if len(choices) > 1:
        raise UserError("the runs were tested on different images: give --images FILE...")


def images_of_classes(data, names: Sequence[str], count: int) -> tuple[np.ndarray, list[str]]:
    """Load a fixed test image of each named class, or of the first `count` that have any.

    Returns uint8 [n, side, side, channels], as stored, and the n names of their classes. Raises
    UserError if a class is unknown or has no test image.
    """
    splits = make_splits(open_source(data), data)
    for name in names:
        if name not in splits.class_names:
            raise UserError(f"{name!r} is not a class: use one of {', '.join(splits.class_names)}")
    labels = splits.test.labels
    shown = checks.present(labels)
    numbers = [*map(splits.class_names.index, names)] or sorted(shown)[:count]
    if not numbers:
        raise UserError("no test image has a label" if len(labels) else "the test split is empty")
    if missing := [name for name, n in zip(names, numbers, strict=False) if n not in shown]:
        raise UserError(f"the test split lacks images of {', '.join(missing)}")
    return _decode(splits.test, one_of_each(labels, numbers, data.split_seed), data, splits)


def random_images(data, count: int, split: str) -> tuple[np.ndarray, list[str]]:
    """Load a fixed random sample of "train", "val" or "test", as `images_of_classes` does.

    Raises UserError if the split is empty.
    """
    splits = make_splits(open_source(data), data)
    examples = getattr(splits, split)
    if not len(examples.labels):
        raise UserError(f"the {split} split is empty")
    order = np.random.default_rng(data.split_seed).permutation(len(examples.labels))
    return _decode(examples, order[:count], data, splits)


def test_images(data, indices: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """Load test images by their index, as `images_of_classes` does; raises UserError."""
    splits = make_splits(open_source(data), data)
    if any(index >= len(splits.test.labels) for index in indices):
        raise UserError(f"there are only {len(splits.test.labels)} test images")
    return _decode(splits.test, np.asarray(indices), data, splits)


def _decode(examples, chosen, data, splits):
    images, labels = examples.take(chosen).decode_all(data.num_threads)
    return images, [describe_label(label, splits.class_names) for label in labels]
