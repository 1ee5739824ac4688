"""Every variant and seed of an experiment, and the table that compares them."""

import contextlib
import functools
import json
import math
import os
import pathlib
import shlex
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from vit_jax.config import Config, flatten, with_overrides
from vit_jax.config.loading import Experiment
from vit_jax.data import load_data
from vit_jax.data.folders import is_class_folder
from vit_jax.evaluation.differences import add_differences, compare_test_images
from vit_jax.runtime import processes, sharding
from vit_jax.runtime.errors import Diverged, UserError, join_names, single_line
from vit_jax.runtime.files import read_json, warn, write_atomically
from vit_jax.runtime.progress import StartTimes
from vit_jax.runtime.signals import StopSignal
from vit_jax.storage import run_folder
from vit_jax.storage.reuse import find_identical, take_over
from vit_jax.training.compiled import compile_steps
from vit_jax.training.features import FeatureCache
from vit_jax.training.hooks import Hooks
from vit_jax.training.loop import train
from vit_jax.training.parameters import ParameterTables
from vit_jax.training.rows import describe_run, describe_seeds, make_row, test_images
from vit_jax.training.seeds import seed_groups
from vit_jax.training.setup import input_identity, make_setup


def locate_teachers(
    workdir: pathlib.Path, configs: dict[str, Config]
) -> tuple[dict[str, Config], dict[str, pathlib.Path]]:
    """Replace the names of variants that teach by the folders of their first seeds.

    Args:
      workdir: of the experiment.
      configs: {variant: resolved config}.

    Returns:
      The configs with their teachers replaced, and {variant that learns: folder of its teacher}.
    """
    located, teachers = dict(configs), {}
    for name, config in configs.items():
        if (teacher := config.train.teacher) in configs:
            teachers[name] = run_folder.run_path(workdir, teacher, configs[teacher].seed)
            overrides = {"train.teacher": str(teachers[name].resolve())}
            located[name] = with_overrides(config, overrides, f"variant {name}")
    return located, teachers


def run_sweep(
    experiment: Experiment,
    configs: dict[str, Config],
    workdir: pathlib.Path,
    stop: StopSignal,
    *,
    only: str | None = None,
    arguments: Sequence[str] = (),
    hooks: Hooks | None = None,
    reuse: bool = True,
    began: float | None = None,
) -> None:
    """Train the unfinished runs of an experiment and write the results.

    Args:
      experiment: name, variants, published orders and ladder; `configs` stand for its config.
      configs: {variant: resolved, valid config}.
      workdir: of the experiment.
      stop: asked after every call of the training step.
      only: train this variant alone and write no results; None for all.
      arguments: of the command line, for results.json and the report.
      hooks: callbacks, which draw the figures and write the report.
      reuse: take over identical finished runs of the folders next to `workdir`.
      began: `time.monotonic` at the start of the program; the time to the first step of the first
        variant counts from there. None: from the start of that variant.

    Raises:
      UserError: a setting, the data or the workdir is not usable, or all variants diverged.
      Diverged: some did, after the results of the others were written.
    """
    if only is not None and only not in configs:
        raise UserError(f"--variant={only} is unknown: use one of {', '.join(configs)}")
    _check_workdir(workdir, experiment.name, configs)
    configs, teachers = locate_teachers(workdir, configs)
    chosen = {name: c for name, c in configs.items() if only in (None, name)}
    _check_runs(workdir, chosen, teachers)
    hooks = hooks or Hooks()
    runner = _Runner(chosen, teachers, workdir, stop, hooks, reuse, began)
    if next(iter(configs.values())).sharding.distributed:
        _ = runner.mesh  # started, to know which process is the first even if all is finished
        _check_shared(workdir)
    summaries, diverged = _train_variants(runner, chosen, teachers)
    if processes.is_first() and only is not None:
        print(f"{only} is finished; run the command without --variant to write the report")
    elif processes.is_first():
        variants = experiment.variants
        rows = [make_row(name, variants.get(name, {}), found) for name, found in summaries.items()]
        folds = compare_test_images(rows, configs, test_images(workdir, summaries))
        add_differences(rows, experiment.ladder)
        results = _write_results(workdir, experiment.name, rows, arguments, list(diverged), folds)
        with stop.immediate():
            finished = {name: configs[name] for name in summaries}
            published = experiment.published
            hooks.on_sweep_end(workdir, results, summaries, published, finished, arguments)
    processes.wait()  # while the first one draws
    if diverged:
        reason = next(iter(diverged.values()))
        raise Diverged(f"{join_names(list(diverged))} could not be trained: {reason}")


