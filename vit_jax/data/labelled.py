"""Image folders whose labels are in a CSV or TSV file, or in the names of the files."""

import dataclasses
import functools
import itertools
import os
import pathlib
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from vit_jax.config.rules_data import parse_pattern
from vit_jax.data.csv_table import read_table
from vit_jax.data.folders import SPLIT_NAMES, Folder, find_split, has_class_folders, list_images
from vit_jax.data.images import IMAGE_SUFFIXES
from vit_jax.data.label_sets import (
    describe_mixed,
    indicator_columns,
    marked,
    number_sets,
    split_cell,
)
from vit_jax.data.labels import (
    choose_splits,
    class_of,
    describe_unused,
    find_column,
    sort_classes,
    table_path,
)
from vit_jax.runtime.errors import UserError, join_names, single_line, truncate_repr
from vit_jax.runtime.files import warn

NO_COLUMN = "none"  # as data.split_column


@dataclasses.dataclass(frozen=True)
class Row:
    """A labelled image: where it is named (as "line 3 of labels.csv"), its file, class and split.

    The split is "" where none is given. With several labels per image, `labels` are all of them,
    and `label` describes them.
    """

    where: str
    file: pathlib.Path
    label: str
    split: str
    labels: tuple[str, ...] = ()


def _is_image_name(cell):
    return cell.lower().endswith(IMAGE_SUFFIXES)


def _find_columns(names, rows, config, path):
    """Find the columns of file names, labels and splits; the last is "" if there is none.

    The columns of labels are one, or with several labels per image, one of 0 and 1 for each class.
    """
    where = f"data.labels={path}"
    split = ""
    if config.split_column != NO_COLUMN:
        split = find_column("split", names, config, where)
    image = find_column("image", names, config, where)
    if not image:
        like = [n for n, cell in zip(names, rows[0][1], strict=True) if _is_image_name(cell)]
        image = like[0] if len(like) == 1 else ""
    several = []
    if config.multi_label and not config.label_column:
        several = indicator_columns(names, [cells for _, cells in rows], (image, split))
        usual = find_column("label", names, config, where)
        if several[1:] and usual and usual not in several:
            raise UserError(
                f"{where} has labels in column {usual}, and columns of 0 and 1 "
                f"({join_names(several)}): set data.label_column={usual}, or remove the other kind"
            )
    label = several[0] if several[1:] else find_column("label", names, config, where)
    if not label:
        others = [name for name in names if name not in (image, split)]
        label = others[0] if image and len(others) == 1 else ""
    for kind, found, what in (("image", image, "file names"), ("label", label, "labels")):
        if not found:
            hint = "; for a column per class, set data.multi_label=True" * (kind == "label")
            raise UserError(
                f"{where} has no column that is known to hold {what}: set data.{kind}_column to "
                f"one of {', '.join(names)}{hint}"
            )
    if len({image, label, split}) < 3:
        raise UserError(f"{where}: column {image if image == label else split} is used twice")
    labels = several if several[1:] else [label]
    if several[1:]:
        for text in describe_mixed(names, rows, (image, split, *labels)):
            warn(f"{where}: {text}")
    shown = f"file names in column {image}, labels in {join_names(labels)}"
    print(single_line(f"{path}: {shown}{f', splits in {split}' if split else ''}"), flush=True)
    return image, labels, split


class _Index:
    """The images below a folder, by their path relative to it, with and without suffix."""

    def __init__(self, root):
        self.root, self.paths = root, {}
        self._stems = defaultdict(list)
        for path in list_images(root)[0]:
            name = path.relative_to(root).as_posix()
            self.paths[name] = path
            self._stems[name.removesuffix(path.suffix)].append(path)
        tops = {name.partition("/")[0] for name in self.paths if "/" in name}
        # In which a table may leave out the folder.
        self.splits = [name for split in SPLIT_NAMES if (name := find_split(split, tops))]

    def find(self, name: str, split: str, start: pathlib.Path) -> list[pathlib.Path]:
        """Find the images that a table may mean by a name; `start` is the folder of the table."""
        for text in (name, name.replace("\\", "/")):
            if found := self._below(text):
                return found
            if inside := self._below(f"{split}/{text}") if split else []:
                return inside
            folders = self.splits if not split else ()
            if inside := [path for one in folders for path in self._below(f"{one}/{text}")]:
                return [*dict.fromkeys(inside)]
            for path in (self.root / text, start / text):
                if os.path.isfile(path):
                    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(self.root))
                    return (
                        self._below(inside) or self._by_real_path[os.path.realpath(path)] or [path]
                    )
        return []

    @functools.cached_property
    def _by_real_path(self):
        """The images by their real path: a table may name them through other links."""
        images = defaultdict(list)
        for path in self.paths.values():
            images[os.path.realpath(path)].append(path)
        return images

    def _below(self, text):
        relative = posixpath.normpath(text)
        if relative in self.paths:
            return [self.paths[relative]]
        return self._stems.get(relative, [])


