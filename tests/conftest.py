"""Shared fixtures: eight CPU devices, commands in subprocesses, a download server."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

# Tests compile much and compute little: optimised machine code would double their time.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
JAX_VERSION = tuple(map(int, importlib.metadata.version("jax").split(".")[:2]))
if JAX_VERSION < (0, 11):  # XLA aborts on unknown flags
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK}"
os.environ["JAX_PLATFORMS"] = "cpu"
# All processes of a test run share compiled programs, which saves a quarter of their time.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Keep out of the user's cache folder, except for matplotlib's font list, which is slow to build.
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
os.environ.setdefault("MPLCONFIGDIR", str(CACHE / "matplotlib"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cache_")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest  # noqa: E402  (JAX reads the variables when first imported)

ROOT = pathlib.Path(__file__).parent.parent
COMMAND_ENVIRONMENT = {"XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}


def pytest_collection_modifyitems(items):
    """Run the slowest files first, to balance the workers."""
    longest = ("test_processes.py", "test_end_to_end.py", "test_configs.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(scope="session")
def command():
    """Make a function that runs `python ARGS...` in the project's root."""

    def run(*args, timeout=240, **environment):
        return subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=ROOT,
            env=os.environ | COMMAND_ENVIRONMENT | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="module")
def one_device():
    """Use one of the eight devices, which is faster here."""
    import jax

    from vit_jax.runtime import sharding

    types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("data",), axis_types=types, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda devices=None: mesh)
        yield


@pytest.fixture(scope="module")
def no_figures():
    """Write blank figures: drawing them takes longer than short training."""
    import matplotlib.figure
    from PIL import Image

    def savefig(figure, file, **options):
        width, height = (10 * figure.get_size_inches()).astype(int)
        Image.new("RGB", (width, height)).save(file, "png")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", savefig)
        yield


@pytest.fixture
def server(monkeypatch):
    """A tiny_server.Server, without pauses between download attempts."""
    from tiny_server import Server

    from vit_jax.data.prepare import download

    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def small_cifar10(server, tmp_path):
    """A small CIFAR-10 on the server: the dataset and the bytes of its archive."""
    from tiny_datasets import make_cifar10
    from tiny_server import served

    path = make_cifar10(tmp_path / "cifar-10-binary.tar.gz")
    return served(server, "cifar10", {path.name: path.read_bytes()}), path.read_bytes()


@pytest.fixture
def compiled():
    """Record the names of compiled functions."""
    import jax

    names = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(kwargs["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)
