"""Run folder: path, lock, config.json and results."""

import contextlib
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import zlib
from collections.abc import Mapping, Sequence

from vit_jax.config import Config, current_names, flatten, get_config, resolve, with_overrides
from vit_jax.config.schema import SCHEMA
from vit_jax.runtime import files, processes
from vit_jax.runtime.errors import UserError, join_names, suggest
from vit_jax.runtime.files import SUMS, find_damage, read_json, warn, write_atomically, write_sums

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Settings that lengthen a finished run.
LENGTH_KEYS = tuple(key for key, setting in SCHEMA.items() if setting.resume == "longer")

# Results of a finished run; SHA256SUMS lists them and config.json.
RESULTS = ("metrics.jsonl", "test_report.json", "summary.json")

_RENAMED = {"legs": "stages"}  # keys in the files of earlier versions


def run_path(workdir: pathlib.Path, variant: str, seed: int) -> pathlib.Path:
    """Build the path of a run's folder."""
    return workdir / variant / f"seed_{seed}"


def run_name(folder: pathlib.Path) -> str:
    """Name the run in a folder, e.g. "patch_4 seed 0", for titles and messages."""
    return f"{folder.parent.name} {folder.name.replace('_', ' ')}"


def suggest_runs(path: pathlib.Path) -> str:
    """Suggest, after a semicolon, the runs nearest to a path that is not a run; "" without any."""
    base, missing = path, 0
    while not base.is_dir() and base != base.parent:
        base, missing = base.parent, missing + 1
    if os.path.realpath(base) in ("/", os.path.realpath(os.path.expanduser("~"))):
        return ""  # too large to search
    depths = range(missing + 1 if missing else 3)
    patterns = ["*/" * depth + "seed_*/config.json" for depth in depths]
    found = [str(file.parent) for pattern in patterns for file in sorted(base.glob(pattern))]
    return f"; {suggest(str(path), found, f'there is {join_names(found)}', 3)}" if found else ""


# {setting: (its key in the fingerprint of a run, name)} of the files that a run starts with.
INPUTS = {
    "init_from": ("weights", "weights"),
    "train.teacher": ("teacher", "weights of its teacher"),
    "data.relabel": ("relabel", "corrected labels"),
    "data.labels": ("labels", "labels"),
}
_DATA_PATHS = ("data.dir", "data.labels", "data.relabel")
# Keys of a fingerprint, and of the dicts in it, that earlier versions did not record.
ADDED_KEYS = ("files", "info", "test")
# Settings whose runs cannot be lengthened: the teacher or the end of patch dropout would change, or
# the run stopped early.
_FIXED_LENGTH = ("train.teacher", "train.patch_drop_percent", "train.stop_after_evaluations")


def current_keys(record: dict) -> dict:
    """Rename old keys of config.json, summary.json or a row of results.json to current ones."""
    return {_RENAMED.get(key, key): value for key, value in record.items()}


def input_path(flat: Mapping, key: str) -> pathlib.Path:
    """Find the file of a setting of `INPUTS` in flattened settings; it need not exist."""
    path = files.expand(str(flat[key]))
    if key == "data.labels" and not path.is_file():
        path = files.expand(str(flat["data.dir"])) / path
    return path


def plain_settings(config: Config, seed: int) -> dict:
    """Flatten the settings of a run to {"section.key": JSON value}."""
    flat = {k: list(v) if isinstance(v, tuple) else v for k, v in flatten(config).items()}
    for key in INPUTS:
        if flat[key]:
            flat[key] = str(input_path(flat, key).resolve())
    return flat | {"seed": seed}


def read_summary(folder: pathlib.Path, config: Config, seed: int) -> dict | None:
    """Read the summary of a finished run; None if it is unfinished or not started.

    Raises UserError if the folder belongs to a run with other settings.
    """
    record = read_config(folder)
    if record is None:
        return None
    # A setting added since then behaved like its default.
    before = plain_settings(resolve(get_config()), seed) | record["config"]
    now, summary = plain_settings(config, seed), read_finished(folder, record)
    changeable = {key for key, setting in SCHEMA.items() if setting.resume in ("any", "moved")}
    if not config.data.level_range:  # decided by the data, whose fingerprint is compared
        changeable.add("data.level_range")
    if config.freeze == "none_trained":
        changeable.update(LENGTH_KEYS)
    changed = [key for key in now if key not in changeable and before[key] != now[key]]
    for key in changed:
        trained = f"{folder} was trained with {key}={before[key]}"
        if key not in LENGTH_KEYS or not 0 < before[key] < now[key]:
            raise UserError(
                f"{trained}, now {key}={now[key]}: resume with the same settings, or choose "
                "another --workdir"
            )
        if summary is None:
            raise UserError(
                f"{trained} and is not finished: finish it before lengthening it to {now[key]}"
            )
        if unfit := [k for k in _FIXED_LENGTH if now[k] != SCHEMA[k].default]:
            raise UserError(
                f"{trained}: a run with {unfit[0]}={now[unfit[0]]} cannot be lengthened: choose "
                "another --workdir"
            )
    return None if changed else summary