def _train_variants(runner, configs, teachers):
    """Train variants; return their summaries, and {variant: message} of those that diverged.

    Raises UserError if all of them diverge.
    """
    summaries, diverged = {}, {}  # messages: an exception would hold the state on the devices
    for name, config in configs.items():
        teacher = teachers[name].parent.name if name in teachers else ""
        if teacher in diverged and not _is_finished(teachers[name]):
            diverged[name] = f"{name} learns from {teacher}, which is not finished"
            continue
        try:
            summaries[name] = runner.summaries(name, config)
        except Diverged as error:
            diverged[name] = str(error)
            if name != list(configs)[-1]:
                warn(f"{error}; the other variants are trained")
    if not summaries:
        raise UserError(next(iter(diverged.values())))
    return summaries, diverged


def _write_results(workdir, experiment, rows, arguments, diverged, folds):
    """Write results.json, and return its contents."""
    results = {"experiment": experiment, "rows": rows}
    if folds:
        results["cross_validation"] = folds
    if diverged:
        results["diverged"] = diverged
    if arguments:
        results["command"] = shlex.join(["python", "-m", "vit_jax.main", *arguments])
    write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def _check_workdir(workdir, experiment, configs):
    for config in configs.values():
        if is_class_folder(workdir, config.data):
            raise UserError(
                f"--workdir={workdir} lies among the class folders of data.dir={config.data.dir} "
                "and would become one: give a --workdir outside of it"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written to: {error.strerror}") from None
    before = read_json(workdir / "results.json").get("experiment", experiment)
    if before != experiment:
        raise UserError(
            f"--workdir={workdir} holds the results of {before}, which {experiment} would "
            "overwrite: choose another --workdir"
        )


def _check_shared(workdir):
    """Raise UserError unless all processes see the same workdir, perhaps late on a shared disk."""
    token = int(processes.from_first(np.array(time.time_ns() % 2**31)))
    path, late = workdir / f".shared_{token}", time.monotonic() + 90
    if processes.is_first():
        path.touch()
    while not (is_seen := path.exists()) and time.monotonic() < late:
        time.sleep(0.2)
    is_shared = processes.all_true(is_seen)
    if processes.is_first():
        path.unlink()
    if not is_shared:
        raise UserError(
            f"--workdir={workdir} is not a folder that all processes share: give one on a shared "
            "disk, the same in all of them"
        )


def _check_runs(workdir, configs, teachers):
    """Raise UserError for conflicting settings or weights, before hours of training."""
    used = [teachers[name] for name in configs if name in teachers]
    unfinished = {path.resolve() for path in used if not _is_finished(path)}
    lengthened = set()
    for name, config in configs.items():
        teacher = teachers.get(name)
        if teacher is not None and teacher.parent.name not in configs:  # of --variant
            if not _is_finished(teacher):
                raise UserError(
                    f"variant {name} learns from variant {teacher.parent.name}, which is not "
                    f"finished: run --variant={teacher.parent.name} first"
                )
        flat = flatten(config)
        paths = {key: run_folder.input_path(flat, key) for key in run_folder.INPUTS}
        new, longer = [], []
        for seed, folder in _folders(workdir, name, config).items():
            for key, path in paths.items():
                known = flat[key] and path not in unfinished
                identity = input_identity(key, path) if known else None
                run_folder.check_input(folder, config, key, identity)
            if run_folder.read_summary(folder, config, seed) is None and _is_finished(folder):
                lengthened.add(folder)
            record = run_folder.read_config(folder)
            if record is None:
                new.append(seed)
            elif folder in lengthened or record.get("stages"):
                longer.append(folder)
            if teacher is not None and teacher in lengthened and run_folder.saved_steps(folder):
                raise UserError(
                    f"{folder} learns from variant {teacher.parent.name}, whose training would "
                    "be lengthened: choose another --workdir"
                )
        if new and longer:
            _check_lengths(config, new[0], longer[0])


def _check_lengths(config, seed, longer):
    """Raise UserError if a new seed would not be like one that is lengthened: it decays twice."""
    if config.optim.schedule not in ("constant", "reduce_on_plateau"):
        raise UserError(
            f"the learning rate of {longer} decays twice, as that run is lengthened, but that of a "
            f"new seed {seed} would decay once: first train that seed at the shorter length, with "
            f"--config.seed={seed} --config.train.num_seeds=1, or choose another --workdir"
        )


def _is_finished(folder):
    """Whether a run is finished, perhaps at a shorter length than that of its config now."""
    record = run_folder.read_config(folder)
    return record is not None and run_folder.read_finished(folder, record) is not None


def _folders(workdir, name, config):
    """Map the seeds of a variant to the folders of its runs."""
    seeds = range(config.seed, config.seed + config.train.num_seeds)
    return {seed: run_folder.run_path(workdir, name, seed) for seed in seeds}


class _Runner:
    """Starts the devices, loads the data and builds programs, each when first needed.

    A finished sweep needs none of them and returns at once.
    """

    def __init__(self, configs, teachers, workdir, stop, hooks, reuse, began):
        self._configs, self._workdir, self._stop, self._hooks = configs, workdir, stop, hooks
        self._teachers = teachers  # {variant: folder of the run whose predictions it learns}
        self._reuse, self._began, self._tables = reuse, began, ParameterTables()
        self._data, self._setup = {}, {}  # one entry each: the last one used
        self._init_from = ""  # of the last setup, whose weights are cached
        self._features = FeatureCache()

    @functools.cached_property
    def mesh(self):
        trains = [config.train for config in self._configs.values()]
        sizes = [train.batch_size // (train.accumulation_steps or 1) for train in trains]
        sharding_config = next(iter(self._configs.values())).sharding
        if sharding_config.distributed and os.environ.get("JAX_PROCESS_ID", "0") == "0":
            print("connecting to the other processes of this run", flush=True)
        sharding.start(sharding_config.distributed, sharding_config.cpu_devices, math.gcd(*sizes))
        if sharding_config.distributed:
            self._stop.share(processes.reached_stop)
        print("starting the devices", flush=True)
        if sharding_config.distributed:
            mesh = sharding.make_mesh()
            processes.mute_others()
        else:
            cpus = sharding_config.cpu_devices
            mesh = sharding.make_mesh(sharding.choose_devices(cpus, math.gcd(*sizes)))
        print(f"devices: {sharding.describe_devices(mesh)}", flush=True)
        return mesh

    def summaries(self, name, config):
        """Read the summaries of a variant's seeds, after training those that are not finished."""
        summaries, unfinished, folders = {}, {}, _folders(self._workdir, name, config)
        moved = [folder for folder in folders.values() if run_folder.has_moved(folder, config)]
        for seed, folder in folders.items():
            if processes.is_first():
                run_folder.discard_damage(folder)
            processes.wait()
            if name in self._teachers:  # which may have been trained again since the first check
                identity = input_identity("train.teacher", self._teachers[name])
                run_folder.check_input(folder, config, "train.teacher", identity)
            summaries[seed] = run_folder.read_summary(folder, config, seed)
            if not processes.from_first(summaries[seed] is not None):
                unfinished[seed] = folder
                continue
            print(f"{name} seed {seed}: already finished, skipped", flush=True)
            if processes.is_first() and not (folder / "test_report.txt").exists():
                self._hooks.on_run_end(folder)  # the run was killed before this
        if processes.from_first(bool(unfinished or moved)):
            origin = "variant" if self._began is None else "program"
            with contextlib.closing(StartTimes(origin, self._began)) as start:
                self._began = None
                self._load(config, start)  # checks that moved data are the same
                processes.wait()  # until the others have read what the first one changes
                for folder in moved:
                    run_folder.update_data_paths(folder, config)
                if unfinished:
                    self._train(name, config, unfinished, summaries, start)
            if len(summaries) > 1 and processes.is_first():  # others may see the summaries late
                print(f"{name}: {describe_seeds(list(summaries.values()))}", flush=True)
        return list(summaries.values())

    def _train(self, name, config, folders, summaries, start):
        """Train the seeds of {seed: folder} and put their summaries into `summaries`."""
        data = self._load(config, start)
        self._hooks.on_event("setup", 0)
        if name not in self._setup:
            self._setup = {name: self._make_setup(config, data)}
        setup = self._setup[name]
        if not setup.on_features:
            self._features = FeatureCache()  # frees those of an earlier variant
        if self._reuse:
            folders = self._take_over(setup, folders, summaries)
        if not folders:
            return
        groups = seed_groups(setup, folders)
        steps = compile_steps(setup, len(groups[0]))  # all groups are of one size
        self._tables.print(name, setup, steps.shapes)
        for group in groups:
            found = train(steps, data, group, name, self._stop, self._hooks, self._features, start)
            summaries |= zip(group, found, strict=True)
            start = None  # other seeds do not compile again
            for summary in found:
                print(describe_run(summary), flush=True)
            with self._stop.immediate():
                for folder in group.values() if processes.is_first() else ():
                    self._hooks.on_run_end(folder)
            processes.wait()

    def _take_over(self, setup, folders, summaries):
        """Reuse identical runs, put their summaries into `summaries`; return the other folders."""
        left = {}
        for seed, folder in folders.items():
            source = None
            if processes.is_first() and run_folder.read_config(folder) is None:
                source = find_identical(folder, setup.config, seed, setup.fingerprint)
            if not processes.from_first(source is not None):
                left[seed] = folder
            elif source is not None:
                folder.mkdir(parents=True, exist_ok=True)
                with run_folder.lock(folder):  # unless another process trains it
                    summaries[seed] = take_over(source, folder)
                run_folder.update_data_paths(folder, setup.config)
                name = run_folder.run_name(folder)
                print(f"{name}: identical to {source}, reused (--no-reuse trains it)", flush=True)
                self._hooks.on_run_end(folder)
            processes.wait()
            if seed not in left and source is None:
                summaries[seed] = run_folder.read_summary(folder, setup.config, seed)
        return left

    def _load(self, config, start):
        """Load the data of a config, and check the setup of all variants that use them."""
        key = json.dumps(config.data.to_dict(), sort_keys=True)
        if key not in self._data:
            self._data.clear()  # before the next dataset takes its memory
            self._features = FeatureCache()
            mesh, started = self.mesh, time.monotonic()
            self._hooks.on_event("load_data", 0)
            print(single_line(f"loading {config.data.name} {config.data.dir}".rstrip()), flush=True)
            with start.loading():
                self._data = {key: load_data(config.data, mesh)}
            print(f"data loaded in {time.monotonic() - started:.1f} s", flush=True)
            # Report what does not fit the data before hours of training the first variant.
            for name, other in self._configs.items():
                teacher = self._teachers.get(name)
                taught = teacher is None or _is_finished(teacher)
                if other.data == config.data and (taught or other is config):
                    setup = self._make_setup(other, self._data[key])
                    if other is config:  # which is trained next
                        self._setup = {name: setup}
                    for folder in _folders(self._workdir, name, other).values():
                        run_folder.check_data(folder, setup.fingerprint)
        return self._data[key]

    def _make_setup(self, config, data):
        if config.init_from not in ("", self._init_from):
            print(single_line(f"reading the initial weights of {config.init_from}"), flush=True)
        self._init_from = config.init_from or self._init_from
        config = with_overrides(config, data.decided, "the data")
        return make_setup(config, data, self.mesh)
