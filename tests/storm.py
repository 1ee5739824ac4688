"""Kill a sweep repeatedly and check that nothing is lost.

python tests/storm.py --workdir=DIR [--kills=40] [--seed=0] | --short

A sweep on the digits, with every kind of state, runs once undisturbed and once with kills: each
comes a random delay after entering a random phase, and the same command resumes the sweep. In the
end, states, log entries and results are bit-identical to those of the undisturbed sweep. All
processes are forked from this one, which has imported vit_jax and done nothing else: this saves
seconds for each.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time

import forked  # first: makes vit_jax importable without installation
import numpy as np

from vit_jax.cli.hooks import ReportHooks
from vit_jax.storage import checkpoint
from vit_jax.storage.writers import read_jsonl
from vit_jax.training import clock

CONFIG = """
from vit_jax.config import presets

def get_config():
    config = presets.digits_vit()
    config.model.patch_size, config.model.hidden_size, config.model.depth = 4, 16, 1
    config.model.num_heads, config.model.mlp_dim, config.model.dropout_rate = 2, 16, 0.1
    config.model.attention = "differential"
    config.optim.ema_decay, config.optim.warmup_epochs = 0.99, 0.5
    config.optim.schedule, config.optim.plateau_patience = "reduce_on_plateau", 0
    config.optim.plateau_threshold = 0.9  # so that every evaluation is a plateau
    config.train.vmap_seeds, config.train.accumulation_steps = "always", 2
    config.train.epochs, config.train.eval_every_epochs = {epochs}, {eval_every}
    config.log.every_steps, config.log.explain_images = 7, 0
    return config

def sweep():
    kinds = ("always", "always", "never")
    return {{
        f"seeds_{{2 * i}}": {{"seed": 2 * i, "data.device_resident": kinds[i % 3]}}
        for i in range({variants})
    }}
