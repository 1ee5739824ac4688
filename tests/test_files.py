"""File locks and single-line errors."""

import errno
import fcntl
import threading

import pytest

from vit_jax.runtime import files
from vit_jax.runtime.errors import UserError, describe_error, join_names, truncate_repr
from vit_jax.storage.run_folder import run_name, run_path


@pytest.fixture
def held(tmp_path):
    """A lock file locked by another file descriptor, as by another process."""
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def test_a_taken_lock_raises_or_waits(tmp_path, held, capsys):
    path = tmp_path / ".lock"
    with pytest.raises(UserError, match="^it is in use$"), files.lock(path, "it is in use"):
        pass
    released = []

    def release():
        released.append(True)
        fcntl.flock(held, fcntl.LOCK_UN)

    threading.Timer(0.5, release).start()
    with files.lock(path, "waiting for it", wait=True):
        assert released and capsys.readouterr().out == "waiting for it\n"
        with pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert path.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys, number):
    """For example, some NFS and Lustre mounts."""

    def refuse(*args):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    done = False
    with files.lock(tmp_path / ".lock", "it is in use"):
        done = True
    warning = capsys.readouterr().err
    assert done and warning.count("\n") == 1
    assert warning.startswith(f"warning: {tmp_path / '.lock'} cannot be locked (no locks here)")


def test_other_lock_errors_are_raised(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError), files.lock(tmp_path / "folder", "it is in use"):
        pass


FULL = OSError(errno.ENOSPC, "No space left on device", "a.txt")


def test_errors_that_a_user_can_resolve_are_single_lines():
    assert describe_error(UserError("wrong")) == "wrong"
    assert describe_error(FULL) == "a.txt: No space left on device"
    assert describe_error(FULL, training=True) == (
        "a.txt: No space left on device; resolve this, then run the same command to resume"
    )
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", b"a\xff.txt")
    assert describe_error(missing) == "a\udcff.txt: No such file or directory"
    assert describe_error(missing, training=True) is None
    assert describe_error(ValueError("a bug")) is None
    assert "lower train.batch_size" not in str(describe_error(MemoryError()))
    assert "lower train.batch_size" in str(describe_error(MemoryError(), training=True))


def test_values_are_shortened():
    assert truncate_repr("a") == "'a'" and len(truncate_repr("a" * 1000)) < 100
    assert join_names("abcde") == "a, b, c, d, e" and join_names("abcdef") == "a, b, c, d, e, ..."


def test_the_path_of_a_run_names_it(tmp_path):
    path = run_path(tmp_path, "patch_4", 3)
    assert path == tmp_path / "patch_4" / "seed_3" and run_name(path) == "patch_4 seed 3"
