"""A mistake on the command line gives a single-line error, status 1 and no traceback."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from conftest import COMMAND_ENVIRONMENT, ROOT

from vit_jax.config.schema import SCHEMA

DIGITS = "--config=configs/digits_patch.py"


@pytest.fixture(scope="module")
def main(tmp_path_factory):
    """Make a function that runs `python -m vit_jax.main ARGS...` (see forked.py)."""
    # A process with several threads must not fork.
    env = os.environ | COMMAND_ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "tests/forked.py"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(*arguments, folder=ROOT, **environment):
        out, err = (tmp_path_factory.mktemp("output") / name for name in ("stdout", "stderr"))
        request = {"arguments": arguments, "environment": environment, "folder": str(folder)}
        server.stdin.write(json.dumps(request | {"stdout": str(out), "stderr": str(err)}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())

    with server:
        yield run


def assert_refused(done, *messages):
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error: ")
    for message in messages:
        assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE is missing"),
        ([DIGITS, DIGITS], "--config=FILE is given 2 times"),
        (["--config=none.py"], "--config=none.py is not a file"),
        (["--config=x/digits_patch.py"], "; --config=digits_patch is the bundled one"),
        ([DIGITS, "--workdri=x"], "unrecognised argument '--workdri=x'; did you mean --workdir?"),
        ([DIGITS, "--config.train.epoch=3"], "train.epoch in the command line; did you mean"),
        ([DIGITS, "--config.train.batch_size=x"], "train.batch_size in the command line takes a"),
        ([DIGITS, "--config.model.patch_size=3"], "model.patch_size=3 does not divide"),
        ([DIGITS, "--config.model.hidden_size=30"], "is not divisible by model.num_heads=4"),
        ([DIGITS, "--variant=patch_9"], "use one of patch_1, patch_2, patch_4"),
        ([DIGITS, "--config.data.val_size=9999"], "data.val_size=9999 asks for 9999 of 1438"),
        ([DIGITS, "--config.train.batch_size=2000"], "is larger than the training split of 1294"),
        (
            [DIGITS, "--config.train.epochs=5"],
            "optim.warmup_epochs=5 is a warm-up of 100 steps, but the whole run has 100",
        ),
        (
            [DIGITS, "--config.data.name=cifar10", "--config.data.download=False"],
            "vit-jax prepare-data",
        ),
    ],
)
def test_mistakes(main, tmp_path, arguments, message):
    if arguments:
        arguments = [*arguments, f"--workdir={tmp_path / 'runs'}"]
    done = main(*arguments, TFDS_DATA_DIR=str(tmp_path))
    assert_refused(done, message)


DEFAULTS = "from vit_jax import config\nget_config = config.get_config\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "line 1: SyntaxError"),
        ("x = 1", "has no function get_config()"),
        ("def get_config():\n  return {}", "must return a ConfigDict"),
        (
            "from vit_jax import config\ndef get_config():\n  c = config.get_config()\n"
            "  c.model.patchsize = 4\n  return c",
            "line 4: patchsize is not a setting there; did you mean patch_size?",
        ),
        (
            "from vit_jax import config\nconfig.get_config().optimizer.name = 'sgd'",
            "line 2: optimizer is not a setting there; did you mean optim?",
        ),
        (
            "from vit_jax import config\nconfig.get_config().train.learning_rate = 0.1",
            "line 2: learning_rate is not a setting there; did you mean optim.learning_rate?",
        ),
        ("from vit_jax import config\nconfig.get_config()['optm']", "did you mean optim?"),
        ("raise AttributeError('frob')", "line 1: AttributeError: frob"),
        ("{}['optim']", "line 1: KeyError: 'optim'"),
        ("import numpyy", "line 1: ModuleNotFoundError: No module named 'numpyy'"),
        (DEFAULTS + "def sweep():\n  return {'a': {'model.dept': 1}}", "did you mean model.depth"),
        (DEFAULTS + "def sweep():\n  return {'a': 1}", "variant 'a' must be a dict"),
        (DEFAULTS + "def sweep():\n  pass", "sweep() of --config="),
        (DEFAULTS + "PUBLISHED = ['a > b']", "PUBLISHED of --config="),
        (DEFAULTS + "assert not get_config", "line 3: AssertionError"),
        (
            DEFAULTS + "def sweep():\n  return {'a': {'seed': None}}",
            "config key seed in variant a takes an integer, not None",
        ),
        (
            DEFAULTS + "def sweep():\n  return {'b': {'sharding.cpu_devices': 1}}",
            "variant b changes the sharding settings",
        ),
    ],
)
def test_mistakes_in_a_config_file(main, tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    done = main(f"--config={path}", f"--workdir={tmp_path / 'runs'}")
    assert_refused(done, message)


def test_missing_dataset_without_network_says_what_to_do(command, tmp_path):
    done = command(
        *("-m", "vit_jax.main", DIGITS, f"--workdir={tmp_path / 'runs'}"),
        *("--config.data.name=mnist", f"--config.data.dir={tmp_path}"),
        https_proxy="http://127.0.0.1:9",  # no server
        no_proxy="",
    )
    assert_refused(done, "run the same command again, or pass it to `vit-jax prepare-data mnist")


def test_text_renamed_to_jpg(command, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "images" / name / f"{i}.jpg").write_text("not an image")
    done = command(
        *("-m", "vit_jax.main", DIGITS, f"--workdir={tmp_path / 'runs'}"),
        *("--config.data.name=folder", f"--config.data.dir={tmp_path / 'images'}"),
        "--config.train.batch_size=4",
    )
    assert_refused(done, ".jpg cannot be read as an image", "data.skip_corrupt=True")


def test_workdir_that_is_a_file(command, tmp_path):
    (tmp_path / "runs").touch()
    done = command("-m", "vit_jax.main", DIGITS, f"--workdir={tmp_path / 'runs'}")
    assert_refused(done, "cannot be written to")


def test_an_empty_workdir_is_refused(main):
    assert_refused(main(DIGITS, "--workdir="), "--workdir is empty")


def test_help_lists_every_setting_without_starting_jax(command):
    code = """
        import sys
        from vit_jax import main
        sys.argv = ["main", "--help"]
        try:
            main.run()
        finally:
            assert "jax" not in sys.modules
    """
    done = command("-c", textwrap.dedent(code))
    assert done.returncode == 0, done.stderr
    for word in ("--config=configs/cifar_patch.py", "--workdir", "--variant", "docs/settings.md"):
        assert word in done.stdout
    for key, setting in SCHEMA.items():
        assert f"--config.{key}=" in done.stdout and setting.help in done.stdout


def test_a_config_file_is_executed_once(main, tmp_path):
    path, log = tmp_path / "mine.py", tmp_path / "log"
    path.write_text(
        f"with open({str(log)!r}, 'a') as file:\n    file.write('x')\n{DEFAULTS}"
        "def sweep():\n  return {'small': {'model.depth': 1}}"
    )
    assert_refused(main(f"--config={path}", f"--workdir={tmp_path / 'runs'}"), "must be set")
    assert log.read_text() == "x"


def test_the_workdir_is_named_after_config_and_profile(main, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from vit_jax.config.loading import load_config\n"
        "def get_config(profile):\n    return load_config('digits_patch').config\n"
    )
    done = main(f"--config={path}:cpu", "--config.data.val_size=9999", folder=tmp_path)
    assert_refused(done, "9999 of 1438")
    assert (tmp_path / "runs" / "mine_cpu").is_dir()
