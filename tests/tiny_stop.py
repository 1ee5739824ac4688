"""Signals at chosen times, for tests."""

import contextlib


class Stop:
    """A stand-in for `runtime.signals.StopSignal`, with the signal `number` set by the test."""

    number, deferred, immediate = 0, contextlib.nullcontext, contextlib.nullcontext

    def asked(self):
        return bool(self.number)
