"""Runs an experiment: trains every variant and seed of a config, then writes the table.

    python -m vit_jax.main --config=configs/cifar_patch.py
    python -m vit_jax.main --config=configs/cifar_patch.py --variant=patch_4
    python -m vit_jax.main --config=configs/cifar_patch.py --config.train.epochs=50

--config.SECTION.KEY=VALUE changes one setting; vit_jax/config.py lists them all. The same command
run again continues where it stopped; finished runs are not trained again.
"""

import difflib
import functools
import gc
import pathlib
import re
import runpy
import sys
import traceback
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vit_jax import config as settings
from vit_jax import memory
from vit_jax.errors import UserError, one_line
from vit_jax.files import disk_problem

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of the experiment; --config.SECTION.KEY=VALUE overrides it."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for all that the experiment leaves. Default: runs/<config's name>."
)
_VARIANT = flags.DEFINE_string(
    "variant", None, "Train this variant of the sweep alone, and write no table."
)


def run() -> None:
    """The command line's entry point."""
    # Tracing makes many objects, none of them in vain: looking for such took a second of a start.
    gc.set_threshold(100_000)
    memory.keep_freed()
    app.run(_main, flags_parser=_parse)


def _parse(argv):
    if {"--help", "-help", "-h", "--helpfull", "-helpfull", "--helpshort"} & set(argv):
        app.usage(writeto_stdout=True, exitcode=0)
    try:
        for argument in argv[1:]:
            if match := re.match(r"--?(?:no)?config\.([\w.]+)", argument):
                settings.check_key(match[1], "the command line")
        given = sum(bool(re.match(r"--?config(=|$)", argument)) for argument in argv[1:])
        if given != 1:
            problem = "missing" if not given else f"given {given} times"
            raise UserError(f"--config=FILE is {problem}: give one, as configs/cifar_patch.py")
        for match in re.finditer(r"(?:^|\n)--?config[=\n](.*)", "\n".join(argv[1:])):
            load_config_file(pathlib.Path(match[1]))
        rest = flags.FLAGS(argv)[1:]
        if rest:
            raise UserError(f"{rest[0]!r} is no flag; flags begin with --, --help lists them")
        return argv[:1]
    except flags.IllegalFlagValueError as error:
        match = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error))
        if match is None:
            _die(str(error))
        _die(settings.wrong_type(match[1], match[2], "the command line"))
    except (UserError, flags.Error) as error:
        _die(str(error))


def _main(argv):
    del argv
    # JAX and orbax tell of their insides, and log the tracebacks of what they raise as well.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = functools.partial(_tell_unraisable, sys.unraisablehook)
    # Imported here, so that --help and a mistyped flag answer at once.
    from vit_jax import processes, sweep
    from vit_jax.stop import StopSignal

    try:
        stop = StopSignal()
        flag: Any = flags.FLAGS["config"]
        path = pathlib.Path(flag.config_filename)
        _, variants, published = load_config_file(path)
        configs = sweep.make_variants(_CONFIG.value, variants, set(flag.override_values))
        if _WORKDIR.value == "":
            raise UserError("--workdir is empty: give a folder, or leave it out for runs/NAME")
        workdir = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / path.stem)
        only, arguments = _VARIANT.value, sys.argv[1:]
        sweep.run_sweep(path.stem, configs, variants, published, workdir, only, stop, arguments)
        return
    except Exception as error:
        several, message = processes.count() > 1, _sentence(error)
        if message is None and several and processes.is_loss(error):
            message = processes.LOST
        if message is None and not several:
            raise
        if message is None:
            traceback.print_exc()
            message = "this process failed, as told above"
        processes.leave(message) if several else _die(message)


def _tell_unraisable(tell, failure):
    # Where one write of a checkpoint fails, orbax closes its loop; those that end later complain.
    if str(failure.exc_value) != "Event loop is closed":
        tell(failure)


def _sentence(error) -> str | None:
    """Returns what to tell of an error that a person can mend, None for another."""
    if isinstance(error, OSError) and (problem := disk_problem(error)):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{problem}; once that is mended, the same command goes on"
    if memory.ran_out(error):
        return (
            f"{memory.full(error)}: lower train.batch_size or raise train.accumulation_steps, or "
            "set train.remat=True or data.resident=never"
        )
    return str(error) if isinstance(error, UserError) else None


def load_config_file(path: pathlib.Path) -> tuple[settings.Config, dict[str, dict], dict]:
    """Returns what a config file's get_config() and sweep() return, and its PUBLISHED.

    sweep() is {variant: {"section.key": value}}, PUBLISHED is {source: the order that it found};
    both may be missing, and are then {}.

    Raises UserError if it is missing, fails, or returns something else.
    """
    if not path.is_file():
        raise UserError(f"--config={path} is not a file")
    try:
        contents = runpy.run_path(str(path))
        if "get_config" not in contents:
            raise UserError(f"--config={path} has no function get_config()")
        config = contents["get_config"]()
        variants = contents["sweep"]() if "sweep" in contents else {}
    except UserError:
        raise
    except Exception as error:  # whatever the user's code may raise
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or ["?"])[-1]
        raise UserError(f"--config={path}, line {line}: {_reason(error)}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of --config={path} returns no ConfigDict")
    differing = set(settings.flatten(config)) ^ set(settings.flatten(settings.get_config()))
    if differing:
        raise UserError(
            f"get_config() of --config={path} must return vit_jax.config.get_config() with some "
            f"values changed, but {min(differing)} was added or is missing"
        )
    if not isinstance(variants, dict) or not all(isinstance(name, str) for name in variants):
        raise UserError(
            f"sweep() of --config={path} must return a dict of named variants, such as "
            "{'deep': {'model.depth': 12}}"
        )
    published = contents.get("PUBLISHED", {})
    if not isinstance(published, dict) or not all(
        isinstance(text, str) for pair in published.items() for text in pair
    ):
        raise UserError(f"PUBLISHED of --config={path} must be a dict of texts: source to order")
    return config, variants, published


def _reason(error):
    """Returns what to tell of an error in a config file's code."""
    # ml_collections quotes its messages, and lists all keys.
    match = re.match(r"""[\\'"]*(?:Key ")?(\w+)""", str(error))
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, (AttributeError, KeyError)) and match and "ml_collections" in where:
        known = settings.flatten(settings.get_config())
        parts = {part for key in known for part in key.split(".")}
        near = [key for key in known if key.split(".")[-1] == match[1]]  # of another section
        near = near or difflib.get_close_matches(match[1], parts, n=1)
        hint = f"did you mean {near[0]}?" if near else "vit_jax/config.py lists them"
        return f"there is no setting {match[1]} there; {hint}"
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"


def _die(message) -> NoReturn:
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    run()