def check_input(folder: pathlib.Path, config: Config, key: str, identity: dict | None) -> None:
    """Raise UserError if a run started with other contents than `key` names now, at any path.

    Args:
      folder: of the run.
      config: of the run, now.
      key: setting of `INPUTS`.
      identity: of the present contents, such as {"checksum"}; None if there are none, or if it is
        not recorded.
    """
    record = read_config(folder)
    if record is None:
        return
    kind, what = INPUTS[key]
    before, now = record["config"].get(key, ""), plain_settings(config, 0)[key]
    recorded, present = record.get("data", {}).get(kind, {}), identity or {}
    shared = recorded.keys() & present.keys()  # earlier versions recorded fewer
    is_same = bool(shared) and all(recorded[k] == present[k] for k in shared)
    if not is_same and (present or before != now):
        raise UserError(
            f"{folder} was started with other {what} ({before or f'no {key}'}) than the "
            f"present ones ({now or f'no {key}'}): restore those, or choose another --workdir"
        )


def read_finished(folder: pathlib.Path, record: dict) -> dict | None:
    """Read summary.json; None if it is missing, damaged or that of an earlier stage."""
    summary = current_keys(read_json(folder / "summary.json"))
    done = [stage["steps"] for stage in record.get("stages", [])]
    return summary if summary and summary["steps"] not in done else None


def discard_damage(folder: pathlib.Path) -> None:
    """Warn of damaged results of a finished run and remove its summary: it is re-evaluated."""
    for path, problem in find_damage(folder).items():
        if path.name in (*RESULTS, SUMS):
            warn(f"{path} {problem}: the run is evaluated again")
            (folder / "summary.json").unlink(missing_ok=True)


def is_same_data(recorded: dict | None, fingerprint: dict) -> bool:
    """Whether two fingerprints are those of the same data, weights and teacher.

    Keys that earlier versions did not record are compared if both have them; streamed datasets
    whose examples are no files have no "files" either.
    """
    if recorded is None:
        return False
    return _comparable(recorded, fingerprint) == _comparable(fingerprint, recorded)


def _comparable(one, other):
    """Leave out keys of `ADDED_KEYS` that another fingerprint, or a dict in it, lacks."""
    return {
        key: _comparable(value, other[key])
        if isinstance(value, dict) and isinstance(other.get(key), dict)
        else value
        for key, value in one.items()
        if key in other or key not in ADDED_KEYS
    }


def check_data(folder: pathlib.Path, fingerprint: dict) -> None:
    """Raise UserError if the run was started with other data, labels, weights or teacher."""
    record = read_config(folder)
    if record is not None and not is_same_data(record.get("data"), fingerprint):
        pair = record["data"], fingerprint
        before, now = _comparable(*pair), _comparable(*reversed(pair))
        changed = [what for k, what in INPUTS.values() if before.get(k) != now.get(k)]
        what = changed[0] if changed else "images"
        raise UserError(
            f"{folder} was started with other {what} than the present ones: restore those, or "
            "choose another --workdir"
        )


def has_moved(folder: pathlib.Path, config: Config) -> bool:
    """Whether the run in a folder was started with other paths of its data."""
    record = read_config(folder)
    if record is None:
        return False
    before, now = record["config"], plain_settings(config, 0)
    pairs = [(before.get(key, ""), now[key]) for key in _DATA_PATHS]
    return any(
        len({os.path.realpath(os.path.expanduser(path)) for path in pair}) > 1 for pair in pairs
    )


def update_data_paths(folder: pathlib.Path, config: Config) -> None:
    """Record where the data of a run are now; `check_data` must have accepted them."""
    if not processes.is_first() or not has_moved(folder, config):
        return
    record = read_json(folder / "config.json")
    now = plain_settings(config, 0)
    record["config"] |= {key: now[key] for key in _DATA_PATHS}
    sums = folder / SUMS
    is_finished = sums.exists() and "summary.json" in sums.read_text()
    sums.unlink(missing_ok=True)
    write_atomically(folder / "config.json", json.dumps(record, indent=2) + "\n")
    write_sums(folder, ("config.json", *(RESULTS if is_finished else ())))


