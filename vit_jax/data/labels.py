"""Columns, classes and splits of labelled images, whatever the form of the labels."""

import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

from vit_jax.data.folders import find_split
from vit_jax.runtime.errors import UserError, join_names

# The usual names of columns, in lower case without spaces and punctuation, those preferred first.
COLUMNS = {
    "image": (
        *("filepaths", "filepath", "filenames", "filename", "files", "file", "paths", "path"),
        *("images", "image", "imagepath", "imagename", "imageid", "img", "imgpath", "fname", "id"),
    ),
    "label": (
        *("labels", "label", "classes", "class", "classname", "category", "target", "y"),
        *("species", "breed", "diagnosis", "classid", "labelid"),
    ),
    "split": ("split", "splits", "dataset", "subset", "partition", "set"),
}


def table_identity(path: pathlib.Path) -> dict[str, int]:
    """The checksum of a table of labels, for the fingerprint of a run."""
    return {"checksum": zlib.crc32(path.read_bytes())}


def table_path(data_config) -> pathlib.Path:
    """Find the table `data.labels` of `config.data`; raises UserError if it is not a file."""
    root = pathlib.Path(os.path.expanduser(data_config.dir))
    path = pathlib.Path(os.path.expanduser(data_config.labels))
    found = next((p for p in (path, root / path) if os.path.isfile(p)), None)
    if found is None:
        raise UserError(f"data.labels={data_config.labels} is not a file, nor one in {root}")
    return found


def class_of(value: object) -> str:
    """Name the class of a label as stored: text, a number or a boolean; "" if it is missing."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return "" if value is None else str(value).strip()


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sort distinct class names: integers by value, other names by code point."""
    distinct = set(names)
    if all(re.fullmatch(r"-?\d{1,18}", name, re.ASCII) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def find_column(kind: str, names: Sequence[str], config, where: str) -> str:
    """Find the column of images, labels or splits, as set or by its usual name; "" if none is.

    Args:
      kind: "image", "label" or "split".
      names: names of all columns.
      config: the settings `config.data`, whose `<kind>_column` names the column.
      where: the table, for the message.

    Raises:
      UserError: the column that is set does not exist.
    """
    if given := config[f"{kind}_column"]:
        if given not in names:
            listed = ", ".join(names)
            raise UserError(
                f"data.{kind}_column={given} is not a column of {where}: its columns are {listed}"
            )
        return given
    normal = {re.sub(r"[\W_]", "", name.lower()): name for name in reversed(names)}
    return next((normal[usual] for usual in COLUMNS[kind] if usual in normal), "")


def choose_splits(
    names: Sequence[str], config, where: str, min_classes: int
) -> tuple[list[str], str]:
    """Choose the splits and the training split; [] and "" if all examples are in one split.

    For an evaluation (`min_classes` is 1), a single test or validation split keeps its name.

    Raises:
      UserError: none of the splits, or not the one that is set, has the training examples.
    """
    given, listed = config.train_split, ", ".join(names)
    if given != "train":
        if given not in names:
            raise UserError(f"data.train_split={given} is not a split of {where}: it has {listed}")
        return list(names), given
    if len(names) < 2:
        is_named = min_classes == 1 and any(find_split(one, names) for one in ("test", "val"))
        return (list(names), names[0]) if is_named else ([], "")
    if not (train := find_split("train", names)):
        raise UserError(
            f"{where} has the splits {listed}, none of them train: set "
            "data.train_split to the one with the training images"
        )
    return list(names), train


def describe_unused(names: Sequence[str], train: str, config, where: str) -> Iterator[str]:
    """Describe the splits that are neither training, validation nor test split."""
    used = {train}
    for split in ("val", "test"):
        given = config[f"{split}_split"]
        used.add(find_split(split, names) if given == "auto" else given)
    if unused := [name for name in names if name not in used]:
        yield (
            f"{where}: the images of {join_names(unused)} are not used: data.train_split, "
            "data.val_split and data.test_split name the splits in use"
        )
