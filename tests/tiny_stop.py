"""Sweeps in this process, and signals at chosen times, for tests."""

import contextlib

from vit_jax.config.loading import Experiment
from vit_jax.training.sweep import run_sweep


class Stop:
    """A stand-in for `runtime.signals.StopSignal`, with the signal `number` set by the test."""

    number, deferred, immediate = 0, contextlib.nullcontext, contextlib.nullcontext

    def asked(self):
        return bool(self.number)


def run_configs(configs, workdir, stop=None, sweep=None, name="demo", **options):
    """Train {variant: config} in this process, with `options` of `run_sweep`."""
    experiment = Experiment(name, next(iter(configs.values())), sweep or {})
    run_sweep(experiment, configs, workdir, stop or Stop(), **options)
