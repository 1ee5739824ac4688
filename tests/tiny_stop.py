"""Signals that come when a test wants them."""

import contextlib


class Stop:
    """Stands for `runtime.signals.StopSignal`: no signal comes but that whose `number` is set."""

    number, deferred = 0, contextlib.nullcontext

    def asked(self):
        return bool(self.number)
