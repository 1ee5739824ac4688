"""Every variant and seed of an experiment, and the table that compares them."""

import functools
import json
import math
import pathlib
import re
import shlex
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from vit_jax import config as settings
from vit_jax import pretrained
from vit_jax.config import Config
from vit_jax.config.rules import validate
from vit_jax.data import load_data
from vit_jax.runtime import processes, sharding
from vit_jax.runtime.errors import UserError, truncate_repr
from vit_jax.runtime.files import read_json, write_atomically
from vit_jax.runtime.signals import StopSignal
from vit_jax.storage import run_folder
from vit_jax.storage.reuse import find_identical, take_over
from vit_jax.training.compiled import compile_steps
from vit_jax.training.features import FeatureCache
from vit_jax.training.hooks import Hooks
from vit_jax.training.loop import train
from vit_jax.training.seeds import seed_groups
from vit_jax.training.setup import make_setup, print_parameters

ACCURACIES = ("train_accuracy", "val_accuracy", "test_accuracy")


def make_variants(config: Config, sweep: dict[str, dict], given: set[str]) -> dict:
    """Make {variant: resolved, valid config}.

    Args:
      config: of the experiment, with the command line's overrides.
      sweep: {variant: {"section.key": value}}; empty for a single variant called "base".
      given: the keys that the command line overrides.

    Raises UserError if a variant is invalid, badly named, or overrides a key of the command line.
    """
    configs = {}
    for name, overrides in (sweep or {"base": {}}).items():
        if not re.fullmatch(r"[\w.+-]+", name):
            raise UserError(f"variant {name!r} must be named with letters, digits, '_.+-' only")
        if not isinstance(overrides, dict):
            raise UserError(f"variant {name!r} must be a dict of settings, not {overrides!r}")
        variant = settings.with_overrides(config, overrides, f"variant {name}")
        if variant.sharding != config.sharding:
            raise UserError(
                f"variant {name} changes the sharding settings, but all variants share one set of "
                "devices: give them on the command line"
            )
        configs[name] = _resolve(variant, given | set(overrides))
        validate(configs[name])
        if clash := given & set(overrides):
            validate(_resolve(config, given))  # the message on a wrong value is more helpful
            key = min(clash)
            what = f"variant {name} sets {key} itself"
            raise UserError(f"--config.{key} has no effect, because {what}")
    return configs


def _resolve(config, given):
    if not config.init_from:
        return settings.resolve(config, None, given)
    try:
        info = pretrained.read_info(pathlib.Path(config.init_from).expanduser())
    except UserError as error:
        raise UserError(f"init_from={config.init_from}: {error}") from None
    except (OSError, ValueError, RuntimeError):  # too long, with a null byte, of an unknown user
        path = truncate_repr(config.init_from)
        raise UserError(f"init_from={path} cannot be the path of a folder") from None
    return settings.resolve(config, info["settings"], given)


def run_sweep(
    experiment: str,
    configs: dict[str, Config],
    sweep: dict[str, dict],
    published: dict[str, str],
    workdir: pathlib.Path,
    only: str | None,
    stop: StopSignal,
    arguments: Sequence[str] = (),
    hooks: Hooks | None = None,
    reuse: bool = True,
) -> None:
    """Train the unfinished runs of an experiment and write the results.

    Args:
      experiment: name, for results.json.
      configs: {variant: resolved, valid config}.
      sweep: {variant: overrides}, for results.json.
      published: {source: the order of variants that it found}, for the report.
      workdir: of the experiment.
      only: train this variant alone and write no results; None for all.
      stop: asked after every call of the training step.
      arguments: of the command line, for results.json and the report.
      hooks: callbacks, which draw the figures and write the report.
      reuse: take over identical finished runs of the folders next to `workdir`.

    Raises:
      UserError: a setting, the data or the workdir is not usable.
    """
    if only is not None and only not in configs:
        raise UserError(f"--variant={only} is unknown: use one of {', '.join(configs)}")
    _check_workdir(workdir, experiment)
    chosen = {name: c for name, c in configs.items() if only in (None, name)}
    for name, config in chosen.items():  # settings that clash are reported before hours are spent
        for seed, folder in _folders(workdir, name, config).items():
            run_folder.read_summary(folder, config, seed)
    hooks = hooks or Hooks()
    summaries, runner = {}, _Runner(chosen, workdir, stop, hooks, reuse)
    if next(iter(configs.values())).sharding.distributed:
        _ = runner.mesh  # started, to know which process is the first even if all is finished
    for name, config in chosen.items():
        summaries[name] = runner.summaries(name, config)
    if processes.is_first():
        if only is None:
            rows = [make_row(name, sweep.get(name, {}), summaries[name]) for name in configs]
            results = {"experiment": experiment, "rows": rows}
            if arguments:
                results["command"] = shlex.join(["python", "-m", "vit_jax.main", *arguments])
            write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
            hooks.on_sweep_end(workdir, results, summaries, published, configs, arguments)
        else:
            accuracies = ", ".join(f"{summary['test_accuracy']:.4f}" for summary in summaries[only])
            print(f"{only}: test accuracy {accuracies}; without --variant the table is written")
    processes.wait()  # while the first one draws


def _check_workdir(workdir, experiment):
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written to: {error.strerror}") from None
    before = read_json(workdir / "results.json").get("experiment", experiment)
    if before != experiment:
        raise UserError(
            f"--workdir={workdir} holds the results of {before}, which {experiment} would "
            "overwrite: choose another"
        )


