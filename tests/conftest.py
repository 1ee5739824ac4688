"""Set-up shared by the tests: eight CPU devices, and a way to run the commands people type."""

import os
import pathlib
import subprocess
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import pytest  # noqa: E402  (JAX reads the variables when first imported)

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """Returns a function that runs `python ARGS...` in the project's root.

    The processes share compiled programs, which saves half of their time.
    """
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

    def run(*args, timeout=240, **environment):
        return subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=ROOT,
            env=env | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