"""
CLOCK = ("command", "wall_seconds", "train/images_per_second", "images_per_second")

# The phases in which a sweep is killed, with the largest delay in seconds.
TRAINING = {"data": 0.3, "compilation": 1.0, "step": 0.02, "evaluation": 0.05, "save": 0.08}
ENDING = {"final evaluation": 0.1, "summary.json": 0, "figures": 0.5}
RESULTS = {"results.json": 0, "results.md": 0, "report.html": 0, "report": 1.0}
DELAYS = TRAINING | ENDING | RESULTS


PHASES = {
    "load_data": "data",
    "compile": "compilation",
    "step": "step",
    "evaluate": "evaluation",
    "save": "save",
    "final_evaluation": "final evaluation",
}


class Killer(ReportHooks):
    """Send this process a signal, a delay after it enters a phase for the count-th time."""

    def __init__(self, number, phase, count, delay, diary):
        super().__init__()
        self.number, self.phase, self.count, self.delay = number, phase, count, delay
        self.diary, self.compiling = diary, False

    def arm(self):
        """Prepare the process to be killed."""
        if self.phase == "step":
            clock.CALL_SECONDS = 0.0  # single steps, so that the signal may come between any two
        replace = pathlib.Path.replace

        def replacing(path, target):
            self._enter(target.name)
            return replace(path, target)

        pathlib.Path.replace = replacing

    def on_event(self, event, step):
        """Count the phases that training enters."""
        self.compiling = event == "compile"
        self._enter(PHASES.get(event))

    def on_run_end(self, folder):
        """Count the drawing of figures."""
        self._enter("figures")
        super().on_run_end(folder)

    def on_sweep_end(self, *args):
        """Count the writing of the report."""
        self._enter("report")
        super().on_sweep_end(*args)

    def _enter(self, phase):
        if phase == self.phase:
            self.count -= 1
            if self.count == 0:
                threading.Thread(target=self._kill, daemon=True).start()
                if self.delay == 0 and self.phase != "save":
                    time.sleep(0.5)  # so that the signal comes here

    def _kill(self):
        time.sleep(self.delay)
        while self.delay == 0 and self.phase == "save" and not self._is_saving():
            time.sleep(0.001)
        self.diary.write_text(self._where())
        os.kill(os.getpid(), self.number)

    def _is_saving(self):
        unfinished = self.diary.parent.glob("*/*/*/checkpoints/*.orbax-checkpoint-tmp*")
        return any(unfinished)

    def _where(self):
        """Name what the main thread is doing; saves run in the background."""
        frame, names = sys._current_frames()[threading.main_thread().ident], []
        while frame:
            if "/vit_jax/" in frame.f_code.co_filename:
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        if self._is_saving():
            return "inside a save"
        if self.delay == 0:
            return f"before {self.phase} is replaced"
        if self.compiling and "train" in names:
            return "compilation"
        for name, phase in (
            ("load_data", "data preparation"),
            ("make_setup", "building the program"),
            ("restore", "restoring"),
            ("write_figures", "drawing figures"),
            ("write_report", "writing the report"),
            ("finish", "final evaluation"),
            ("evaluate_and_save", "evaluation"),
            ("train", "between steps" if names[:1] == ["exit_if_stopped"] else "within a step"),
        ):
            if name in names:
                return phase
        return "start or end of the program"


def run(arguments, log, killer=None):
    """Run the main command in a subprocess; return its status, -9 after SIGKILL."""

    @contextlib.contextmanager
    def around():
        if killer:
            killer.arm()
        try:
            yield
        finally:
            with log.with_name("modules.txt").open("a") as file:
                file.write("\n".join([*sys.modules, ""]))

    return forked.run(arguments, log, log, around=around(), hooks=killer)


def plan(kills, seed):
    """Yield (signal, phase, count of its entries, delay in seconds).

    Three quarters are SIGKILL, and three quarters fall into training; the end of each variant gets
    one, and the rest fall into the writing of results.
    """
    rng = random.Random(seed)
    results = max(1, kills // 8)
    endings = kills // 8
    phases = [list(TRAINING)[i % len(TRAINING)] for i in range(kills - results - endings)]
    rng.shuffle(phases)
    for i in range(endings):
        phases.insert((i + 1) * len(phases) // endings, list(ENDING)[i % len(ENDING)])
    phases += [list(RESULTS)[i % len(RESULTS)] for i in range(results)]
    signals = [signal.SIGTERM] * (kills // 4) + [signal.SIGKILL] * (kills - kills // 4)
    rng.shuffle(signals)
    for number, phase in zip(signals, phases, strict=True):
        most = {"step": 12, "evaluation": 2, "save": 3}.get(phase, 1)
        yield number, phase, rng.randint(1, most), rng.uniform(0, DELAYS[phase])


def last_checkpoint(folder):
    """Find the folder of a run's last checkpoint."""
    steps = [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    return max(steps, key=lambda path: int(path.name))


def read_state(folder):
    """Read the arrays of a run's last checkpoint; initialises JAX, so no forks may follow."""
    import jax

    tree = checkpoint.load_arrays(last_checkpoint(folder) / "state")
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(tree)}


def checksums(folder):
    """Read the checksums of the last state and of the evaluated variables."""
    notes = json.loads((last_checkpoint(folder) / "notes" / "metadata").read_text())
    return {key: notes[key] for key in ("checksum", "variables_checksum")}


def assert_same_run(folder, expected, read_state=read_state):
    """Check that states, log entries and summaries are bit-identical, except for times."""
    rows = read_rows(expected)
    assert read_rows(folder) == rows, f"{folder}: log entries differ"
    steps = [(row["step"], "val/loss" in row) for row in rows]
    assert steps == sorted(set(steps)), f"{folder}: steps are missing or repeated"
    states = read_state(folder), read_state(expected)
    assert states[0].keys() == states[1].keys()
    for key, value in states[1].items():
        assert np.array_equal(value, states[0][key]), f"{folder}: {key} differs"
    for name in ("summary.json", "test_report.json"):
        one, other = (json.loads((f / name).read_text()) for f in (folder, expected))
        assert without_clock(one) == without_clock(other), f"{folder}: {name} differs"
    for name in ("test_report.txt", "figures/confusion.png", "figures/curves/metrics.png"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), f"{name} differs"


