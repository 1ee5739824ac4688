"""Seeded, stratified train, validation and test splits."""

import dataclasses
import filecmp
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.config.schema import SCHEMA
from vit_jax.data import prepare, relabel
from vit_jax.data.examples import Examples
from vit_jax.data.folders import find_split
from vit_jax.data.sources import Source
from vit_jax.runtime.errors import UserError

# Settings of `config.data` by their part in the choice of images: where a dataset has its images,
# labels and splits; which of its images are used, with which labels; how they are split; which
# subsets of the splits remain; and how images become pixels.
LAYOUT_KEYS = ("labels", "label_pattern", "image_column", "label_column", "split_column")
LAYOUT_KEYS += ("image_key", "label_key", "label_separator")
READING_KEYS = ("multi_label", "skip_corrupt", "relabel")
SPLIT_KEYS = ("train_split", "val_split", "test_split", "val_size", "test_size", "split_seed")
SPLIT_KEYS += ("num_folds", "fold")
SUBSET_KEYS = ("train_examples", "val_examples", "test_examples", "examples_per_class")
SUBSET_KEYS += ("imbalance_ratio",)
PIXEL_KEYS = ("image_size", "stored_size", "resize_mode", "interpolation", "scaled_decoding")
PIXEL_KEYS += ("eval_crop", "channels", "background", "level_range", "mean", "std")
# Those that choose no test images, unless folds divide the training images.
_NOT_OF_TEST = ("val_split", "val_size", "val_examples", "train_examples", "examples_per_class")
_NOT_OF_TEST += ("imbalance_ratio",)
# Another image of an example, or another label after the split, leaves it in its split.
_NEUTRAL = ("image_column", "image_key", "relabel")


@dataclasses.dataclass(frozen=True)
class Splits:
    """The three splits of a dataset, with the labels of `data.relabel`."""

    class_names: list[str]
    train: Examples
    val: Examples
    test: Examples


