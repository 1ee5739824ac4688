"""The one exception that a user's mistake raises, and how its message shows what was wrong."""

import re
from collections.abc import Sequence


class UserError(Exception):
    """A mistake in a command, config or input file, told in one sentence.

    The command lines print the message without a traceback and exit with status 1.
    """


def shown(value: object) -> str:
    """Returns a value as a message shows it, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:60]}...{text[-20:]}"


def some(names: Sequence[str]) -> str:
    """Returns the first five of some names, and whether there are more."""
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])


def one_line(text: object) -> str:
    """Returns a text without line breaks and what else could steer a terminal, escaped.

    Bytes of a file's name that are no UTF-8 are escaped too: they cannot be printed. Names of files
    and classes, which others may have chosen, get into messages.
    """
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
        lambda found: ascii(found[0])[1:-1],
        str(text),
    )
