"""Reuse identical finished runs of other experiments instead of training them again."""

import contextlib
import json
import os
import pathlib
import shutil

from vit_jax.config import Config
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import SUMS, first_damage, read_json, write_atomically
from vit_jax.storage import run_folder


def find_identical(
    folder: pathlib.Path, config: Config, seed: int, fingerprint: dict
) -> pathlib.Path | None:
    """Find a finished run with the same settings, data, seed and code next to the workdir.

    Args:
      folder: the run's folder, WORKDIR/VARIANT/seed_K; runs in siblings of WORKDIR are compared.
      config: resolved config of the run.
      seed: seed of the run.
      fingerprint: fingerprint of its data and initial weights.

    Returns:
      The folder of an intact run, or None.
    """
    workdir = folder.parents[1]
    for other in sorted(workdir.parent.glob(f"*/*/{folder.name}")):
        if other.parents[1] == workdir or not _is_identical(other, config, seed, fingerprint):
            continue
        code = run_folder.code_checksum()
        if code and (run_folder.read_config(other) or {}).get("code") == code:
            return other
        name = run_folder.run_name(folder)
        print(
            f"{name}: {other} has the same settings, but is of other code: not reused", flush=True
        )
    return None


def _is_identical(folder, config, seed, fingerprint):
    try:
        record = run_folder.read_config(folder)
        if record is None or record.get("stages"):
            return False
        if not run_folder.is_same_data(record.get("data"), fingerprint):
            return False
        if run_folder.read_summary(folder, config, seed) is None:
            return False
    except UserError:  # other settings, or damaged
        return False
    verified = [folder, *(folder / "checkpoints").glob("[0-9]*")]
    return all((path / SUMS).exists() and first_damage(path) is None for path in verified)


def take_over(source: pathlib.Path, folder: pathlib.Path) -> dict:
    """Copy a finished run to an empty run folder, and return its summary.

    Checkpoints become hard links where the file system allows it. `reused_from` in summary.json
    names the source.
    """
    copy = folder.with_name(f"{folder.name}.copy")
    shutil.rmtree(copy, ignore_errors=True)
    own = (".lock", "figures", "suspects", "test_report.txt", "wandb", "wandb_id")
    ignore = shutil.ignore_patterns(*own)
    checkpoints = os.path.join(source, "checkpoints", "")

    def transfer(path, target):
        if str(path).startswith(checkpoints):  # never changed once written
            with contextlib.suppress(OSError):  # across file systems, or not supported
                os.link(path, target)
                return target
        return shutil.copy2(path, target)

    shutil.copytree(source, copy, copy_function=transfer, ignore=ignore)
    record = json.loads((copy / "config.json").read_text())
    record["variant"] = folder.parent.name
    write_atomically(copy / "config.json", json.dumps(record, indent=2) + "\n")
    summary = read_json(copy / "summary.json")
    summary |= {
        "name": folder.parent.name,
        "reused_from": os.path.relpath(source, folder.absolute().parents[2]),
    }
    run_folder.write_results(copy, read_json(copy / "test_report.json"), summary)
    shutil.rmtree(folder, ignore_errors=True)
    copy.rename(folder)
    return summary
