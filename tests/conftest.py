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
def command():
    """Returns a function that runs `python ARGS...` in the project's root."""

    def run(*args, timeout=240, **environment):
        env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        return subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=ROOT,
            env=env | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
