"""Identical finished runs next to the workdir are reused; others are trained."""

import json
import pathlib
import shutil

import pytest
from tiny_configs import make_config
from tiny_runs import run_configs

from vit_jax.cli.hooks import ReportHooks
from vit_jax.runtime.errors import UserError
from vit_jax.storage import run_folder
from vit_jax.storage.reuse import find_identical
from vit_jax.training.hooks import Hooks

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = dict(
    train__epochs=1.0, train__batch_size=256, train__eval_batch_size=512, log__explain_images=0
)


class Counting(Hooks):
    """Count the runs that are trained."""

    trained = 0

    def on_event(self, event, step):
        self.trained += event == "restore"


def sweep(workdir, variant="base", hooks=None, reuse=True, **overrides):
    hooks = hooks or Counting()
    config = make_config(**CONFIG | overrides)
    run_configs({variant: config}, workdir, name=workdir.name, hooks=hooks, reuse=reuse)
    return hooks


@pytest.fixture(scope="module")
def trained(one_device, tmp_path_factory):
    """Train an experiment; return its folder."""
    folder = tmp_path_factory.mktemp("runs") / "checkpoints" / "first"
    assert sweep(folder).trained == 1
    return folder


@pytest.fixture
def finished(trained, tmp_path):
    """Copy the trained experiment; return its folder."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "checkpoints" / "first"))


def read(folder, name="summary.json"):
    return json.loads((folder / name).read_text())


def test_a_run_of_other_code_is_not_reused(finished, capsys, monkeypatch):
    """The user has changed an augmentation, and trains again to see the effect."""
    run = finished / "base" / "seed_0"
    record = run_folder.read_config(run)
    folder, config = finished.parent / "second/base/seed_0", run_folder.config_of(run, record)
    assert find_identical(folder, config, 0, record["data"]) == run
    for checksum in (1, 0):  # 0: without sources, code cannot be compared
        monkeypatch.setattr(run_folder, "code_checksum", lambda checksum=checksum: checksum)
        assert find_identical(folder, config, 0, record["data"]) is None
        assert "is of other code: not reused" in capsys.readouterr().out


def test_an_identical_run_is_reused_once(finished, capsys):
    (finished / "base/seed_0/wandb_id").write_text("of one run")
    other = finished.parent / "second"
    assert sweep(other, "learned_1d").trained == 0
    assert "learned_1d seed 0: identical to" in capsys.readouterr().out
    source, copy = finished / "base/seed_0", other / "learned_1d/seed_0"
    before, after = read(source), read(copy)
    assert after == before | {"name": "learned_1d", "reused_from": "first/base/seed_0"}
    (row,) = read(other, "results.json")["rows"]
    assert row["reused_from"] == ["first/base/seed_0"]
    assert not (copy / "wandb_id").exists()
    # The tests' folder is called "checkpoints": only those of the run are shared.
    assert not (source / "metrics.jsonl").samefile(copy / "metrics.jsonl")
    step = next((source / "checkpoints").glob("[0-9]*"))
    assert (step / "SHA256SUMS").samefile(copy / "checkpoints" / step.name / "SHA256SUMS")
    shutil.rmtree(finished)
    assert sweep(other, "learned_1d").trained == 0  # the copy does not need the source
    # A copy can be lengthened, which verifies its checkpoints and log.
    assert sweep(other, "learned_1d", train__epochs=2.0).trained == 1
    assert read(copy)["steps"] == 2 * before["steps"]


def test_a_folder_in_use_is_not_replaced(finished):
    folder = finished.parent / "second" / "base" / "seed_0"
    folder.mkdir(parents=True)
    with run_folder.lock(folder):  # as a process that trains with --no-reuse
        with pytest.raises(UserError, match="seed_0 is in use by another process"):
            sweep(finished.parent / "second")
    assert sweep(finished.parent / "second").trained == 0


def test_the_report_names_the_source(finished):
    other = finished.parent / "second"
    sweep(other, hooks=ReportHooks())
    assert "reused from identical runs, first/base/seed_0" in (other / "results.md").read_text()
    assert (other / "base/seed_0/figures/confusion.png").exists()


def damage_summary(run):
    (run / "summary.json").write_text((run / "summary.json").read_text() + " ")


def damage_checkpoint(run):
    path = max((run / "checkpoints").rglob("d/*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    "change",
    [
        dict(optim__learning_rate=1e-2),
        dict(seed=1),
        dict(data__split_seed=1),  # other images
        dict(reuse=False),
        damage_summary,
        damage_checkpoint,
    ],
    ids=["setting", "seed", "images", "no-reuse", "damaged-summary", "damaged-checkpoint"],
)
def test_different_or_damaged_runs_are_not_reused(finished, change):
    if callable(change):
        change(finished / "base/seed_0")
        change = {}
    assert sweep(finished.parent / "second", **change).trained == 1
