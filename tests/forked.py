"""Run vit_jax.main in forks of a process that has imported it, to save seconds of import time.

python tests/forked.py reads lines of JSON, {"arguments": [str], "environment": {str: str},
"stdout": path, "stderr": path, "folder": path}, and prints an exit status for each.
"""

import contextlib
import json
import os
import pathlib
import sys
import traceback
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # without an installation
warnings.filterwarnings("ignore", "os.fork")  # JAX has not started any threads yet

import vit_jax.training.sweep  # noqa: E402, F401  imported lazily by main
from vit_jax import main  # noqa: E402


def run(arguments, stdout, stderr, environment=(), around=None, hooks=None, folder="."):
    """Run the main command in a fork; return its exit status, -9 after SIGKILL.

    Output is appended to the two files; `around` is a context manager for the fork, `hooks` are
    passed to the main command, which runs in `folder`.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        os.environ.update(environment)
        os.chdir(folder)
        for number, path in ((1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        sys.argv = ["main", *arguments]
        with around or contextlib.nullcontext():
            main.run(hooks)
        status = 0
    except SystemExit as stopped:
        status = stopped.code or 0
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        print(run(**json.loads(line)), flush=True)
