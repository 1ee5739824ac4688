"""Runs vit_jax.main many times in forks of this process, which has imported what it needs.

An import takes two seconds, a mistake on the command line a tenth. Reads lines of JSON from its
input, {"arguments": [str], "environment": {str: str}, "stdout": path, "stderr": path}, and answers
each with the exit status.
"""

import json
import os
import runpy
import sys
import traceback

import vit_jax.sweep  # noqa: F401  what main imports


def run(arguments, environment, stdout, stderr):
    """Does what a new interpreter would, and ends this process."""
    os.environ.update(environment)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    sys.argv, status = ["main", *arguments], 0
    try:
        runpy.run_module("vit_jax.main", run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        status = stopped.code or 0
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


for line in sys.stdin:
    child = os.fork()
    if not child:
        run(**json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
