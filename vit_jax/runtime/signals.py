"""The signals that end the program."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from vit_jax.runtime.progress import print_line

NOTICE = "stopping after this step; press Ctrl-C again to quit now"
_GRACE_SECONDS = 2.0  # between a second Ctrl-C and the end of a process that does not react to it


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

        `owns_process`: a second Ctrl-C may end the process while compiled code keeps Python's
        handlers waiting; False in a notebook.
        """
        self.number, self._deferred, self._asked, self._agree = 0, False, 0, None
        self._owns_process, self._quitting, self._before = owns_process, False, {}
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
            with self._noticed() if self._before else contextlib.nullcontext():
                yield
        finally:
            self._deferred = False
        if self.number:  # it arrived after the last step
            raise SystemExit(128 + self.number)

    @contextlib.contextmanager
    def _noticed(self):
        """Acknowledge Ctrl-C from a thread: compiled code delays Python's handlers by minutes."""
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

    def _listen(self, reader):
        pressed = False
        while received := reader.recv(1):
            if received[0] != signal.SIGINT:
                continue
            if not pressed:
                print_line(NOTICE)
            elif self._owns_process:
                quit_later = threading.Timer(_GRACE_SECONDS, self._quit)
                quit_later.daemon = True
                quit_later.start()
            pressed = True

    def _quit(self):
        if not self._quitting:  # Python's handler still waits; a kill damages no checkpoint
            os._exit(128 + signal.SIGINT)
