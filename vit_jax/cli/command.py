"""Arguments, errors and exit statuses that the commands share."""

import argparse
import ast
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence

from absl import logging

from vit_jax import config as settings
from vit_jax.config import Config
from vit_jax.runtime import memory
from vit_jax.runtime.errors import UserError, one_line


class Parser(argparse.ArgumentParser):
    """A parser that prints a module's docstring as help and raises UserError."""

    def __init__(self, description=None, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, allow_abbrev=False, **options)

    def error(self, message):
        """Raise UserError."""
        raise UserError(message)


def main(
    function: Callable[[Sequence[str]], int | None],
) -> Callable[[Sequence[str] | None], int]:
    """Decorate a command, which takes its arguments: without any, those of the process.

    The result returns the exit status, as `run` does.
    """

    @functools.wraps(function)
    def decorated(argv: Sequence[str] | None = None) -> int:
        return run(lambda: function(sys.argv[1:] if argv is None else argv))

    return decorated


def run(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit status; a user's mistake is one line, status 1."""
    # JAX and orbax log their internals, and the tracebacks of what they raise.
    logging.set_verbosity(logging.FATAL)
    memory.keep_freed()
    try:
        status = command() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `| head`, which has read all that it needs
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to finish", file=sys.stderr)
        return 130
    except Exception as error:
        if memory.ran_out(error):
            error = memory.full(error)
        elif isinstance(error, OSError) and error.filename:
            error = f"{os.fsdecode(error.filename)}: {error.strerror}"
        elif not isinstance(error, (UserError, OSError)):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


def with_arguments(config: Config, arguments: list[str]) -> tuple[Config, set[str]]:
    """Returns a config changed by --config.SECTION.KEY=VALUE, and the keys that were given.

    Raises UserError if an argument is something else, or wrong.
    """
    known, changed = settings.flatten(config), {}
    for argument in arguments:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument)
        if not match:
            raise UserError(f"{argument!r} is no argument; settings are --config.SECTION.KEY=VALUE")
        key, value = match[1], match[2]
        if not isinstance(known.get(key), str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pass  # the text will be refused
        changed[key] = value
    return settings.with_overrides(config, changed, "the command line"), set(changed)
