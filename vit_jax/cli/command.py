"""What the commands in scripts/ share: arguments, and one sentence for a mistake."""

import argparse
import ast
import os
import re
import sys
from collections.abc import Callable

from absl import logging

from vit_jax import config as settings
from vit_jax.config import Config
from vit_jax.runtime import memory
from vit_jax.runtime.errors import UserError, describe_error, single_line


class Parser(argparse.ArgumentParser):
    """A parser that shows a script's docstring as help, and whose complaint is a UserError."""

    def __init__(self, description=None, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, allow_abbrev=False, **options)

    def error(self, message):
        """Raises UserError."""
        raise UserError(message)


def run(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit status; a user's mistake is one line, status 1."""
    # JAX and orbax tell of their insides, and log the tracebacks of what they raise as well.
    logging.set_verbosity(logging.FATAL)
    memory.keep_freed()
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`, which has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = describe_error(error)
        if message is None:
            raise
        print(f"error: {single_line(message)}", file=sys.stderr)
        return 1
    return 0


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
