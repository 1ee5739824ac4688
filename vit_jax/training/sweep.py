"""Every variant and seed of an experiment, and the table that compares them."""

import functools
import json
import math
import pathlib
import re
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
from vit_jax.runtime.files import write_atomically
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
    """Returns {variant: resolved, valid config}.

    Args:
      config: the experiment's, with the command line's overrides.
      sweep: {variant: {"section.key": value}}; empty for a single variant called "base".
      given: the keys that the command line overrides.

    Raises:
      UserError: a variant is invalid, badly named, or overrides a key of the command line.
    """
    sweep = sweep or {"base": {}}
    configs = {}
    for name, overrides in sweep.items():
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
            validate(_resolve(config, given))  # a wrong value is the better complaint
            raise UserError(
                f"--config.{min(clash)} has no effect, because variant {name} sets {min(clash)} "
                "itself"
            )
    return configs


def _resolve(config, given):
    weights = None
    if config.init_from:
        try:
            folder = pathlib.Path(config.init_from).expanduser()
            weights = pretrained.read_info(folder)["settings"]
        except UserError as error:
            raise UserError(f"init_from={config.init_from}: {error}") from None
        except (OSError, ValueError, RuntimeError):  # too long, unspeakable, of an unknown user
            path = truncate_repr(config.init_from)
            raise UserError(f"init_from={path} cannot be the path of a folder") from None
    return settings.resolve(config, weights, given)


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
    """Trains what is not finished yet and writes the results.

    Args:
      experiment: the name that results.json carries.
      configs: {variant: resolved, valid config}.
      sweep: {variant: overrides}, for results.json.
      published: {source: the order that it found}, to stand beside ours.
      workdir: of the experiment.
      only: train this variant alone and write no results; None for all.
      stop: the signals' state.
      arguments: of the command line, for the report.
      hooks: callbacks, which draw and write the report.
      reuse: take over identical finished runs of the folders next to `workdir`.

    Raises:
      UserError: bad input, in one sentence.
    """
    if only is not None and only not in configs:
        raise UserError(f"--variant={only} is unknown: use one of {', '.join(configs)}")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written to: {error.strerror}") from None
    _check_experiment(workdir, experiment)
    chosen = {name: c for name, c in configs.items() if only in (None, name)}
    for name, config in chosen.items():  # settings that clash are told before hours are spent
        for seed in seeds_of(config):
            run_folder.read_summary(run_folder.run_path(workdir, name, seed), config, seed)
    hooks = hooks or Hooks()
    summaries, runner = {}, _Runner(chosen, workdir, stop, hooks, reuse)
    if next(iter(configs.values())).sharding.distributed:
        runner.start()  # for this process to know whether it is the first, even if all is finished
    for name, config in chosen.items():
        summaries[name] = runner.summaries(name, config)
    if processes.is_first():
        if only is None:
            rows = [make_row(name, sweep.get(name, {}), summaries[name]) for name in configs]
            results = {"experiment": experiment, "rows": rows}
            write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
            hooks.on_sweep_end(workdir, results, summaries, published, configs, arguments)
        else:
            accuracies = ", ".join(f"{summary['test_accuracy']:.4f}" for summary in summaries[only])
            print(f"{only}: test accuracy {accuracies}; without --variant the table is written")
    processes.wait()  # while the first one draws


def seeds_of(config: Config) -> range:
    """Returns the seeds of a config's runs."""
    return range(config.seed, config.seed + config.train.num_seeds)


def _check_experiment(workdir, experiment):
    try:
        before = json.loads((workdir / "results.json").read_text())["experiment"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no table yet, or none that would be missed
    if before != experiment:
        raise UserError(
            f"--workdir={workdir} holds the results of {before}, which {experiment} would "
            "overwrite: choose another"
        )


def make_row(name: str, overrides: dict, summaries: list[dict]) -> dict:
    """Returns a variant's row of results.json from its seeds' summaries."""
    row = {"variant": name, "overrides": overrides}
    row |= {key: summaries[0][key] for key in ("num_params", "num_trainable_params")}
    for key in ACCURACIES:
        values = [summary[key] for summary in summaries]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        row[key] = {"mean": float(np.mean(values)), "std": std, "values": values}
    speeds = [s["images_per_second"] for s in summaries if s["images_per_second"] is not None]
    row |= {"images_per_second": float(np.mean(speeds)) if speeds else None}
    if reused := [s["reused_from"] for s in summaries if "reused_from" in s]:
        row["reused_from"] = reused
    if any("legs" in summary for summary in summaries):  # of a run that was lengthened
        row["epochs"] = summaries[0]["epochs"]
        row["legs"] = []
        for epochs in sorted({leg["epochs"] for s in summaries for leg in s.get("legs", [])}):
            same = [leg for s in summaries for leg in s.get("legs", []) if leg["epochs"] == epochs]
            if len(same) == len(summaries):  # else it was not the length of all seeds
                row["legs"].append(make_row(name, overrides, same) | {"epochs": epochs})
    return row


class _Runner:
    """Starts the devices, loads the data and builds programs, each when first needed.

    A sweep that is finished needs none of them, and so answers at once.
    """

    def __init__(self, configs, workdir, stop, hooks, reuse):
        self._configs, self._workdir, self._stop, self._hooks = configs, workdir, stop, hooks
        self._reuse = reuse
        self._data, self._setup = {}, {}  # one entry each: the last one used

    @functools.cached_property
    def mesh(self):
        trains = [config.train for config in self._configs.values()]
        sharding_config = next(iter(self._configs.values())).sharding
        sharding.start(
            sharding_config.distributed,
            sharding_config.cpu_devices,
            math.gcd(*(train.batch_size // (train.accumulation_steps or 1) for train in trains)),
        )
        if sharding_config.distributed:
            self._stop.share(processes.reached_stop)
        return sharding.make_mesh()

    def start(self):
        """Start the devices, where they are not needed yet."""
        return self.mesh

    def summaries(self, name, config):
        """Return the summaries of a variant's seeds, training those that are not finished."""
        folders = {
            seed: run_folder.run_path(self._workdir, name, seed) for seed in seeds_of(config)
        }
        summaries, unfinished = {}, {}
        for seed, folder in folders.items():
            if processes.is_first():
                run_folder.discard_damage(folder)
            processes.wait()
            summaries[seed] = run_folder.read_summary(folder, config, seed)
            if not processes.from_first(summaries[seed] is not None):
                unfinished[seed] = folder
                continue
            print(f"{name} seed {seed}: finished before, not trained again", flush=True)
            if processes.is_first() and not (folder / "test_report.txt").exists():
                self._hooks.on_run_end(folder)  # it was killed before this
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
            self._data.clear()  # before the next dataset takes its room
            started = time.monotonic()
            self._hooks.on_event("load_data", 0)
            self._data = {key: load_data(config.data, self.mesh)}
            print(f"data loaded in {time.monotonic() - started:.1f} s", flush=True)
            # Before hours are spent on the first variant, and so that no table is made of two sets.
            for name, other in self._configs.items():
                if other.data == config.data:
                    setup = make_setup(other, self._data[key], self.mesh)
                    if other is config:  # which is trained next
                        self._setup = {name: setup}
                    for seed in seeds_of(other):
                        folder = run_folder.run_path(self._workdir, name, seed)
                        run_folder.check_data(folder, setup.fingerprint)
        return self._data[key]
