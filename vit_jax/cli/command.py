"""Arguments, errors and exit statuses that the commands share."""

import argparse
import ast
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from vit_jax.config import check_key, get_config, with_overrides
from vit_jax.config.schema import SCHEMA
from vit_jax.runtime import memory
from vit_jax.runtime.errors import UserError, describe_error, single_line, suggest

_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class Parser(argparse.ArgumentParser):
    """A parser that prints a module's docstring as help and raises UserError."""

    def __init__(self, description=None, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, allow_abbrev=False, **options)

    def error(self, message):
        """Raise UserError."""
        raise UserError(message)

    def parse_args(self, args=None, namespace=None):
        """Parse arguments, all of which must be known; raises UserError."""
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            flags = re.findall(r"--[\w-]+", self.format_usage())
            hint = suggest(rest[0].split("=")[0], flags, "--help lists the flags")
            raise UserError(f"unrecognised argument {rest[0]!r}; {hint}")
        return options

    def parse_with_overrides(self, arguments: Sequence[str]) -> tuple[Any, dict[str, Any]]:
        """Parse options, and --config.SECTION.KEY=VALUE to {"section.key": value}."""
        overrides, others = split_overrides(arguments)
        return self.parse_args(others), overrides


def add_class_names(parser: argparse.ArgumentParser) -> None:
    """Add --class-names, parsed to a list."""
    parser.add_argument(
        "--class-names",
        type=_class_names,
        metavar="NAMES",
        help="names of the classes in the order of the head: a file with one per line, or a,b,c",
    )


def _class_names(text):
    if not os.path.isfile(text):
        if "," not in text:
            raise argparse.ArgumentTypeError(
                f"{text} is not a file: give one with a name per line, or names separated by commas"
            )
        return [name.strip() for name in text.split(",")]
    try:
        with open(text, encoding="utf-8-sig") as file:
            return [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{text} is not UTF-8 text") from None


def main(function: Callable[[Sequence[str]], int | None]) -> Callable[..., int]:
    """Decorate a command to `run` with arguments, by default those of the process."""

    @functools.wraps(function)
    def decorated(argv: Sequence[str] | None = None) -> int:
        return run(lambda: function(sys.argv[1:] if argv is None else argv))

    return decorated


def run(command: Callable[[], int | None], training: bool = False) -> int:
    """Run a command and return its exit status.

    An error that `describe_error` describes is printed as a single line, with status 1.
    """
    # JAX and orbax log their internals, and the tracebacks of errors that are handled here.
    logging.set_verbosity(logging.FATAL)
    memory.keep_freed()
    try:
        status = command() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `| head`, which closes the pipe early
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to finish it", file=sys.stderr)
        return 130
    except Exception as error:
        message = describe_error(error, training)
        if message is None:
            raise
        print(f"error: {single_line(message)}", file=sys.stderr)
        return 1


def split_overrides(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Split a command line into overrides {"section.key": value} and all other arguments.

    Overrides are --config.SECTION.KEY=VALUE or --config.SECTION.KEY VALUE; a boolean setting
    without a value becomes True. Raises UserError for unknown settings and wrong values.
    """
    overrides, others, left = {}, [], list(arguments)
    while left:
        argument = left.pop(0)
        match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if not match:
            others.append(argument)
            continue
        key, text = match.groups()
        check_key(key, "the command line")
        if text is None:
            is_boolean = isinstance(SCHEMA[key].default, bool)
            follows = left and (left[0].lower() in _BOOLEANS if is_boolean else left[0][:2] != "--")
            if not follows and not is_boolean:
                raise UserError(f"{argument} needs a value: {argument}=VALUE")
            text = left.pop(0) if follows else "True"
        overrides[key] = _parse(SCHEMA[key].default, text)
    with_overrides(get_config(), overrides, "the command line")
    return overrides, others


def _parse(default, text):
    """Parse a string as a value of the type of `default`; an invalid string is returned as is."""
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        return _BOOLEANS.get(text.lower(), text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    if isinstance(default, tuple):
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    return value