def _read_rows(config, index):
    """Read the rows of `data.labels`; raises UserError for the first that is invalid."""
    path = table_path(config)
    names, lines = read_table(
        path, "data.labels", lambda first: not any(map(_is_image_name, first))
    )
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"data.labels={path} has several columns {truncate_repr(twice[0])}")
    if not lines:
        raise UserError(f"data.labels={path} has no line below the names of its columns")
    lines = [(line, [cell.strip() for cell in cells]) for line, cells in lines]
    image, labels, split = _find_columns(names, lines, config, path)
    columns = [names.index(name) if name else None for name in (image, labels[0], split)]
    marks = [names.index(name) for name in labels]
    rows = []
    for line, cells in lines:
        file, value, part = ("" if i is None else cells[i] for i in columns)
        where, label_name, found = f"line {line} of data.labels={path}", class_of(value), ()
        if config.multi_label:
            found = split_cell(value, config.label_separator)
            if labels[1:]:
                found = marked(labels, [cells[i] for i in marks])
            label_name = ", ".join(found) or "no class"
        for kind, cell, name in (
            ("file name", file, image),
            ("label", label_name, labels[0]),
            ("split", part or not split, split),
        ):
            if not cell:
                raise UserError(f"{where} has no {kind} in column {name}: add it")
        files = index.find(file, part, path.parent)
        if len(files) != 1:
            several = f"is any of {join_names(list(map(str, files)))}: give the folder and suffix"
            none = f"is not in {index.root}: data.dir is the folder that file names start from"
            text = several if files else none
            raise UserError(f"{where} names the file {truncate_repr(file)}, which {text}")
        rows.append(Row(where, files[0], label_name, part, found))
    if config.multi_label and not labels[1:]:
        _check_separator(rows, config, path)
    return rows


def _check_separator(rows, config, path):
    """Warn if the labels still contain what usually separates them.

    Raises UserError if moreover no image has several labels and few words make up many labels:
    each combination would be a class.
    """
    names = {name for row in rows for name in row.labels}
    single = all(len(row.labels) < 2 for row in rows)
    for separator in ";,| ":
        if separator == config.label_separator or not any(separator in name for name in names):
            continue
        if single and len({word for name in names for word in name.split(separator)}) < len(names):
            raise UserError(
                f"data.labels={path}: no image has several labels, but {len(names)} labels are "
                f"combinations separated by {separator!r}: set data.label_separator={separator!r}"
            )
        if separator != " ":
            warn(
                f"data.labels={path}: labels contain {separator!r}: if it separates them, set "
                f"data.label_separator={separator!r}"
            )


def _match_names(config, index):
    """Make a row of each image, whose label and split are in its name; raises UserError."""
    pattern = parse_pattern(config.label_pattern)
    groups, rows, unmatched = pattern.groupindex, [], []
    others = [number for number in range(1, pattern.groups + 1) if number != groups.get("split")]
    label_group = groups.get("label") or others[0]
    whole = "/" in config.label_pattern
    for name, path in index.paths.items():
        match = pattern.search(name if whole else path.name)
        label = class_of(match[label_group]) if match else ""
        split = (match["split"] or "" if "split" in groups else "") if match else ""
        if not label or ("split" in groups and not split):
            unmatched.append(name)
        rows.append(Row(str(path), path, label, split))
    if unmatched:
        raise UserError(
            f"data.label_pattern={truncate_repr(config.label_pattern)} finds no label in the names "
            f"of {len(unmatched)} of {len(rows)} images: {join_names(unmatched)}"
        )
    if not rows:
        raise UserError(f"data.dir={config.dir} contains no images")
    return rows


def _check_rows(rows):
    """Raise UserError for a file that is named twice, or a class whose name cannot be printed."""
    seen = {}
    for row in rows:
        if single_line(row.label) != row.label:
            raise UserError(
                f"{row.where} has a label with a control character: {truncate_repr(row.label)}"
            )
        first = seen.setdefault(row.file, row)
        if first is row:
            continue
        what = "twice: remove one of the lines"
        if first.split != row.split:
            what = f"in two splits, {first.split} and {row.split}"
        if first.label != row.label:
            what = f"with two labels, {first.label} and {row.label}: remove the wrong one"
        raise UserError(f"{first.where} and {row.where} name {row.file} {what}")


def _split_by_folder(rows, index):
    """Take the folders of the images for splits, if they are named so and no splits are given."""
    if not index.splits or any(row.split for row in rows):
        return rows
    tops = [_top(row, index) for row in rows]
    inside = [row for row, top in zip(rows, tops, strict=True) if top in index.splits]
    outside = [row for row, top in zip(rows, tops, strict=True) if top not in index.splits]
    if inside and outside and len(index.splits) > 1:  # a single one may be a class, such as train
        one, other = inside[0], outside[0]
        raise UserError(
            f"{one.where} names {one.file}, in the folder of a split, but {other.where} names "
            f"{other.file}, in none: move the images, or give a column of splits"
        )
    if outside:
        return rows
    return [dataclasses.replace(row, split=top) for row, top in zip(rows, tops, strict=True)]


