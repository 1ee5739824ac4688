"""Runs an experiment: trains every variant and seed of a config, then writes the table.

    python -m vit_jax.main --config=configs/cifar_patch.py
    python -m vit_jax.main --config=configs/cifar_patch.py --variant=patch_4
    python -m vit_jax.main --config=configs/cifar_patch.py --config.train.epochs=50

--config.SECTION.KEY=VALUE changes one setting; vit_jax/config/settings.py lists them all. The
same command run again continues where it stopped; finished runs are not trained again.
"""

import functools
import gc
import pathlib
import re
import sys
import traceback
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from vit_jax import config as settings
from vit_jax.config.loading import load_config_file
from vit_jax.runtime import memory
from vit_jax.runtime.errors import UserError, one_line
from vit_jax.runtime.files import disk_problem

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of the experiment; --config.SECTION.KEY=VALUE overrides it."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for all that the experiment leaves. Default: runs/<config's name>."
)
_VARIANT = flags.DEFINE_string(
    "variant", None, "Train this variant of the sweep alone, and write no table."
)


def run(hooks: Any = None) -> None:
    """Run the command line; `hooks` replace the figures and the report."""
    # Tracing makes many objects, none of them in vain: looking for such took a second of a start.
    gc.set_threshold(100_000)
    memory.keep_freed()
    app.run(functools.partial(_main, hooks), flags_parser=_parse)


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


def _main(hooks, argv):
    del argv
    # JAX and orbax tell of their insides, and log the tracebacks of what they raise as well.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = functools.partial(_tell_unraisable, sys.unraisablehook)
    # Imported here, so that --help and a mistyped flag answer at once.
    from vit_jax.cli.hooks import ReportHooks
    from vit_jax.runtime import processes
    from vit_jax.runtime.signals import StopSignal
    from vit_jax.training import sweep

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
        hooks = hooks or ReportHooks()
        sweep.run_sweep(
            path.stem, configs, variants, published, workdir, only, stop, arguments, hooks
        )
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


def _die(message) -> NoReturn:
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    run()
