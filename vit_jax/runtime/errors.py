"""The exception for user mistakes, and how errors and values are written in messages."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence

from vit_jax.runtime import memory

# A disk that is full, over quota, read-only, not permitted or failing; too many open files.
_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.EMFILE, errno.ENFILE),
)

RESUMES = "resolve this, then run the same command to resume"


class UserError(Exception):
    """A mistake in a command, config or input file, reported as a single-line error.

    The command line prints the message without a traceback and exits with status 1.
    """

    def _render_traceback_(self) -> list[str]:
        """Render the error in a notebook: the message, without a traceback."""
        return [f"{type(self).__name__}: {single_line(self)}"]


class Diverged(UserError):
    """The loss or its gradient became non-finite."""


def describe_error(error: BaseException, training: bool = False) -> str | None:
    """Describe an error that a user can resolve in a short message; return None for any other.

    With `training`, the only OSErrors described are those of the disk, and the message says how to
    resume.
    """
    if isinstance(error, UserError):
        return str(error)
    if memory.ran_out(error):
        advice = ": set train.remat=True or data.device_resident=never, lower train.batch_size, in "
        advice += "an evaluation train.eval_batch_size, or for a ViT, raise "
        advice += "train.accumulation_steps"
        reason = f"out of memory on this machine or a device ({first_line(error)})"
        return reason + advice * training
    if isinstance(error, OSError) and (disk_problem(error) or not training):
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        what = disk_problem(error) or (error.strerror if where else error)
        return f"{where}{what}{f'; {RESUMES}' * training}"
    return None


def disk_problem(error: BaseException) -> str | None:
    """Get the disk's own message, as "No space left on device"; None for any other error."""
    if isinstance(error, OSError):
        number = error.errno
    else:  # TensorStore raises "... No space left on device [os_error_code='28']"
        match = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(match[1]) if match else None
    return os.strerror(number) if number in _DISK else None


def first_line(error: BaseException) -> str:
    """Get the first line of an error's message, or its type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def truncate_repr(value: object) -> str:
    """Truncate the `repr` of a value in the middle, to at most 100 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:60]}...{text[-20:]}"


def suggest(word: str, known: Iterable[str], otherwise: str, count: int = 1) -> str:
    """Suggest the `count` known words closest to a misspelt one; without any, `otherwise`."""
    near = difflib.get_close_matches(word, known, n=count)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def join_names(names: Sequence[str]) -> str:
    """Join the first five names, with an ellipsis if there are more."""
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])


def single_line(text: object) -> str:
    """Escape control characters, line breaks included, and bytes that are not UTF-8.

    Names of files and classes, which are not trusted, appear in messages: they must not control the
    terminal.
    """
    unprintable = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    return re.sub(unprintable, lambda found: ascii(found[0])[1:-1], str(text))
