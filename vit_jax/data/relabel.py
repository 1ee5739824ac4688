"""Corrected labels: a CSV file whose column `label` replaces labels of a dataset (`data.relabel`).

Each row names an example, its class in the dataset (`given`), its class from now on (`label`) and
the dataset. Further columns are for the reader alone; rows with label = given change nothing.
"""

import dataclasses
import hashlib
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.data.csv_table import read_table
from vit_jax.data.examples import Examples
from vit_jax.runtime.errors import UserError, join_names, suggest, truncate_repr
from vit_jax.runtime.files import expand

COLUMNS = ("example", "label", "given", "dataset")


@dataclasses.dataclass(frozen=True)
class Corrections:
    """The contents of a file of corrected labels.

    Attributes:
      path: of the file.
      dataset: `key_of` the dataset that it was written for; "" without rows.
      given: {example: class in the dataset} of all its rows.
      changed: {example: (class in the dataset, corrected class)} of those that are corrected.
    """

    path: pathlib.Path
    dataset: str
    given: dict[str, str]
    changed: dict[str, tuple[str, str]]

    @property
    def identity(self) -> dict[str, int]:
        """The number of corrected labels and their checksum, for the fingerprint of a run."""
        rows = [self.dataset, *sorted(self.changed.items())] if self.changed else []
        return {"changed": len(self.changed), "checksum": zlib.crc32(repr(rows).encode())}


def read(path: str | os.PathLike) -> Corrections:
    """Read a file of corrected labels; raises UserError if it is not one."""
    path = expand(path)
    names, rows = read_table(path, "data.relabel")
    if missing := [name for name in COLUMNS if name not in names]:
        raise UserError(
            f"data.relabel={path} lacks columns ({join_names(missing)}): it needs "
            f"{', '.join(COLUMNS)}, which `vit-jax suspects` writes"
        )
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise UserError(f"data.relabel={path} has several columns {twice[0]!r}: keep one")
    labels, classes, changed, datasets = {}, {}, {}, {}
    columns = [names.index(name) for name in COLUMNS]
    for _, cells in rows:
        example, label, given, dataset = (cells[column] for column in columns)
        label = label if label == given else label.strip()
        classes[example] = given
        if labels.setdefault(example, label) != label:
            raise UserError(f"data.relabel={path} gives two labels to {truncate_repr(example)}")
        datasets.setdefault(dataset, example)
        if label != given:
            changed[example] = (given, label)
    if len(datasets) > 1:
        raise UserError(
            f"data.relabel={path} has rows of different datasets ({join_names(list(datasets))}): "
            "keep the rows of one"
        )
    return Corrections(path, next(iter(datasets), ""), classes, changed)


def key_of(class_names: Sequence[str], splits: Mapping[str, Examples]) -> str:
    """Hash a dataset's classes, and its examples' names, labels and file sizes, to 16 digits.

    `splits` are those that the dataset has itself, with the labels before any correction.
    """
    parts: Any = hashlib.sha256(repr(list(class_names)).encode())
    for split in splits.values():
        numbers = [split.labels.tolist(), None if split.sizes is None else split.sizes.tolist()]
        parts.update(repr([split.names, *numbers]).encode())
    return parts.hexdigest()[:16]


def changed_labels(config, class_names: Sequence[str], splits: Mapping[str, Examples]) -> dict:
    """Map the names of examples that `config.data.relabel` corrects to their new labels.

    Raises UserError if the file was written for another dataset, or names unknown examples or
    classes.
    """
    if not config.relabel:
        return {}
    found = read(config.relabel)
    key = key_of(class_names, splits)
    if found.given and found.dataset != key:
        raise UserError(
            f"data.relabel={found.path} was written for another dataset ({found.dataset}) than "
            f"the present one ({key}): its classes, examples, labels or splits differ; write it "
            "again with `vit-jax suspects`"
        )
    labels = {}
    for split in splits.values():
        labels |= zip(split.names, split.labels.tolist(), strict=True)
    if unknown := [name for name in found.given if name not in labels]:
        raise UserError(
            f"data.relabel={found.path} names {len(unknown)} examples that the dataset does not "
            f"have, such as {truncate_repr(unknown[0])}"
        )
    numbers = {name: i for i, name in enumerate(class_names)}
    for example, given in found.given.items():
        if numbers.get(given) != labels[example]:
            raise UserError(
                f"data.relabel={found.path}: the column `given` of {example} is "
                f"{truncate_repr(given)}, but the class in the dataset is "
                f"{class_names[labels[example]]}: restore it"
            )
    for example, (_, label) in found.changed.items():
        if label not in numbers:
            hint = suggest(label, class_names, f"use one of {join_names(list(class_names))}")
            raise UserError(
                f"data.relabel={found.path} gives {example} the unknown class "
                f"{truncate_repr(label)}; {hint}"
            )
    return {example: numbers[label] for example, (_, label) in found.changed.items()}
