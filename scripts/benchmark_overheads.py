"""Overheads that `benchmark.py` measures: start-up, and the main thread's work per step."""

import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from benchmark_modes import first_state, make_config, make_steps

from vit_jax.runtime import sharding

ROOT = pathlib.Path(__file__).resolve().parents[1]


def measure_resident(spec, steps=20) -> dict:
    """Print the main-thread time of a training step on a device-resident dataset."""
    import cProfile
    import pstats

    import jax

    compiled, images, _ = make_steps(make_config(spec))
    state, key = first_state(compiled), jax.random.key(0)

    def train(state, steps):
        batches = compiled.batches(images, [0], 0, lambda step: 1)
        for _, batch in itertools.islice(batches, steps):
            state = sharding.block_on_cpu(compiled.train(state, key, batch))
        return state

    state = jax.block_until_ready(train(state, 2))
    wall, own = time.perf_counter(), time.thread_time()
    state = jax.block_until_ready(train(state, steps))
    wall, own = (time.perf_counter() - wall) / steps, (time.thread_time() - own) / steps
    print(f"a step takes {1000 * wall:.1f} ms, {1000 * own:.2f} ms of it on the main thread")
    profile = cProfile.Profile()
    profile.runcall(train, state, steps)
    profiled: dict = pstats.Stats(profile).get_stats_profile().func_profiles
    calls = sum(int(str(one.ncalls).split("/")[0]) for one in profiled.values()) / steps
    print(f"{calls:.0f} Python calls per step; most time is spent in")
    for name, one in sorted(profiled.items(), key=lambda item: -item[1].tottime)[:8]:
        print(f"  {1000 * one.tottime / steps:8.3f} ms per step  {name} ({one.ncalls} calls)")
    return {"step_seconds": wall, "main_thread_seconds": own, "calls": calls}


def measure_startup(data_name) -> dict:
    """Print the seconds from the main command to its first step, with cold and warm caches."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            command = [sys.executable, "-u", "-m", "vit_jax.main", "--variant=patch_4"]
            command += ["--config=configs/cifar_patch.py", f"--config.data.name={data_name}"]
            command += [f"--workdir={folder}/{name}", "--config.train.num_seeds=1"]
            caches = {"XDG_CACHE_HOME": folder, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
            environment = os.environ | caches
            start = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
            )
            for line in process.stdout:
                if match := re.search(r"first step.*", line):
                    results[name] = {"seconds": time.perf_counter() - start}
                    print(f"{name}: {results[name]['seconds']:.1f} s, {match[0]}", flush=True)
                    break
            process.kill()
            process.wait()
            if name not in results:
                sys.exit("error: the main command exited before its first step")
    return results
