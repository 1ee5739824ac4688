"""The signals that end the program."""

import contextlib
import signal
from collections.abc import Callable


class StopSignal:
    """SIGTERM and SIGINT: end the program at once, or, while deferred, at the next good moment.

    The exit status is 128 + the signal's number, as the shell has it: 143 for SIGTERM. `number` is
    that of the signal that has come, 0 if none has.
    """

    def __init__(self):
        """Installs the handlers (the main thread must do this)."""
        self.number, self._deferred, self._asked, self._agree = 0, False, 0, None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number, frame):
        if self._agree is not None:
            signal.raise_signal(signal.SIGTERM)  # the one that JAX passes on to all
        elif not self._deferred or self.number:  # a second signal means now
            raise SystemExit(128 + number)
        else:
            self.number = number

    def share(self, agree: Callable[[int], bool]) -> None:
        """Lets several processes stop together, at whichever of them a signal arrives.

        JAX has SIGTERM from here on: the first is deferred, a second one ends the process.

        Args:
          agree: number of the call -> whether all processes stop at theirs.
        """
        self._agree = agree

    def asked(self) -> bool:
        """Returns whether to stop now; several processes ask equally often, and hear the same."""
        if self._agree is not None and not self.number:
            self._asked += 1
            self.number = signal.SIGTERM if self._agree(self._asked) else 0
        return bool(self.number)

    @contextlib.contextmanager
    def deferred(self):
        """Within this context a first signal only makes `asked` true."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.number:  # it came when nothing was left to stop
            raise SystemExit(128 + self.number)