def write_config(
    folder: pathlib.Path,
    config: Config,
    fingerprint: dict,
    total_steps: int,
    name: str,
    seed: int,
    notes: Sequence[str] = (),
) -> None:
    """Write config.json at the start of a run or of a further stage.

    Args:
      folder: the run's folder.
      config: resolved config of the run.
      fingerprint: fingerprint of the data, the initial weights and the teacher.
      total_steps: length of the run.
      name: name of the variant.
      seed: seed of the run.
      notes: on defects of the data, the initial weights and the teacher, for the report.

    Raises:
      UserError: the run was started with another fingerprint, or a longer run has no further step.
    """
    check_data(folder, fingerprint)
    processes.wait()  # until the others have read what the first one changes
    if not processes.is_first():
        return
    update_data_paths(folder, config)
    record, settings = read_config(folder), plain_settings(config, seed)
    if record is None:
        record = {"variant": name, "config": settings, "data": fingerprint} | provenance()
        record |= {"notes": list(notes)} if notes else {}
    else:
        summary = read_finished(folder, record)
        before = plain_settings(resolve(get_config()), seed) | record["config"]
        longer = [key for key in LENGTH_KEYS if before[key] != settings[key]]
        if summary is None or not longer:
            return
        if total_steps <= summary["steps"]:
            raise UserError(
                f"{folder} was trained for {summary['steps']} steps, to which {longer[0]}="
                f"{settings[longer[0]]} adds none"
            )
        # The finished stage is recorded before its summary can be replaced.
        stage = {key: value for key, value in summary.items() if key != "stages"}
        stage |= {key: record[key] for key in ("versions", "git_commit")}
        record |= {"stages": [*record.get("stages", []), stage], "config": settings} | provenance()
    (folder / SUMS).unlink(
        missing_ok=True
    )  # before config.json changes: a kill in between must not leave wrong digests
    write_atomically(folder / "config.json", json.dumps(record, indent=2) + "\n")
    write_sums(folder, ("config.json",))


def write_results(folder: pathlib.Path, report: dict, summary: dict) -> None:
    """Write test_report.json, summary.json and SHA256SUMS of a finished run.

    The test_report.txt of an earlier stage is removed.
    """
    (folder / "test_report.txt").unlink(missing_ok=True)
    write_atomically(folder / "test_report.json", json.dumps(report) + "\n")
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_sums(folder, ("config.json", *RESULTS))


def provenance() -> dict:
    """Collect package versions, the git commit and the checksum of the code."""
    versions = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        versions[package] = importlib.metadata.version(package)
    return {"versions": versions, "git_commit": _git_commit(), "code": code_checksum()}


@functools.cache
def code_checksum() -> int:
    """Compute the checksum of the sources that decide the results of a run; 0 without sources."""
    package, found = pathlib.Path(__file__).parents[1], 0
    others = ("cli", "configs", "explanation", "plots", "report")
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in others:
            found = zlib.crc32(path.read_bytes(), found)
    return found


def lock(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Lock the folder for this process; raise UserError if another process has locked it."""
    if not processes.is_first():
        return contextlib.nullcontext()
    return files.lock(folder / ".lock", f"{folder} is in use by another process")


def read_config(folder: pathlib.Path) -> dict | None:
    """Read config.json; None without a checkpoint, as the run then starts from scratch.

    Raises UserError if it is damaged.
    """
    if not saved_steps(folder):
        return None
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{path} is missing: remove {folder} to train that run again")
    record = None if path in find_damage(folder) else read_json(path)
    if not record:
        raise UserError(
            f"{path} is damaged, or was changed: restore it, or remove {folder} to train that run "
            "again"
        )
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # reported by config_of
        record["config"] = current_names(record["config"])
    return current_keys(record)


def config_of(folder: pathlib.Path, record: dict) -> Config:
    """Build the config of a run from its `read_config`; settings added since get their defaults.

    Raises UserError if a setting is unknown or of the wrong type, or if the file is malformed.
    """
    path = folder / "config.json"
    try:
        overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: it does not contain the settings of a run") from None
    return with_overrides(get_config(), overrides, str(path))


def saved_steps(folder: pathlib.Path) -> set[int]:
    """Find the steps of all checkpoints, intact or not."""
    names = (path.name for path in (folder / "checkpoints").glob("[0-9]*"))
    return {int(name) for name in names if name.isdigit()}  # others are being written


def last_saved_step(folder: pathlib.Path) -> int:
    """Find the step of the latest checkpoint, intact or not; 0 if there is none."""
    return max(saved_steps(folder), default=0)


def _git_commit():
    """Read the commit of this clone, "-dirty" if Python files changed; None if installed."""
    if not (ROOT / ".git").exists():  # site-packages may be inside another repository
        return None

    def git(*arguments):
        command = ["git", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "*.py")
    except OSError:  # git is not installed
        return None
    return commit + "-dirty" * bool(changed) if commit else None