def _folders(workdir, name, config):
    """Map the seeds of a variant to the folders of its runs."""
    seeds = range(config.seed, config.seed + config.train.num_seeds)
    return {seed: run_folder.run_path(workdir, name, seed) for seed in seeds}


def make_row(name: str, overrides: dict, summaries: list[dict]) -> dict:
    """Make a variant's row of results.json from its seeds' summaries."""
    row = {"variant": name, "overrides": overrides}
    row |= {key: summaries[0][key] for key in ("num_params", "num_trainable_params")}
    for key in ACCURACIES:
        values = [summary[key] for summary in summaries]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        row[key] = {"mean": float(np.mean(values)), "std": std, "values": values}
    speeds = [s["images_per_second"] for s in summaries if s["images_per_second"] is not None]
    row["images_per_second"] = float(np.mean(speeds)) if speeds else None
    if reused := [s["reused_from"] for s in summaries if "reused_from" in s]:
        row["reused_from"] = reused
    stages = [stage for summary in summaries for stage in summary.get("legs", [])]
    if stages:  # of a run that was lengthened
        row |= {"epochs": summaries[0]["epochs"], "legs": []}
        for epochs in sorted({stage["epochs"] for stage in stages}):
            same = [stage for stage in stages if stage["epochs"] == epochs]
            if len(same) == len(summaries):  # else it was not the length of all seeds
                row["legs"].append(make_row(name, overrides, same) | {"epochs": epochs})
    return row


class _Runner:
    """Starts the devices, loads the data and builds programs, each when first needed.

    A finished sweep needs none of them and returns at once.
    """

    def __init__(self, configs, workdir, stop, hooks, reuse):
        self._configs, self._workdir, self._stop, self._hooks = configs, workdir, stop, hooks
        self._reuse = reuse
        self._data, self._setup = {}, {}  # one entry each: the last one used

    @functools.cached_property
    def mesh(self):
        trains = [config.train for config in self._configs.values()]
        sizes = [train.batch_size // (train.accumulation_steps or 1) for train in trains]
        sharding_config = next(iter(self._configs.values())).sharding
        sharding.start(sharding_config.distributed, sharding_config.cpu_devices, math.gcd(*sizes))
        if sharding_config.distributed:
            self._stop.share(processes.reached_stop)
        return sharding.make_mesh()

    def summaries(self, name, config):
        """Read the summaries of a variant's seeds, after training those that are not finished."""
        summaries, unfinished = {}, {}
        for seed, folder in _folders(self._workdir, name, config).items():
            if processes.is_first():
                run_folder.discard_damage(folder)
            processes.wait()
            summaries[seed] = run_folder.read_summary(folder, config, seed)
            if not processes.from_first(summaries[seed] is not None):
                unfinished[seed] = folder
                continue
            print(f"{name} seed {seed}: finished before, not trained again", flush=True)
            if processes.is_first() and not (folder / "test_report.txt").exists():
                self._hooks.on_run_end(folder)  # the run was killed before this
        if unfinished:
            self._train(name, config, unfinished, summaries)
        return list(summaries.values())

    def _train(self, name, config, folders, summaries):
        """Train the seeds of {seed: folder} and put their summaries into `summaries`."""
        data = self._load(config)
        started = time.monotonic()
        self._hooks.on_event("setup", 0)
        if name not in self._setup:
            self._setup = {name: make_setup(config, data, self.mesh)}
        setup, cache = self._setup[name], FeatureCache()
        if self._reuse:
            folders = self._take_over(setup, folders, summaries)
        if not folders:
            return
        groups = seed_groups(setup, folders)
        steps = compile_steps(setup, len(groups[0]))  # all groups are of one size
        if processes.is_first():
            print_parameters(setup, steps.shapes)
            print(f"{name}: model built in {time.monotonic() - started:.1f} s", flush=True)
        for group in groups:
            found = train(steps, data, group, name, self._stop, self._hooks, cache)
            summaries |= zip(group, found, strict=True)
            for folder in group.values() if processes.is_first() else ():
                self._hooks.on_run_end(folder)
            processes.wait()

    def _take_over(self, setup, folders, summaries):
        """Take over identical runs, put their summaries into `summaries`, return what is left."""
        left = {}
        for seed, folder in folders.items():
            source = None
            if processes.is_first() and run_folder.read_config(folder) is None:
                source = find_identical(folder, setup.config, seed, setup.fingerprint)
            if not processes.from_first(source is not None):
                left[seed] = folder
            elif source is not None:
                summaries[seed] = take_over(source, folder)
                self._hooks.on_run_end(folder)
                name = run_folder.run_name(folder)
                print(f"{name}: identical to {source}, taken over (--no-reuse trains it)")
            processes.wait()
            if seed not in left and source is None:
                summaries[seed] = run_folder.read_summary(folder, setup.config, seed)
        return left

    def _load(self, config):
        key = json.dumps(config.data.to_dict(), sort_keys=True)
        if key not in self._data:
            self._data.clear()  # before the next dataset takes its memory
            started = time.monotonic()
            self._hooks.on_event("load_data", 0)
            self._data = {key: load_data(config.data, self.mesh)}
            print(f"data loaded in {time.monotonic() - started:.1f} s", flush=True)
            # Before hours are spent on the first variant; no table compares different data.
            for name, other in self._configs.items():
                if other.data == config.data:
                    setup = make_setup(other, self._data[key], self.mesh)
                    if other is config:  # which is trained next
                        self._setup = {name: setup}
                    for folder in _folders(self._workdir, name, other).values():
                        run_folder.check_data(folder, setup.fingerprint)
        return self._data[key]