def stratified(labels: np.ndarray, count: int, seed) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` examples, stratified by class; several labels per image: by each of them.

    Returns the sorted indices of the chosen [count] and of the rest [n - count].
    """
    if labels.ndim == 2:
        return _stratified_by_labels(labels, count, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    sizes = np.bincount(labels)
    by_class = order[np.argsort(labels[order], kind="stable")]  # grouped; shuffled in each class
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    # The j-th of a class of m gets position (j + 1/2) / m: the lowest `count` are stratified.
    position = np.empty(len(labels))
    position[by_class] = (np.arange(len(labels)) - first + 0.5) / np.repeat(sizes, sizes)
    ranked = order[np.argsort(position[order], kind="stable")]
    return np.sort(ranked[:count]), np.sort(ranked[count:])


def _stratified_by_labels(labels, count, seed):
    """Stratify iteratively, the rarest label first (Sechidis et al. 2011, algorithm 1)."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rows = labels[order].astype(bool)
    room = np.array([count, len(rows) - count])
    # How many examples the chosen and the rest still need of each label, and in total.
    wanted = np.outer(room / max(1, len(rows)), rows.sum(0))  # [2, classes]
    taken, left = np.full(len(rows), -1), rows.sum(0)
    while left.any():
        label = int(np.where(left > 0, left, len(rows) + 1).argmin())
        for i in np.flatnonzero(rows[:, label] & (taken < 0)):
            side = max((0, 1), key=lambda s: (room[s] > 0, wanted[s, label], room[s]))
            taken[i], room[side] = side, room[side] - 1
            wanted[side] -= rows[i]
            left -= rows[i]
    taken[np.flatnonzero(taken < 0)] = np.repeat((0, 1), room)  # examples without a label
    return np.sort(order[taken == 0]), np.sort(order[taken == 1])


def _balanced_subset(labels, num_classes, per_class, seed):
    """Draw `per_class` examples of every class; return their sorted indices."""
    fewest = np.bincount(labels, minlength=num_classes).min()
    if fewest < per_class:
        raise UserError(
            f"data.examples_per_class={per_class}, but a class has only {fewest} training examples"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def _long_tail(labels, num_classes, ratio, seed):
    """Draw fewer and fewer examples per class (Cui et al. 2019, arXiv:1901.05555).

    The first class keeps as many as the smallest one has, the last 1 / `ratio` of them. Returns
    sorted indices.
    """
    smallest = np.bincount(labels, minlength=num_classes).min()
    sizes = np.rint(smallest * ratio ** -np.linspace(0, 1, num_classes)).astype(int)
    if not sizes[-1]:
        raise UserError(
            f"data.imbalance_ratio={ratio:g} leaves no training example of the last class: the "
            f"smallest class has {smallest}, so use at most {smallest}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:size] for label, size in enumerate(sizes)]
    return np.sort(np.concatenate(chosen))


def one_of_each(labels: np.ndarray, classes: Iterable[int], seed) -> np.ndarray:
    """Draw the index of one example of each class in `classes`, none of which is empty."""
    rng = np.random.default_rng(seed)
    has = (labels[:, c] if labels.ndim == 2 else labels == c for c in classes)
    return np.array([rng.choice(np.flatnonzero(one)) for one in has])


def make_splits(source: Source, config) -> Splits:
    """Split a source into train, validation and test according to `config.data`.

    Test, then validation, are held out from the training examples where the dataset has no such
    split. With `num_folds`, test is a fold of the training examples that remain. All splits and
    their subsets depend only on `split_seed` and on the labels before `relabel`.

    Raises:
      UserError: a split would be empty, or larger than the one it is held out from; or the file
        of `relabel` does not fit the dataset.
    """
    opened = open_splits(source, config)
    train, val, test = opened["train"], opened.get("val"), opened.get("test")
    if test is None:
        test, train = _hold_out(train, "test_size", config, 0)
    if val is None:
        val, train = _hold_out(train, "val_size", config, 1)
    if per_class := config.examples_per_class:
        seed, num_classes = (config.split_seed, 2), len(source.class_names)
        train = train.take(_balanced_subset(train.labels, num_classes, per_class, seed))
    if config.imbalance_ratio > 1:
        seed, num_classes = (config.split_seed, 5), len(source.class_names)
        train = train.take(_long_tail(train.labels, num_classes, config.imbalance_ratio, seed))
    train = _subset(train, "train", config, 2)
    val, test = _subset(val, "val", config, 3), _subset(test, "test", config, 4)
    if config.num_folds:
        folds = assign_folds(train.labels, config.num_folds, (config.split_seed, 6))
        chosen, rest = np.flatnonzero(folds == config.fold), np.flatnonzero(folds != config.fold)
        test, train = train.take(chosen), train.take(rest)
    changed = relabel.changed_labels(config, source.class_names, opened)
    train, val, test = (examples.relabel(changed) for examples in (train, val, test))
    return Splits(source.class_names, train, val, test)


def assign_folds(labels: np.ndarray, num_folds: int, seed) -> np.ndarray:
    """Assign each example to a fold of 0 ... num_folds - 1, stratified by class: int [n]."""
    if num_folds > len(labels):
        raise UserError(
            f"data.num_folds={num_folds} is larger than the training split of {len(labels)} "
            "examples: lower it"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    folds = np.empty(len(labels), int)
    folds[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % num_folds
    return folds


def _subset(examples, split, config, stream):
    count = config[f"{split}_examples"]
    if count > len(examples):
        raise UserError(
            f"data.{split}_examples={count}, but only {len(examples)} are left in {split}"
        )
    if not count:
        return examples
    return examples.take(stratified(examples.labels, count, (config.split_seed, stream))[0])


def holds_out_test(source: Source, config) -> bool:
    """Whether the test split is held out from the training examples."""
    return not _split_names(source, config)["test"] or bool(config.num_folds)


def only_split(source: Source) -> str:
    """Name the only split of a source that was opened for an evaluation: "test", "val" or ""."""
    if [source.train_split] != source.split_names:
        return ""
    return next((one for one in ("test", "val") if find_split(one, source.split_names)), "")


def choice_of_images(data: Mapping[str, Any], split: str = "test") -> str:
    """Describe the settings of `config.data` that choose the images of a split, for comparison."""
    keys = ("name", "dir", *LAYOUT_KEYS, *READING_KEYS, *SPLIT_KEYS, *SUBSET_KEYS)
    left_out = _NOT_OF_TEST if split == "test" and not data["num_folds"] else ()
    return json.dumps([data[key] for key in keys if key not in left_out])


def differing_splits(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List the settings by which two `config.data` split the same dataset differently.

    [] for different datasets. A table of labels that has moved counts as the same.
    """
    try:
        folders, tables = ([path(data) for data in (one, other)] for path in (_folder, _table))
    except ValueError:  # no path
        return []
    if one["name"] != other["name"] or len(set(folders)) > 1:
        return []
    keys = {*LAYOUT_KEYS, *READING_KEYS, *SPLIT_KEYS}.difference(_NEUTRAL)
    if one["num_folds"] or other["num_folds"]:  # they divide the training images that remain
        keys |= set(SUBSET_KEYS) - {"val_examples", "test_examples"}
    if _are_same(*tables):
        keys.remove("labels")
    return sorted(key for key in keys if one[key] != other[key])


def _folder(data):
    return os.path.realpath(os.path.expanduser(data["dir"] or prepare.default_data_dir()))


def _table(data):
    path = os.path.expanduser(data["labels"])
    return os.path.realpath(path if os.path.isfile(path) else os.path.join(_folder(data), path))


def _are_same(path, other):
    try:
        return path == other or filecmp.cmp(path, other, shallow=False)
    except OSError:  # one is not there any more; a run has recorded its checksum
        return True


def describe_sizes(source: Source, config) -> Iterator[str]:
    """Describe sizes of held-out splits that have no effect, because the dataset has the split."""
    for split, name in _split_names(source, config).items():
        key = f"{split}_size"
        if name and split != "train" and config[key] != SCHEMA[f"data.{key}"].default:
            yield (
                f"data.{key}={config[key]:g} has no effect, because the dataset has the split "
                f"{name}: data.{split}_split=hold_out holds out another"
            )


def describe_folds(source: Source, config, count: int) -> str:
    """Describe which images the folds divide, `count` in all, and which are in none of them."""
    names = _split_names(source, config)
    others = [
        f"the split {names[split]}" if names[split] else f"those of data.{split}_size"
        for split in ("val", "test")
    ]
    return f"the folds divide {count:,} training images; {' and '.join(others)} are in none of them"


def all_splits(source: Source, config) -> list[Examples]:
    """Open all splits of `config.data`, with nothing held out or subsampled."""
    opened = open_splits(source, config)
    changed = relabel.changed_labels(config, source.class_names, opened)
    return [examples.relabel(changed) for examples in opened.values()]


def open_splits(source: Source, config) -> dict[str, Examples]:
    """Open the splits that the dataset has itself, with distinct names and the original labels.

    Returns {"train", "val" or "test": its examples}.
    """
    names = _split_names(source, config)
    return {
        split: _with_prefix(source.examples(name), name)
        for split, name in names.items()
        if name or split == "train"
    }


def _with_prefix(examples, split):
    """Put the name of the split before the names of its examples."""
    if not split:
        return examples
    read = examples.read_names
    names = {"read_names": lambda indices: [f"{split}/{name}" for name in read(indices)]}
    return dataclasses.replace(examples, **names)


def _split_names(source, config):
    """Map train, val and test to splits of the source; "" if held out or unsplit."""
    has = source.split_names
    names = {"train": source.train_split if has else ""}
    for key, usual in (("train", "train"), ("val", "auto"), ("test", "auto")):
        name = config[f"{key}_split"]
        unsplit = ("train",) if key == "train" else ("auto", "hold_out")
        if name not in unsplit and not has:
            raise UserError(
                f"data.{key}_split={name!r}, but {config.name} has no predefined splits: use "
                f"{usual}"
            )
        if key != "train":
            found = find_split(key, has) if len(has) > 1 else ""
            names[key] = {"auto": found, "hold_out": ""}.get(name, name)
    for one, other in itertools.combinations([split for split in names if names[split]], 2):
        if source.overlap(names[one], names[other]):
            raise UserError(
                f"data.{one}_split={names[one]!r} and data.{other}_split={names[other]!r} share "
                "examples"
            )
    return names


def _hold_out(train, key, config, stream):
    size = config[key]
    count = round(size * len(train)) if size < 1 else int(size)
    if not 0 < count < len(train):
        raise UserError(
            f"data.{key}={size:g} asks for {count} of {len(train)} training examples: set it to "
            f"a number of images from 1 to {len(train) - 1}"
            if len(train) > 1
            else f"data.{key}: {len(train)} training example(s) cannot be split: add images"
        )
    chosen, rest = stratified(train.labels, count, (config.split_seed, stream))
    return train.take(chosen), train.take(rest)
