"""Train for half an hour and check for leaks.

python tests/long_run.py --workdir=DIR [--minutes=30]

Trains a small ViT on the digits, with an evaluation and a checkpoint every five epochs, while a
thread samples memory, open files, threads and compilations. Prints a table and exits with status 1
if memory grows after the warm-up, if files or threads increase, or if anything is compiled after
the second checkpoint.
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
WARM_UP = 0.2  # fraction of the time in which caches and memory pools fill
MAX_GROWTH = 0.02  # fraction of memory, from the end of the warm-up to the end of the run


class Watch(threading.Thread):
    """Sample this process until its time is over, then stop it.

    Attributes:
      samples: [(seconds, bytes of resident memory, open files, threads, checkpoints saved)].
      compiled: times of compilations in seconds.
      all_done_once: time of the second checkpoint in seconds; None before.
    """

    def __init__(self, checkpoints, seconds):
        """Prepare the thread without starting it."""
        super().__init__(daemon=True)
        self._checkpoints, self._seconds, self._began = checkpoints, seconds, time.monotonic()
        self.samples, self.compiled, self.all_done_once, self._saved = [], [], None, set()
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.compiled.append(time.monotonic() - self._began)

    def run(self):
        """Sample every second."""
        page = os.sysconf("SC_PAGE_SIZE")
        while (now := time.monotonic() - self._began) < self._seconds:
            resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * page
            files, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
            self._saved.update(path.name for path in self._checkpoints.glob("[0-9]*"))
            self.samples.append((now, resident, files, threads, len(self._saved)))
            # By the second one, everything that follows a checkpoint has run too.
            if self.all_done_once is None and len(self._saved) > 1:
                self.all_done_once = now
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)


def summarize(watch) -> bool:
    """Print the samples; return whether nothing grew."""
    samples = np.array(watch.samples)
    for at in np.linspace(0, len(samples) - 1, 13).astype(int):
        seconds, resident, files, threads, saved = samples[at]
        print(
            f"{seconds / 60:5.1f} min  {resident / 2**20:7.1f} MiB  "
            f"{files:3.0f} files  {threads:3.0f} threads  {saved:4.0f} checkpoints"
        )
    warm = samples[int(WARM_UP * len(samples)) :]
    slope = np.polyfit(warm[:, 0], warm[:, 1], 1)[0]  # bytes per second
    grown, saves = slope * (warm[-1, 0] - warm[0, 0]), warm[-1, 4] - warm[0, 4]
    print(
        f"memory after the warm-up: {slope * 3600 / 2**20:+.1f} MiB per hour, "
        f"{100 * grown / warm[0, 1]:+.2f} % in {(warm[-1, 0] - warm[0, 0]) / 60:.0f} minutes, "
        f"{grown / 1024 / max(saves, 1):.0f} KiB per checkpoint ({saves:.0f})"
    )
    halves = np.array_split(warm, 2)
    # Not the maxima: a sample may coincide with a checkpoint write, which opens files.
    usual = [np.median(half[:, 2:4], 0) for half in halves]
    print(f"open files and threads, medians of the first and second half: {usual[0]}, {usual[1]}")
    late = [at for at in watch.compiled if not watch.all_done_once or at > watch.all_done_once]
    print(f"programs compiled: {len(watch.compiled)}, after the second checkpoint: {len(late)}")
    return grown < MAX_GROWTH * warm[0, 1] and (usual[1] <= usual[0]).all() and not late


def run(folder, minutes):
    """Train in this process and exit with the status of the check."""
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
