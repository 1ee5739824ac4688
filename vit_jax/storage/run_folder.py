"""The folder of one run: whose it is, what it was trained with, and whether it is finished."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess

from vit_jax.config import Config, flatten, get_config, with_overrides
from vit_jax.runtime import processes
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import SUMS, find_damage, read_sums, warn, write_atomically, write_sums

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Settings that a run may be continued with although they differ: they change no result.
FREE_KEYS = (
    "data.download",
    "data.keep_decoded",
    "data.num_threads",
    "data.resident",
    "data.resident_max_gib",
    "log.explain_images",
    "log.figures_every",
    "log.tensorboard",
    "log.wandb",
    "sharding.cpu_devices",
    "sharding.distributed",
    "sharding.fsdp",
    "train.eval_batch_size",
    "train.num_seeds",
    "train.seeds_at_once",
    "train.steps_at_once",
)

# The length of a run, of which a finished one may be given more.
LENGTH_KEYS = ("train.epochs", "train.steps")


# What a finished run cannot do without, and what is drawn from it.
RESULTS = ("metrics.jsonl", "test_report.json", "summary.json")
DRAWN = (
    *("figures/confusion.png", "figures/curves/metrics.png", "figures/curves/optimization.png"),
    *("figures/kernel_magnitudes.png", "test_report.txt"),
)


def plain_settings(config: Config, seed: int) -> dict:
    """Returns {"section.key": JSON value} of a run."""
    flat = {k: list(v) if isinstance(v, tuple) else v for k, v in flatten(config).items()}
    if config.init_from:
        flat["init_from"] = str(pathlib.Path(config.init_from).expanduser().resolve())
    return flat | {"seed": seed}


def _place(folder):
    return os.path.realpath(os.path.expanduser(folder))


def read_summary(folder: pathlib.Path, config: Config, seed: int) -> dict | None:
    """Returns the summary of a finished run, None if it is unfinished or not begun.

    Raises:
      UserError: the folder belongs to a run with other settings.
    """
    record = read_config(folder)
    if record is None:
        return None
    before, now = record["config"], plain_settings(config, seed)
    default = plain_settings(get_config(), seed)
    # A prepared set may have moved, and its contents are compared; a folder is known by its place.
    free = FREE_KEYS if config.data.name == "folder" else (*FREE_KEYS, "data.dir")
    if config.freeze == "none_trained":
        free += LENGTH_KEYS
    summary = read_finished(folder, record)
    for key in now:
        # A key that was added since then had the effect of its default.
        old = before.get(key, default[key])
        same_place = key == "data.dir" and _place(old) == _place(now[key])
        if key in free or old == now[key] or same_place:
            continue
        if key in LENGTH_KEYS and 0 < old < now[key]:  # the run is to be lengthened
            if summary is not None:
                continue
            raise UserError(
                f"{folder} is to be trained with {key}={old} and not finished: finish it before "
                f"going on to {now[key]}"
            )
        raise UserError(
            f"{folder} was trained with {key}={old}, now {key}={now[key]}: go on with the same "
            "settings, or choose another --workdir"
        )
    return summary if not _lengthened(before, now, free) else None


def _lengthened(before, now, free):
    return any(key not in free and before[key] != now[key] for key in LENGTH_KEYS)


def read_finished(folder: pathlib.Path, record: dict) -> dict | None:
    """Returns summary.json; None if there is none, none to read, or that of an earlier leg."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    done = [leg["steps"] for leg in record.get("legs", [])]
    return summary if summary["steps"] not in done else None


def discard_damage(folder: pathlib.Path) -> None:
    """Warns of what is damaged of a finished run, and removes it so that it is made again.

    Results are made again from the checkpoints, figures from the results.
    """
    sums = read_sums(folder)
    if sums is not None and RESULTS[-1] not in sums:  # not finished, or not in these settings
        return
    bad = {str(path.relative_to(folder)): what for path, what in find_damage(folder).items()}
    bad.pop("config.json", None)  # which cannot be made again
    for name, what in bad.items():
        again = "drawn" if name in DRAWN else "evaluated"
        warn(f"{folder / name} {what}: the run is {again} again")
    if {*RESULTS, SUMS} & bad.keys():
        (folder / RESULTS[-1]).unlink(missing_ok=True)
    if bad:
        (folder / DRAWN[-1]).unlink(missing_ok=True)


