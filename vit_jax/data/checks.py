"""Checks of a dataset that find no error but cost accuracy, or make it look too high."""

import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vit_jax.data.examples import Examples, spread
from vit_jax.runtime.errors import UserError, join_names, single_line

MOST_COMPARED = 2000  # validation or test files that are compared with the training files


def describe_names(class_names: Sequence[str]) -> Iterator[str]:
    """Describe classes whose names differ only in case or in the Unicode form of a letter."""
    alike = defaultdict(list)
    for name in class_names:
        alike[unicodedata.normalize("NFC", name).casefold()].append(name)
    for names in alike.values():
        if len(names) > 1:
            shown = ", ".join(f"{name} ({ascii(name)})" for name in names)
            yield f"the names of separate classes differ in case or Unicode form only: {shown}"


def match_names(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Find the index of each name among known ones; None for unknown names.

    A name that is not known as written has the index of the known one that no other name has and
    that differs from it in the Unicode form of its letters only.
    """

    def normal(name):
        return unicodedata.normalize("NFC", name)

    left = [name for name in known if name not in names]
    found = []
    for name in names:
        alike = [name] if name in known else [k for k in left if normal(k) == normal(name)]
        found.append(known.index(alike[0]) if len(alike) == 1 else None)
    return found


def count_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the examples of each class, of labels int [n], or of several per image [n, classes]."""
    return labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)


def present(labels: np.ndarray) -> np.ndarray:
    """List the classes that have examples, of labels as in `count_labels`."""
    return np.flatnonzero(labels.any(0)) if labels.ndim == 2 else np.unique(labels)


def match_classes(names: Sequence[str], own: Sequence[str], model: object) -> np.ndarray:
    """Find the index of each class of a dataset among a model's; raises UserError.

    Args:
      names: classes of the dataset.
      own: classes of the model, in the order of its head.
      model: its path, for messages.
    """
    found = match_names(names, own)
    if unknown := [name for name, i in zip(names, found, strict=True) if i is None]:
        raise UserError(
            f"the dataset has {len(names)} classes, of which {model}, with {len(own)}, does not "
            f"have {join_names(unknown)}"
        )
    if missing := [name for i, name in enumerate(own) if i not in found]:
        print(single_line(f"note: the dataset does not have the classes {join_names(missing)}"))
    return np.array(found)


def describe_missing(class_names: Sequence[str], labels: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Describe the classes without an example in a split; `labels` are those of each split."""
    for split, found in labels.items():
        counts = count_labels(found, len(class_names))
        if missing := [class_names[i] for i in np.flatnonzero(counts == 0).tolist()]:
            what = f"class {missing[0]} has"
            if len(missing) > 1:
                what = f"{len(missing)} classes ({join_names(missing)}) have"
            hint = f"add some, or raise data.{split}_size if this split is held out"
            yield f"{what} 0 {split} images: {hint if split != 'train' else 'add some'}"


def describe_duplicates(
    digests: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """Describe identical images in two splits, or with two labels.

    Args:
      digests: digests of images of each split; a sample of them makes the counts lower bounds.
      labels: labels of the same images.
    """
    pairs = (("test", "train"), ("val", "train"), ("test", "val")) if digests else ()
    for one, other in pairs:
        if count := int(np.isin(digests[one], digests[other]).sum()):
            yield (
                f"{count} of {len(digests[one])} {one} images are identical to {other} images: "
                "the accuracy is too high; remove the copies"
            )
    every = np.concatenate([np.empty(0, np.int64), *digests.values()])
    found = [labels[split] for split in digests]
    several = any(one.ndim == 2 for one in found)
    found = [digest(one) for one in found] if several else found
    numbers = np.concatenate([np.empty(0, np.int32), *found])
    distinct = np.unique(np.stack([every, numbers]), axis=1)[0]
    if count := int((np.unique(distinct, return_counts=True)[1] > 1).sum()):
        what = "with different labels" if several else "in several classes"
        yield f"images that occur {what}: {count}; remove the wrong copies"


def digest(images: np.ndarray) -> np.ndarray:
    """Hash each of the images uint8 [n, ...] to int64 [n], within this process."""
    return np.array([hash(image.tobytes()) for image in images], np.int64)


def digest_files(splits: Mapping[str, Examples], num_threads: int) -> tuple[dict, dict]:
    """Hash the files of splits that are too large to decode, by split, and list their labels.

    Up to `MOST_COMPARED` validation and test files each are compared with up to twice as many
    training files of the same sizes. A file whose size no other has is not read: its digest is
    unique. Empty if the examples are not files.
    """
    sizes: Any = {name: split.sizes for name, split in splits.items()}
    digests, labels, wanted = {}, {}, {}
    if any(found is None for found in sizes.values()):
        return digests, labels
    for name in ("val", "test"):
        wanted[name] = np.unique(spread(len(sizes[name]), MOST_COMPARED))
    alike = np.concatenate([sizes[name][rows] for name, rows in wanted.items()])
    rows = np.flatnonzero(np.isin(sizes["train"], alike))
    wanted["train"] = rows[np.unique(spread(len(rows), 2 * MOST_COMPARED))] if len(rows) else rows
    compared = np.concatenate([sizes[name][rows] for name, rows in wanted.items()])
    values, counts = np.unique(compared, return_counts=True)
    unique = itertools.count()
    with ThreadPoolExecutor(num_threads) as pool:
        for name, rows in wanted.items():
            read = splits[name].read_encoded
            digests[name] = np.fromiter((next(unique) for _ in rows), np.int64, len(rows))
            twice = np.flatnonzero(np.isin(sizes[name][rows], values[counts > 1]))
            found = pool.map(lambda i, read=read: hash(read([i])[0]), rows[twice].tolist())
            digests[name][twice] = list(found)
            labels[name] = splits[name].labels[rows]
    return digests, labels
