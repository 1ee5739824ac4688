"""With damaged files or a full disk, a sweep has the same results or a single-line error."""

import errno
import itertools
import pathlib
import shutil

import numpy as np
import pytest
from damage import DAMAGE, damage_file
from damaged_disk import QuickSweep, damage_and_run, prepare
from storm import assert_same_sweep, checksums, read_state

from vit_jax import plots
from vit_jax.runtime import files
from vit_jax.runtime.errors import UserError
from vit_jax.storage import writers

SEED = pathlib.Path("base", "seed_1")


@pytest.fixture(scope="module")
def quick():
    return QuickSweep()


@pytest.fixture(scope="module")
def sweeps(quick, tmp_path_factory):
    """The folders of a sweep stopped at step 8, and of the same sweep finished at step 10."""
    return prepare(quick, tmp_path_factory.mktemp("sweeps"))


def outcome(quick, sweeps, tmp_path, path, how, finished=False):
    return damage_and_run(quick, sweeps[finished], sweeps[1], SEED / path, how, tmp_path)


def test_a_stopped_sweep_has_the_results_of_an_uninterrupted_one(quick, sweeps, tmp_path):
    """The state includes BatchNorm statistics and their moving average."""
    quick.run(tmp_path / "whole")
    assert_same_sweep(sweeps[1], tmp_path / "whole")
    state = read_state(sweeps[1] / SEED)
    assert any("batch_stats" in key and "ema" in key for key in state)


def test_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(quick, tmp_path):
    with pytest.raises(UserError, match="became non-finite at step 5; the last good"):
        quick.run(tmp_path, broken_at=4)
    steps = [int(p.name) for p in (tmp_path / SEED / "checkpoints").iterdir() if p.name.isdigit()]
    assert steps == [3]


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_settings_are_refused(quick, sweeps, tmp_path, how):
    assert outcome(quick, sweeps, tmp_path, "config.json", how) == "refused"
    assert outcome(quick, sweeps, tmp_path, "config.json", how, finished=True) == "refused"


@pytest.mark.parametrize(("path", "how"), [("metrics.jsonl", "truncate"), ("8/notes/metadata", 0)])
def test_a_damaged_run_resumes_from_an_intact_checkpoint(quick, sweeps, tmp_path, path, how):
    """The other seed falls back with it."""
    path = path if "metrics" in path else f"checkpoints/{path}"
    assert outcome(quick, sweeps, tmp_path, path, how or "flip") == "fell back"


@pytest.mark.parametrize(
    ("path", "how"),
    [
        *(("summary.json", how) for how in DAMAGE),
        *(("metrics.jsonl", "flip"), ("test_report.json", "empty"), ("SHA256SUMS", "flip")),
    ],
)
def test_damaged_results_of_a_finished_run_are_recreated(quick, sweeps, tmp_path, path, how):
    assert outcome(quick, sweeps, tmp_path, path, how, finished=True) == "fell back"


def test_a_figure_on_a_full_disk_is_named(tmp_path):
    (tmp_path / "figure.png").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device.*figure.png"):
        plots.save_confusion(tmp_path / "figure.png", "title", np.eye(2), ["a", "b"])


FULL = errno.ENOSPC, "No space left on device"


def full_on(name, writes=1):
    """Make an `append` that fails halfway through one of the writes to a file."""
    counter = itertools.count(1)

    def append(file, content):
        if name in str(file.name) and next(counter) >= writes:
            file.write(content[: len(content) // 2])
            raise OSError(*FULL)
        files_append(file, content)

    return append


files_append = files.append


@pytest.mark.parametrize(
    ("owner", "name", "writes"),
    [
        *((writers, "metrics.jsonl", 1), (writers, "tfevents", 7)),
        *((files, "summary.json", 2), (files, "results.json", 1)),
    ],
)
def test_a_full_disk_error_names_the_file_and_nothing_is_lost(
    quick, sweeps, tmp_path, monkeypatch, owner, name, writes
):
    workdir = tmp_path / "sweep"
    shutil.copytree(sweeps[0], workdir)
    monkeypatch.setattr(owner, "append", full_on(name, writes))
    with pytest.raises(OSError, match=f"No space left on device.*{name}"):
        quick.run(workdir)
    monkeypatch.undo()
    quick.run(workdir)
    assert_same_sweep(workdir, sweeps[1], checksums)


def test_missing_figures_and_reports_are_recreated(quick, sweeps, tmp_path):
    """They have no digests, because they can be recreated from the results."""
    workdir = tmp_path / "sweep"
    shutil.copytree(sweeps[1], workdir)
    damage_file(workdir / SEED / "figures" / "confusion.png", "delete")
    damage_file(workdir / SEED / "test_report.txt", "delete")
    assert "warning" not in quick.run(workdir)
    assert_same_sweep(workdir, sweeps[1], checksums)


def test_digests_of_an_unprintable_name_are_reported_as_damaged(tmp_path):
    """Otherwise the warning would be truncated at a file name that does not exist."""
    (tmp_path / "a.txt").write_text("a")
    files.write_sums(tmp_path, ["a.txt"])
    assert files.find_damage(tmp_path) == {}
    sums = tmp_path / files.SUMS
    sums.write_text(sums.read_text().replace(".txt", ".t\x1et"))
    assert files.find_damage(tmp_path) == {sums: "is damaged"}
