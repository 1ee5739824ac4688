"""The signals that end the program."""

import contextlib
import signal


class StopSignal:
    """SIGTERM and SIGINT: end the program at once, or, while deferred, at the next good moment.

    The exit status is 128 + the signal's number, as the shell has it: 143 for SIGTERM.
    """

    def __init__(self):
        """Installs the handlers (the main thread must do this)."""
        self.number, self._deferred = 0, False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number, frame):
        if not self._deferred or self.number:  # a second signal means now
            raise SystemExit(128 + number)
        self.number = number

    @contextlib.contextmanager
    def deferred(self):
        """Within this context a first signal only sets `number`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.number:  # it came when nothing was left to stop
            raise SystemExit(128 + self.number)
