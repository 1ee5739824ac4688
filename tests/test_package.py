"""The wheel contains the package and its configs, and works without the clone."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import COMMAND_ENVIRONMENT, ROOT

from vit_jax.cli import app

CONFIGS = {path.name for path in (ROOT / "configs").glob("*.py")}


def run(*arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | COMMAND_ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel from a clean copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("vit_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-build-isolation", "--no-deps", "--no-index", "-w", folder / "dist")
    run("-m", "pip", "wheel", *options, folder, cwd=folder)
    (path,) = (folder / "dist").glob("vit_jax-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel; return a function that runs Python with it in an empty folder."""
    site, cwd = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=cwd)

    def run_installed(*arguments):
        return run(*arguments, cwd=cwd, PYTHONPATH=str(site))

    return run_installed, site, cwd


def test_wheel_has_every_file_of_the_package_and_the_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {p for p in (ROOT / "vit_jax").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    expected = {p.relative_to(ROOT).as_posix() for p in sources}
    expected |= {f"vit_jax/configs/{name}" for name in CONFIGS}
    assert expected == {name for name in names if ".dist-info/" not in name}


def test_the_project_depends_on_every_pinned_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements-cpu.txt").read_text(), re.M)
    assert pins and {f"{name}>={version}" for name, version in pins} <= set(project["dependencies"])


def test_installed_package_trains(installed):
    run_installed, site, cwd = installed
    config = site / "vit_jax" / "configs" / "digits_patch.py"
    small = [f"--config.model.{size}" for size in ("hidden_size=16", "mlp_dim=16", "depth=1")]
    small += ["--config.train.epochs=1.0", "--config.train.num_seeds=1"]
    small += ["--config.optim.warmup_epochs=0.0", "--config.log.explain_images=0"]
    arguments = (f"--config={config}", "--variant=patch_4", *small)
    out = run_installed(site / "bin" / "vit-jax", "train", *arguments)
    assert "patch_4" in out
    folder = cwd / "runs" / "digits_patch" / "patch_4" / "seed_0"
    assert (folder / "summary.json").exists()
    assert json.loads((folder / "config.json").read_text())["git_commit"] is None
    assert "already finished, skipped" in run_installed("-m", "vit_jax.main", *arguments)


def test_help_lists_every_command(installed):
    run_installed, site, _ = installed
    out = run_installed(site / "bin" / "vit-jax", "--help")
    for name, description in app.COMMANDS.items():
        assert re.search(rf"^  {name} +{description}$", out, re.M)
    for arguments in (["-m", "vit_jax.main"], [site / "bin" / "vit-jax", "train"]):
        assert "--workdir" in run_installed(*arguments, "--help")


@pytest.mark.parametrize("name", app.COMMANDS)
def test_every_command_has_help(name, command):
    done = command("-c", "from vit_jax.cli.app import main; main()", name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"vit-jax {name}" in done.stdout or name == "train"


def test_only_the_chosen_command_is_imported(command):
    code = "import sys; from vit_jax.cli.app import main; main(['--help']); print(*sys.modules)"
    modules = command("-c", code).stdout.split()
    assert "vit_jax.cli.app" in modules
    assert not {"jax", "numpy", "absl", "matplotlib", "vit_jax.config"} & set(modules)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["visualise"], "'visualise' is not a command; did you mean visualize?"),
        (["x\x1b[2J"], "is not a command; use one of train, prepare-data"),
        ([], "the command is missing; use one of train, prepare-data"),
        (["predict"], "required: run, images"),
        (["train"], "--config=FILE is missing"),
    ],
)
def test_mistakes_are_single_line_errors(arguments, message, command):
    done = command(
        "-c", "import sys; from vit_jax.cli.app import main; sys.exit(main())", *arguments
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr
