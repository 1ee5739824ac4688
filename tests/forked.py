"""Runs vit_jax.main many times in forks of one process, which has imported it: that takes seconds.

python tests/forked.py reads lines of JSON, {"arguments": [str], "environment": {str: str},
"stdout": path, "stderr": path}, and answers each with the exit status.
"""

import contextlib
import json
import os
import pathlib
import sys
import traceback
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # without an installation
warnings.filterwarnings("ignore", "os.fork")  # JAX has started nothing yet

import vit_jax.training.sweep  # noqa: E402, F401  what main imports late
from vit_jax import main  # noqa: E402


def run(arguments, stdout, stderr, environment=(), around=None, hooks=None):
    """Returns the exit status of the main command in a fork; -9 if it is killed by SIGKILL.

    Its output is appended to the two files; `around` is a context that the fork enters, `hooks`
    are those of the main command.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        os.environ.update(environment)
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