def _top(row, index):
    below = row.file.is_relative_to(index.root)
    return row.file.relative_to(index.root).parts[0] if below else ""


class Labelled(Folder):
    """Image files with labels, and perhaps splits, in a table or in their names."""

    def __init__(self, config, index, rows: list[Row], min_classes: int = 2):
        """Find the splits and the classes; raises UserError if rows contradict each other."""
        self._config, self._root, self._lists = config, index.root, {}
        source = "labels" if config.labels else "label_pattern"
        self._where = f"data.{source}={config[source]}"
        self._rows = defaultdict(list)
        for row in rows:
            self._rows[row.split].append(row)
        names = sorted(self._rows)
        self._check_splits(names)
        found = choose_splits(names, config, self._where, min_classes)
        self.split_names, self.train_split = found
        if not self.split_names:
            self._rows = {"": rows}
        train = self._rows[self.train_split]
        named = (row.labels if config.multi_label else (row.label,) for row in train)
        self.class_names = sort_classes(itertools.chain.from_iterable(named))
        if len(self.class_names) < min_classes:
            raise UserError(
                f"{self._where} has a single class of training images, "
                f"{''.join(self.class_names) or 'none'}: give at least two"
            )
        self.warnings = []
        if self.split_names:
            found = describe_unused(self.split_names, self.train_split, config, self._where)
            self.warnings += found
        self.warnings += describe_unnamed(index.paths.values(), rows, self._where)

    def _check_splits(self, names):
        config = self._config
        known = {find_split(split, names) for split in SPLIT_NAMES} | {""}
        known |= {config[f"{split}_split"] for split in SPLIT_NAMES}
        if unknown := [name for name in names if name not in known]:
            row = self._rows[unknown[0]][0]
            raise UserError(
                f"{row.where} has the split {truncate_repr(row.split)}, which is not known: use "
                "train, validation or test, name it in data.train_split, data.val_split or "
                "data.test_split, or set data.split_column=none to ignore the column"
            )

    def _find(self, split):
        if split not in self._rows:
            listed = ", ".join(self.split_names) or "no splits"
            raise UserError(f"{self._where} has no split {truncate_repr(split)}: it has {listed}")
        if self._config.multi_label:
            rows = self._rows[split]
            sets, places = [row.labels for row in rows], [row.where for row in rows]
            return [row.file for row in rows], number_sets(sets, self.class_names, places)
        return number_labels(self._rows[split], self.class_names)

    def overlap(self, one: str, other: str) -> bool:
        """Whether two splits share images."""
        return one == other


class LabelledSplits(Folder):
    """Class folders of training images, next to splits whose labels are in a table."""

    def __init__(self, config, index, rows: list[Row], min_classes: int = 2):
        """Find the splits and the classes; raises UserError if the layout is invalid."""
        super().__init__(config, min_classes)
        self._rows = defaultdict(list)
        for row in rows:
            self._rows[row.split].append(row)
        images = (path for name, path in index.paths.items() if name.split("/")[0] in self._rows)
        where = f"data.labels={config.labels}"
        self.warnings = [*self.warnings, *describe_unnamed(images, rows, where)]

    def _find(self, split):
        if split not in self._rows:
            return super()._find(split)
        return number_labels(self._rows[split], self.class_names)


def describe_unnamed(images: Iterable[pathlib.Path], rows: list[Row], where: str) -> Iterator[str]:
    """Describe the images that no row names; `where` is what the rows are from."""
    named = {row.file for row in rows}
    if left := [path for path in images if path not in named]:
        yield f"{where} does not name {len(left)} images, such as {left[0]}, which are not used"


def number_labels(rows: list[Row], class_names: list[str]) -> tuple[list, np.ndarray]:
    """List the files of rows and their int32 labels; raises UserError for an unknown class."""
    numbers = {name: number for number, name in enumerate(class_names)}
    for row in rows:
        if row.label not in numbers:
            raise UserError(
                f"{row.where} has the class {truncate_repr(row.label)}, which no training image "
                f"has: the classes are {join_names(class_names)}"
            )
    return [row.file for row in rows], np.array([numbers[row.label] for row in rows], np.int32)


def open_labelled(config, min_classes: int = 2) -> Folder:
    """Open the image folder of `config.data` with the labels of a table or of a pattern.

    Raises:
      UserError: the folder or the table is missing or invalid.
    """
    root = pathlib.Path(os.path.expanduser(config.dir))
    if not os.path.isdir(root):
        raise UserError(f"data.dir={config.dir} is not a folder")
    index = _Index(root)
    rows = _read_rows(config, index) if config.labels else _match_names(config, index)
    _check_rows(rows)
    rows = _split_by_folder(rows, index)
    splits = {row.split for row in rows}
    train = config.train_split
    train = find_split("train", index.splits) if train == "train" else train
    if train and "" not in splits and train not in splits:
        if has_class_folders(root / train) and not config.multi_label:
            return LabelledSplits(config, index, rows, min_classes)
    return Labelled(config, index, rows, min_classes)
