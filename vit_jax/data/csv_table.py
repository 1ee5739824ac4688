"""Tables in CSV or TSV files, as people and spreadsheets write them."""

import csv
import io
import pathlib
from collections.abc import Callable

from vit_jax.runtime.errors import UserError, truncate_repr

Cells = list[str]


def read_table(
    path: pathlib.Path, setting: str, has_header: Callable[[Cells], bool] = lambda first: True
) -> tuple[Cells, list[tuple[int, Cells]]]:
    """Read a table: names of the columns, and (line number, cells) of each row.

    The delimiter is a tab, comma or semicolon; a byte order mark and blank lines are skipped.

    Args:
      path: of the file.
      setting: that names it, for messages, such as "data.labels".
      has_header: whether the cells of the first line are names of columns; otherwise these are
        called 1, 2, ...

    Raises:
      UserError: it cannot be read, is not UTF-8 text, leaves a quote open, is empty, has two
        columns of one name, or a row that is longer or shorter than the first line.
    """
    what = f"{setting}={path}"
    text = _read_text(path, what)
    first = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise UserError(
            f"line {reader.line_num} of {what}: {error}; a quotation mark may be left open"
        ) from None
    if not rows:
        raise UserError(f"{what} is empty")
    names = [cell.strip() for cell in rows[0][1]]
    if has_header(names):
        rows = rows[1:]
    else:
        names = [str(number) for number in range(1, len(names) + 1)]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{what} has several columns {truncate_repr(twice[0])}")
    for line, cells in rows:
        if len(cells) != len(names):
            raise UserError(
                f"line {line} of {what} has {len(cells)} cells, the first line has {len(names)}: "
                f"quote cells that contain {truncate_repr(delimiter)}"
            )
    return names, rows


def _read_text(path, what):
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets write a byte order mark
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{what} is not text: it contains a zero byte")
    return text
