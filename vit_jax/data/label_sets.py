"""Several labels per image, as tables write them: a cell of names, or a column of 0 and 1 each."""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from vit_jax.runtime.errors import UserError, join_names, truncate_repr

_TRUTH = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def split_cell(cell: str, separator: str) -> tuple[str, ...]:
    """Split the names of classes in a cell, without repetitions; () for an empty cell."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, cell.split(separator)))))


def describe_mixed(
    names: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], used: Collection[str]
) -> Iterator[str]:
    """Describe columns of mostly 0 and 1 that are not in `used`; `rows` are (line, cells)."""
    for number, name in enumerate(names):
        odd = [(line, cells[number]) for line, cells in rows if cells[number].lower() not in _TRUTH]
        if name not in used and 0 < len(odd) < len(rows) / 2:
            line, cell = odd[0]
            yield (
                f"column {name} is not a class, because line {line} has {truncate_repr(cell)} "
                "instead of 0 or 1"
            )


def indicator_columns(
    names: Sequence[str], rows: Iterable[Sequence[str]], used: Collection[str]
) -> list[str]:
    """List the columns that hold only 0 and 1, or false and true, but for those in use."""
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return [
        name
        for name, cells in columns
        if name not in used and all(cell.lower() in _TRUTH for cell in cells)
    ]


def marked(names: Sequence[str], cells: Sequence[str]) -> tuple[str, ...]:
    """List the columns whose cells are 1 or true."""
    return tuple(name for name, cell in zip(names, cells, strict=True) if _TRUTH[cell.lower()])


def number_sets(
    sets: Sequence[Sequence[str]], class_names: Sequence[str], places: Sequence[str]
) -> np.ndarray:
    """Mark the classes of each image: uint8 [n, classes] of 0 and 1.

    Raises:
      UserError: a name is not a class; `places` say where each image is labelled.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    found = np.zeros((len(sets), len(class_names)), np.uint8)
    for row, names, place in zip(found, sets, places, strict=True):
        for name in names:
            if name not in numbers:
                raise UserError(
                    f"{place} has the class {truncate_repr(name)}, which no training image has: "
                    f"the classes are {join_names(class_names)}"
                )
            row[numbers[name]] = 1
    return found