def check_data(folder: pathlib.Path, fingerprint: dict) -> None:
    """Raises UserError if the run has begun with other data or weights than these."""
    record = read_config(folder)
    if record is not None and record.get("data") != fingerprint:
        what = (
            "images" if record["data"].get("weights") == fingerprint.get("weights") else "weights"
        )
        raise UserError(
            f"{folder} began with other {what} than those that are there now: bring the former "
            "ones back, or choose another --workdir"
        )


def write_config(
    folder: pathlib.Path,
    config: Config,
    fingerprint: dict,
    total_steps: int,
    name: str,
    seed: int,
) -> None:
    """Writes config.json, if the run has not begun or begins another leg.

    Args:
      folder: of the run.
      config: resolved.
      fingerprint: of the data and the weights to begin with.
      total_steps: of the run.
      name: of the variant.
      seed: of the run.

    Raises:
      UserError: the run has begun, with other data or weights, or a lengthening adds no step.
    """
    check_data(folder, fingerprint)
    if not processes.is_first():
        return
    record, settings = read_config(folder), plain_settings(config, seed)
    if record is None:
        record = {"variant": name, "config": settings, "data": fingerprint} | made_with()
    else:
        summary = read_finished(folder, record)
        if summary is None or not _lengthened(record["config"], settings, ()):
            return
        if total_steps <= summary["steps"]:
            key = next(key for key in LENGTH_KEYS if record["config"][key] != settings[key])
            raise UserError(
                f"{folder} was trained for {summary['steps']} steps, to which {key}="
                f"{settings[key]} adds none"
            )
        # The leg that ends is noted before its summary can be replaced.
        leg = {key: value for key, value in summary.items() if key != "legs"}
        leg |= {key: record[key] for key in ("versions", "git_commit")}
        record |= {"legs": [*record.get("legs", []), leg], "config": settings} | made_with()
    (folder / SUMS).unlink(missing_ok=True)  # a kill is not to leave what would contradict it
    write_atomically(folder / "config.json", json.dumps(record, indent=2) + "\n")
    write_sums(folder, ("config.json",))


def write_results(folder: pathlib.Path, report: dict, summary: dict) -> None:
    """Writes what a finished run has: test_report.json, summary.json, and their digests.

    What an earlier leg had drawn from its own goes.
    """
    (folder / "test_report.txt").unlink(missing_ok=True)
    write_atomically(folder / "test_report.json", json.dumps(report) + "\n")
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_sums(folder, RESULTS)


def made_with() -> dict:
    """Returns the versions of packages and the commit that a run is made with."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    versions = {"python": platform.python_version()} | versions
    return {"versions": versions, "git_commit": _git_commit()}


@contextlib.contextmanager
def lock(folder: pathlib.Path):
    """Holds the folder for this process; raises UserError if another one holds it."""
    if not processes.is_first():
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by another process") from None
        yield


def read_config(folder: pathlib.Path) -> dict | None:
    """Returns config.json; None if there is no checkpoint, so that the run has not begun.

    Raises UserError if it is damaged.
    """
    if not any((folder / "checkpoints").glob("[0-9]*")):
        return None
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{path} is missing: remove {folder} to train that run again")
    try:
        if path in find_damage(folder):
            raise ValueError
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(
            f"{path} is damaged, or was changed: bring it back as it was, or remove {folder} to "
            "train that run again"
        ) from None


def config_of(folder: pathlib.Path, record: dict) -> Config:
    """Returns the config of a run from its config.json, as `read_config` returned it.

    A setting that was added since then has its default.

    Raises UserError if one is unknown or of the wrong type, or if the file holds something else.
    """
    path = folder / "config.json"
    try:
        kept = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: it does not hold the settings of a run") from None
    return with_overrides(get_config(), kept, str(path))


def last_saved_step(folder: pathlib.Path) -> int:
    """Returns the step of the latest checkpoint, damaged or not; 0 without any."""
    names = (path.name for path in (folder / "checkpoints").glob("[0-9]*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def _git_commit():
    """Read the commit of this clone, "-dirty" if Python files differ; None if installed."""
    if not (ROOT / ".git").exists():  # site-packages may lie in a repository of something else
        return None

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "*.py")
    except OSError:  # no git here
        return None
    return commit + "-dirty" * bool(changed) if commit else None
