"""Run an experiment: train every variant and seed of a config, then write the table.

    python -m vit_jax.main --config=configs/cifar_patch.py
    python -m vit_jax.main --config=configs/cifar_patch.py --variant=patch_4
    python -m vit_jax.main --config=configs/cifar_patch.py --config.train.epochs=50
    python -m vit_jax.main --config=digits_patch

--config.SECTION.KEY=VALUE changes one setting. The same command run again resumes where it
stopped; finished runs are not trained again.
"""

import functools
import gc
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import logging

from vit_jax.cli import command
from vit_jax.config.loading import load_config
from vit_jax.config.reference import settings_help
from vit_jax.runtime import memory
from vit_jax.runtime.errors import UserError, describe_error, single_line


def run(hooks: Any = None) -> None:
    """Run the command line; `hooks` replace the figures and the report.

    Errors of the user are one line, with exit status 1.
    """
    # Tracing allocates many objects, all of which live on: collecting took a second of each start.
    gc.set_threshold(100_000)
    memory.keep_freed()
    try:
        options, experiment = _parse(sys.argv[1:])
    except UserError as error:
        _die(error)
    # JAX and orbax log their internals, and the tracebacks of what they raise.
    logging.use_absl_handler()
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = functools.partial(_print_unraisable, sys.unraisablehook)
    # Imported here, so that --help and a mistyped flag answer at once.
    from vit_jax.cli.train_api import run_experiment
    from vit_jax.runtime import processes
    from vit_jax.runtime.signals import StopSignal

    try:
        workdir, only, arguments = options.workdir, options.variant, sys.argv[1:]
        run_experiment(
            experiment, workdir, StopSignal(), only, arguments, hooks, not options.no_reuse
        )
    except Exception as error:
        several, message = processes.count() > 1, describe_error(error, training=True)
        if message is None and several and processes.is_loss(error):
            message = processes.LOST
        if message is None and not several:
            raise
        if message is None:
            traceback.print_exc()
            message = "this process failed, see the traceback above"
        processes.leave(message) if several else _die(message)


def _parse(arguments):
    """Parse the command line; returns its options and the experiment."""
    overrides, others = command.split_overrides(arguments)
    parser = command.Parser(__doc__, prog="python -m vit_jax.main", epilog=settings_help())
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE[:PROFILE]",
        help="config file of the experiment, or name of a bundled config; PROFILE is the argument "
        "of its get_config()",
    )
    parser.add_argument("--workdir", help="output folder; default: runs/<config's name>")
    parser.add_argument("--variant", help="train this variant alone, and write no table")
    parser.add_argument(
        "--no-reuse",
        action="store_true",
        help="train runs of which an identical finished one lies next to the work folder",
    )
    options = parser.parse_args(others)
    paths = options.config or []
    if len(paths) != 1:
        problem = f"given {len(paths)} times" if paths else "missing"
        raise UserError(f"--config=FILE is {problem}: give one, such as configs/cifar_patch.py")
    if options.workdir == "":
        raise UserError("--workdir is empty: give a folder, or leave it out for runs/NAME")
    return options, load_config(paths[0], overrides)


def _print_unraisable(hook, failure):
    # Where one write of a checkpoint fails, orbax closes its loop; those that end later complain.
    if str(failure.exc_value) != "Event loop is closed":
        hook(failure)


def _die(message) -> NoReturn:
    print(f"error: {single_line(message)}", file=sys.stderr)
    sys.exit(1)


def main(argv: Sequence[str]) -> int:
    """Train with these arguments; exits with a status of its own if that fails."""
    sys.argv[1:] = argv
    run()
    return 0
