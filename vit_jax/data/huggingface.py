"""Hugging Face datasets in Arrow and Parquet files."""

import contextlib
import functools
import io
import os
from typing import Any

import numpy as np

from vit_jax.data import arrow, decoded
from vit_jax.data.examples import MOST_SAMPLED, Examples, as_label, spread
from vit_jax.data.folders import hold_out_hint
from vit_jax.data.hub import locate
from vit_jax.data.images import (
    decide_levels,
    identity_of,
    options_of,
    read_image,
    sample_levels,
)
from vit_jax.data.label_sets import number_sets
from vit_jax.data.labels import choose_splits, class_of, describe_unused, find_column, sort_classes
from vit_jax.data.readable import find_readable
from vit_jax.runtime.errors import UserError, join_names, single_line, truncate_repr

MOST_CLASSES = 10_000  # of labels without class names


class HuggingFace:
    """A Hugging Face dataset, `data.name=hf:NAME_OR_FOLDER`, read by row."""

    def __init__(self, config, min_classes: int = 2):
        """Find the files, splits and columns; raises UserError if they are missing or invalid."""
        self._config, self._where = config, f"data.name={config.name}"
        self._tables = {}  # {split: its columns of images and labels}
        self._images = {}  # {split: result of `_columns`}
        arrow.require("pyarrow")
        self._files = locate(config)
        names = sorted(self._files)
        found = choose_splits(names, config, self._where, min_classes)
        self.split_names, self.train_split = found
        if not self.split_names:
            self._files = {"": self._files[names[0]]}
        first = self._files[self.train_split][0]
        schema = arrow.read_schema(first)
        features = arrow.read_features(schema, first)
        self._image = self._find_images(schema, features)
        self._label = self._find_labels(schema, features)
        self._names = self._names_in(features)
        self.warnings = []
        if self.split_names:
            found = describe_unused(self.split_names, self.train_split, config, self._where)
            self.warnings += found
        if len(self.class_names) < min_classes:
            listed = ", ".join(self.class_names) or "none"
            raise UserError(
                f"{self._where} has fewer than two classes ({listed}) in its column {self._label}"
            )

    def __getstate__(self):
        # Worker processes open the files again: the tables would be copied.
        return self.__dict__ | {"_tables": {}, "_images": {}}

    def _names_in(self, features):
        """List the names of the classes that the label column of a file has; [] for none."""
        known = features.get(self._label, {})
        if self._config.multi_label:
            known = known.get("feature", known)
        named = known.get("names") if known.get("_type") == "ClassLabel" else None
        return [str(name) for name in named or ()]

    def _find_images(self, schema, features):
        """Find the column of encoded images; raises UserError."""
        fit = [field.name for field in schema if _holds_images(field.type)]
        return self._choose("image", schema, fit, features, "Image", "encoded images")

    def _find_labels(self, schema, features):
        """Find the column of one label, or several, per image; raises UserError."""
        if self._config.multi_label:
            fit = [field.name for field in schema if _holds_label_lists(field.type)]
            what = "a list of labels per image"
            return self._choose("label", schema, fit, features, "Sequence", what)
        fit = [field.name for field in schema if _holds_labels(field.type)]
        return self._choose("label", schema, fit, features, "ClassLabel", "one label per image")

    def _choose(self, kind, schema, fit, features, feature, what):
        """Choose the column that is set, else the only one of a feature, else by its usual name."""
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        if self._config[f"{kind}_column"]:
            given = find_column(kind, schema.names, self._config, self._where)
            if given in fit:
                return given
            raise UserError(
                f"data.{kind}_column={given} of {self._where} does not hold {what}: the columns "
                f"are {listed}"
            )
        fit = [name for name in fit if features.get(name, {}).get("_type") == feature] or fit
        if len(fit) == 1:
            return fit[0]
        if found := find_column(kind, fit, self._config, self._where):
            return found
        problem = f"several columns may hold {what} ({', '.join(fit)}): set data.{kind}_column"
        if not fit:
            problem = f"no column holds {what}"
            if kind == "label" and any(_holds_label_lists(field.type) for field in schema):
                problem += " (for several labels per image, set data.multi_label=True)"
        raise UserError(f"{self._where}: {problem}; the columns are {listed}")

    def _table(self, split):
        """Open the columns of images and labels of a split, once; raises UserError."""
        if split not in self._tables:
            self._tables[split] = self._open(split)
        return self._tables[split]

    def _open(self, split):
        if split not in self._files:
            listed = ", ".join(self.split_names) or "no splits"
            raise UserError(f"{self._where} has no split {truncate_repr(split)}: it has {listed}")
        for file in self._files[split]:
            names = self._names_in(arrow.read_features(arrow.read_schema(file), file))
            if names and self._names and names != self._names:
                raise UserError(
                    f"the class names of {file} ({join_names(names)}) differ from those of the "
                    f"training split ({join_names(self._names)}): save all with one ClassLabel"
                )
        table = arrow.open_table(self._files[split], [self._image, self._label])
        kind = table.schema.field(self._label).type
        if arrow.require("pyarrow.types").is_dictionary(kind):
            index = table.schema.get_field_index(self._label)
            table = table.set_column(index, self._label, table[index].cast(kind.value_type))
        if not len(table):
            hint = hold_out_hint(self._config, split, self.train_split)
            raise UserError(f"split {split!r} of {self._where} is empty: {hint}")
        return table

    @functools.cached_property
    def class_names(self) -> list[str]:
        """The names of the classes, or else the distinct labels of the training examples."""
        if self._names:
            return list(map(single_line, self._names))
        column = self._table(self.train_split)[self._label]
        if self._config.multi_label:
            column = arrow.require("pyarrow.compute").list_flatten(column)
        values = column.unique().to_pylist()
        if len(values) > MOST_CLASSES:
            raise UserError(
                f"column {self._label} of {self._where} has {len(values):,} distinct values, more "
                f"than {MOST_CLASSES:,}: these are no classes"
            )
        return list(map(single_line, sort_classes(filter(None, map(class_of, values)))))

    def _labels(self, split):
        """Number the labels of a split, int32 [n]; of several, uint8 [n, classes]; UserError."""
        column = self._table(split)[self._label]
        if self._config.multi_label:
            return self._label_sets(split, column.to_pylist())
        distinct = column.unique()
        values = distinct.to_pylist()
        numbers = {name: number for number, name in enumerate(self.class_names)}
        if self._names and not isinstance(values[0], str | bytes):
            numbers = {str(number): number for number in range(len(self._names))}
        names = [single_line(class_of(value)) for value in values]
        for name, value in zip(names, values, strict=True):
            if name in numbers:
                continue
            if not name or value == -1:
                hint = "remove these rows"
                if split:
                    hint = hold_out_hint(self._config, split, self.train_split)
                raise UserError(
                    f"{self._in(split)} has rows without a label in column {self._label}: {hint}"
                )
            raise UserError(
                f"{self._in(split)} has the label {truncate_repr(value)}, which is not one of the "
                f"{len(numbers)} classes of the training examples ({join_names(self.class_names)})"
            )
        compute = arrow.require("pyarrow.compute")
        rows = compute.index_in(column, value_set=distinct).to_numpy()
        return np.array([numbers[name] for name in names], np.int32)[rows]

    def _label_sets(self, split, rows):
        """Mark the classes of each row, uint8 [n, classes]; raises UserError."""

        def name(value):
            is_number = self._names and isinstance(value, int) and 0 <= value < len(self._names)
            return self.class_names[value] if is_number else single_line(class_of(value))

        sets = [[name(value) for value in row or ()] for row in rows]
        places = [f"row {i} of {self._in(split)}" for i in range(len(rows))]
        return number_sets(sets, self.class_names, places)

    def _in(self, split):
        return f"split {split!r} of {self._where}" if split else self._where

    @functools.cached_property
    def level_range(self) -> tuple[float, ...]:
        """The level range of images with more than 8 bits; () if no training image has more."""
        config = self._config
        return config.level_range or decide_levels(self._sample_levels(), config.channels)

    def _sample_levels(self):
        fetch, count = self._fetcher(self.train_split), len(self._table(self.train_split))
        for i in sorted(set(spread(count, MOST_SAMPLED))):
            with contextlib.suppress(Exception):
                levels = sample_levels(io.BytesIO(fetch(i)), self._config)
                if levels is not None:
                    yield levels

    def _columns(self, split):
        """Get the encoded images of a split, and the paths of those outside of it, or None."""
        if split not in self._images:
            self._images[split] = self._open_columns(split)
        return self._images[split]

    def _open_columns(self, split):
        column = self._table(split)[self._image]
        if not _is_struct(column.type):
            return column, None
        compute = arrow.require("pyarrow.compute")
        has_paths = "path" in {field.name for field in column.type}
        paths = compute.struct_field(column, "path") if has_paths else None
        return compute.struct_field(column, "bytes"), paths

    def _fetcher(self, split):
        """Make a function that reads the encoded image of a row; it raises UserError."""
        folder = self._files[split][0].parent

        def fetch(row):
            contents, paths = self._columns(split)
            if (content := contents[row].as_py()) is not None:
                return content
            path = paths[row].as_py() if paths is not None else None
            try:
                return (folder / path).read_bytes() if path else b""
            except (OSError, ValueError):
                raise UserError(
                    f"row {row} of {self._in(split)} names the file {path}, which cannot be read: "
                    "save the dataset with its images"
                ) from None

        return fetch

    def examples(self, split: str) -> Examples:
        """Open the rows of a split, "" for the only one."""
        labels, fetch, config = self._labels(split), self._fetcher(split), self._config
        options: Any = options_of(config) | {"level_range": self.level_range}

        def decode(row):
            where = f"row {row} of {self._in(split)}"
            try:
                content = io.BytesIO(fetch(row))
                return read_image(content, max_pixels=config.max_pixels, where=where, **options)
            except UserError as error:
                raise UserError(f"{error}; data.skip_corrupt=True skips such images") from None

        def identity():
            if not config.cache_decoded or self._columns(split)[0].null_count:
                return None  # images outside of the files may change without them
            files = [os.path.realpath(path) for path in self._files[split]]
            state = decoded.state_of(files)
            return identity_of(config, self.level_range, self._image, state, labels.tolist())

        def sizes():
            contents, _ = self._columns(split)
            if contents.null_count:
                return None
            compute = arrow.require("pyarrow.compute")
            return compute.binary_length(contents).to_numpy()

        examples = Examples(
            len(labels),
            lambda rows: [(decode(i), as_label(labels[i])) for i in rows],
            lambda: labels,
            identity,
            lambda rows: [fetch(i) for i in rows],
            sizes,
        )
        if not config.skip_corrupt:
            return examples
        rows, where = range(len(labels)), f"rows of {self._in(split)}"
        names, name = self.class_names, identity()
        good = find_readable(decode, rows, labels, where, config, names, name)
        return examples.take(good)

    def overlap(self, one: str, other: str) -> bool:
        """Whether two splits share examples."""
        return one == other


def _is_struct(kind):
    return arrow.require("pyarrow.types").is_struct(kind)


def _holds_images(kind):
    types = arrow.require("pyarrow.types")
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _holds_labels(kind):
    types = arrow.require("pyarrow.types")
    if types.is_dictionary(kind):
        kind = kind.value_type
    is_text = types.is_string(kind) or types.is_large_string(kind)
    return is_text or types.is_integer(kind) or types.is_boolean(kind)


def _holds_label_lists(kind):
    types = arrow.require("pyarrow.types")
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and _holds_labels(kind.value_type)
