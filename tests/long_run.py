"""Trains for half an hour, and shows that nothing grows.

python tests/long_run.py --workdir=DIR [--minutes=30]

A small ViT goes through the digits, with an evaluation and a checkpoint after every fifth epoch.
While it does, a thread notes the process's memory, open files and threads, and when a program was
compiled. It prints a table, and ends with status 1 if memory still grew after the warm-up, if files
or threads became more, or if anything was compiled after the second checkpoint.
"""

import os
import pathlib
import signal
import sys
import threading
import time

import jax
import numpy as np
from storm import parse

from vit_jax import main

CONFIG = """
from vit_jax.config import presets

def get_config():
    config = presets.digits_vit()
    config.train.epochs, config.train.num_seeds = 1e6, 1
    config.log.every_steps = 5
    return config
"""
WARM_UP = 0.2  # of the time, in which caches and pools of memory fill
MOST_GROWTH = 0.02  # of the memory, from the warm-up's end to the end of the run


class Watch(threading.Thread):
    """Samples this process until its time is over, and then asks it to stop.

    Attributes:
      samples: [(seconds, bytes of resident memory, open files, threads, checkpoints saved)].
      compiled: seconds at which programs were compiled.
      all_done_once: seconds at which the second checkpoint was there; None before.
    """

    def __init__(self, checkpoints, seconds):
        """Does not start yet."""
        super().__init__(daemon=True)
        self._checkpoints, self._seconds, self._began = checkpoints, seconds, time.monotonic()
        self.samples, self.compiled, self.all_done_once, self._saved = [], [], None, set()
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.compiled.append(time.monotonic() - self._began)

    def run(self):
        """Samples every second."""
        page = os.sysconf("SC_PAGE_SIZE")
        while (now := time.monotonic() - self._began) < self._seconds:
            resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * page
            files, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
            self._saved.update(path.name for path in self._checkpoints.glob("[0-9]*"))
            self.samples.append((now, resident, files, threads, len(self._saved)))
            # By the second one, what follows a checkpoint was done too.
            if self.all_done_once is None and len(self._saved) > 1:
                self.all_done_once = now
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)


def summarize(watch) -> bool:
    """Prints what was seen, and returns whether nothing grew."""
    samples = np.array(watch.samples)
    for at in np.linspace(0, len(samples) - 1, 13).astype(int):
        seconds, resident, files, threads, saved = samples[at]
        print(
            f"{seconds / 60:5.1f} min  {resident / 2**20:7.1f} MiB  "
            f"{files:3.0f} files  {threads:3.0f} threads  {saved:4.0f} checkpoints"
        )
    warm = samples[int(WARM_UP * len(samples)) :]
    slope = np.polyfit(warm[:, 0], warm[:, 1], 1)[0]  # bytes a second
    grown, saves = slope * (warm[-1, 0] - warm[0, 0]), warm[-1, 4] - warm[0, 4]
    print(
        f"memory after the warm-up: {slope * 3600 / 2**20:+.1f} MiB an hour, "
        f"{100 * grown / warm[0, 1]:+.2f} % in {(warm[-1, 0] - warm[0, 0]) / 60:.0f} minutes, "
        f"{grown / 1024 / max(saves, 1):.0f} KiB for each of {saves:.0f} checkpoints"
    )
    halves = np.array_split(warm, 2)
    # Not the most: a checkpoint that is being written opens files, and a sample meets it or not.
    usual = [np.median(half[:, 2:4], 0) for half in halves]
    print(f"open files and threads, medians of both halves: {usual[0]}, {usual[1]}")
    late = [at for at in watch.compiled if not watch.all_done_once or at > watch.all_done_once]
    print(f"programs compiled: {len(watch.compiled)}, after the second checkpoint: {len(late)}")
    return grown < MOST_GROWTH * warm[0, 1] and (usual[1] <= usual[0]).all() and not late


def run(folder, minutes):
    """Trains in this process, and ends it with its status."""
    (folder / "long_run.py").write_text(CONFIG)
    watch = Watch(folder / "runs" / "base" / "seed_0" / "checkpoints", 60 * minutes)
    watch.start()
    sys.argv = ["main", f"--config={folder / 'long_run.py'}", f"--workdir={folder / 'runs'}"]
    try:
        main.run()
    except SystemExit as stopped:
        if stopped.code != 128 + signal.SIGTERM:
            raise
    sys.exit(not summarize(watch))


if __name__ == "__main__":
    args = parse(__doc__, ("--minutes", {"type": float, "default": 30}))
    run(args.workdir, args.minutes)