def assert_same_sweep(workdir, expected, read_state=read_state):
    """Check that two sweeps have bit-identical runs and results, except for times."""
    folders = sorted(path.relative_to(expected) for path in expected.glob("*/seed_*"))
    assert folders == sorted(path.relative_to(workdir) for path in workdir.glob("*/seed_*"))
    for folder in folders:
        assert_same_run(workdir / folder, expected / folder, read_state)
    results = [json.loads((w / "results.json").read_text()) for w in (workdir, expected)]
    assert without_clock(results[0]) == without_clock(results[1]), "results.json differs"
    assert (workdir / "report.html").exists() and (workdir / "results.md").exists()


# Before the first checkpoint, mid-epoch or at a log step, in the second save, and at the end.
SHORT = (
    (signal.SIGKILL, "step", 9, 0.001),
    (signal.SIGTERM, "evaluation", 1, 0.001),
    (signal.SIGKILL, "save", 2, 0),
    (signal.SIGTERM, "step", 7, 0.001),
    (signal.SIGKILL, "results.json", 1, 0),
)


def read_rows(folder):
    """Read metrics.jsonl without times."""
    return [without_clock(row) for row in read_jsonl(folder / "metrics.jsonl")]


def without_clock(tree):
    """Remove times and the command, with its folders, from nested dicts and lists."""
    if isinstance(tree, dict):
        return {k: without_clock(v) for k, v in tree.items() if k not in CLOCK}
    return [without_clock(v) for v in tree] if isinstance(tree, list) else tree


def write_config(folder, variants, epochs, eval_every):
    """Write the sweep's config file; return the command line."""
    path = folder / "storm_config.py"
    path.write_text(CONFIG.format(variants=variants, epochs=epochs, eval_every=eval_every))
    return [f"--config={path}"]


def weather(arguments, workdir, moments, log):
    """Run a sweep to its end with kills; return (location, signal) of each."""
    diary, fallen = workdir.parent / "killed_at.txt", []
    for number, phase, count, delay in moments:
        for later in (delay, 0.0):  # the sweep may end within the delay
            diary.unlink(missing_ok=True)
            status = run(arguments, log, Killer(number, phase, count, later, diary))
            if diary.exists():
                break
            print(f"  {phase} was not reached: exit status {status}")
            assert status == 0, log.read_text()
        else:
            continue
        fallen.append((diary.read_text(), number.name))
        print(f"  {len(fallen)}: {number.name} {fallen[-1][0]} (aimed at: {phase})", flush=True)
        # A signal after the last step ends the process all the same.
        assert status == (-9 if number == signal.SIGKILL else 143), log.read_text()
    assert run(arguments, log) == 0, log.read_text()
    return fallen


def storm(moments, variants, eval_every, folder):
    """Run the sweep with and without kills, compare the results, and print a summary."""
    arguments = write_config(folder, variants=variants, epochs=3.0, eval_every=eval_every)
    began, log = time.monotonic(), folder / "log.txt"
    calm, stormy = folder / "undisturbed" / "sweep", folder / "stormy" / "sweep"
    assert run([*arguments, f"--workdir={calm}"], log) == 0, log.read_text()
    print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
    fallen = weather([*arguments, f"--workdir={stormy}"], stormy, moments, log)
    assert "Traceback" not in log.read_text(), log
    assert_same_sweep(stormy, calm)
    for (location, name), count in sorted(collections.Counter(fallen).items()):
        print(f"{count:3} {name:8} {location}")
    runs = len(list(calm.glob("*/seed_*")))
    print(
        f"{len(fallen)} kills in {time.monotonic() - began:.0f} s: states, log entries and "
        f"results of {runs} runs are bit-identical"
    )


def parse(doc, *options):
    """Parse the command line: the options and --workdir, a folder to create."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder")
    for name, settings in options:
        parser.add_argument(name, **settings)
    args = parser.parse_args()
    try:
        args.workdir.mkdir(parents=True)
    except OSError as error:
        parser.error(f"--workdir={args.workdir}: {error.strerror}")
    return args


if __name__ == "__main__":
    args = parse(
        __doc__,
        ("--kills", {"type": int, "default": 40}),
        ("--seed", {"type": int, "default": 0}),
        ("--short", {"action": "store_true", "help": "five kills, for the test suite"}),
    )
    if args.short:
        storm(SHORT, variants=1, eval_every=1.0, folder=args.workdir)
    else:
        moments = plan(args.kills, args.seed)
        storm(moments, variants=max(1, args.kills // 7), eval_every=0.25, folder=args.workdir)
