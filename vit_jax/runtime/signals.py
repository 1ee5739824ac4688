"""The signals that end the program."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from vit_jax.runtime.progress import print_line

NOTICE = "stopping after this step; press Ctrl-C again to quit now"
_GRACE_SECONDS = 2.0  # between a signal that means now, and the end of a process that is too busy


class StopSignal:
    """SIGTERM and SIGINT end the program at once or, while deferred, after the current step.

    They raise SystemExit with 128 + the signal's number, as shells report it: 143 for SIGTERM. The
    context manager restores the earlier handlers. Outside of the main thread, where Python allows
    no handlers, none are installed.

    Attributes:
      number: of the signal that arrived; 0 if none did.
    """

    def __init__(self, owns_process: bool = True):
        """Install the handlers.

        `owns_process`: a second Ctrl-C, or a signal within `immediate`, may end the process while
        compiled code keeps Python's handlers waiting; False in a notebook.
        """
        self.number, self._deferred, self._asked, self._agree = 0, False, 0, None
        self._owns_process, self._quitting, self._before = owns_process, False, {}
        self._immediate = self._listens = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)

    def __enter__(self) -> "StopSignal":
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self._agree is not None:
            signal.raise_signal(signal.SIGTERM)  # which JAX forwards to all processes
        elif not self._deferred or self.number:  # a second signal means now
            self._quitting = True
            raise SystemExit(128 + number)
        else:
            self.number = number

    def share(self, agree: Callable[[int], bool]) -> None:
        """Stop several processes together, at whichever of them a signal arrives.

        JAX handles SIGTERM from then on: the first is deferred, a second one ends the process.
        `agree` maps the number of a call to whether all processes stop at theirs.
        """
        self._agree = agree

    def asked(self) -> bool:
        """Whether to stop now; several processes call it equally often and agree."""
        if self._agree is not None and not self.number:
            self._asked += 1
            self.number = signal.SIGTERM if self._agree(self._asked) else 0
        return bool(self.number)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Make a first signal within this context only set `asked`."""
        self._deferred = True
        try:
            with self._noticed():
                yield
        finally:
            self._deferred = False
        if self.number:  # it arrived after the last step
            raise SystemExit(128 + self.number)

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """End the process soon after a signal within this context, where nothing can be lost.

        Otherwise a signal waits for compiled code, such as the evaluation of a large batch. Several
        processes wait for it all the same, to stop together.
        """
        self._immediate = True
        try:
            with self._noticed():
                yield
        finally:
            self._immediate = False

    @contextlib.contextmanager
    def _noticed(self):
        """React to signals from a thread: compiled code delays Python's handlers by minutes."""
        if self._listens or not self._before:
            yield
            return
        self._listens = True
        reader, writer = socket.socketpair()
        writer.setblocking(False)  # as set_wakeup_fd demands
        thread = threading.Thread(target=self._listen, args=(reader,), daemon=True)
        thread.start()
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            writer.close()  # ends the thread
            thread.join()
            reader.close()
            self._listens = False

    def _listen(self, reader):
        pressed = False
        while received := reader.recv(1):
            number = received[0]
            again = pressed and number == signal.SIGINT
            if number == signal.SIGINT and not pressed and self._deferred:
                print_line(NOTICE)
            pressed = pressed or number == signal.SIGINT
            if number in self._before and self._owns_process and (again or self._immediate):
                quit_later = threading.Timer(_GRACE_SECONDS, self._quit, (number, again))
                quit_later.daemon = True
                quit_later.start()

    def _quit(self, number, again):
        # Python's handler, or the end of this call, still waits; a kill damages no checkpoint.
        if not self._quitting and (again or (self._immediate and self._agree is None)):
            print_line(f"stopped by {signal.Signals(number).name}; run the same command to resume")
            os._exit(128 + number)
