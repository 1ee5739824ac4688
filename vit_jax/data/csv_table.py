"""Tables in CSV and TSV files."""

import csv
import io
import pathlib
import re
from collections.abc import Callable

from vit_jax.runtime.errors import UserError, truncate_repr

Cells = list[str]


def read_table(
    path: pathlib.Path, setting: str, has_header: Callable[[Cells], bool] = lambda first: True
) -> tuple[Cells, list[tuple[int, Cells]]]:
    """Read a table: names of the columns, and (line number, cells) of each row.

    The delimiter is a tab in .tsv and .tab files, otherwise the comma, semicolon or tab that is the
    most frequent in the first line, outside of quotation marks. Where the table has no header, only
    delimiters by which the first line is a row count. A byte order mark and blank lines are
    skipped.

    Args:
      path: the file.
      setting: the setting that names the file, such as "data.labels", for messages.
      has_header: whether the cells of the first line are names of columns; otherwise these are
        called 1, 2, ...

    Raises:
      UserError: the file cannot be read, is not UTF-8 text, has no line, leaves a quotation mark
        open, or has a row whose number of cells differs from that of the first line.
    """
    what = f"{setting}={path}"
    text = _read_text(path, what)
    is_tab = path.suffix.lower() in (".tsv", ".tab")
    delimiter = "\t" if is_tab else _find_delimiter(text, has_header)
    rows = _parse(text, delimiter, what)
    if not rows:
        raise UserError(f"{what} is empty")
    names = [cell.strip() for cell in rows[0][1]]
    if has_header(names):
        rows = rows[1:]
    else:
        names = [str(number) for number in range(1, len(names) + 1)]
    for line, cells in rows:
        if len(cells) != len(names):
            raise UserError(
                f"line {line} of {what} has {len(cells)} cells, the first line has {len(names)}: "
                f"quote cells that contain {truncate_repr(delimiter)}"
            )
    return names, rows


def _find_delimiter(text, has_header):
    """Find the most frequent delimiter of the first line, by which it is a row if possible."""
    first = text.lstrip().partition("\n")[0]
    first = re.sub('"([^"]*)"', lambda quoted: re.sub("[,;\t]", " ", quoted[1]), first)
    found = [one for one in ",;\t" if one in first]
    rows = [one for one in found if not has_header([c.strip() for c in first.split(one)])]
    return max(rows or found or [","], key=first.count)


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


def _parse(text, delimiter, what):
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, start = [], 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                rows.append((reader.line_num, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"the row that begins on line {start} of {what} cannot be read ({error}): close its "
            "quotation mark, or double it"
        ) from None
    return rows
