"""Signals that end a run after the update that is being made."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from sparse_mixer.distributed.communicator import Communicator

STATUS = 130
"""What a program ends with after a signal."""

# A terminal sends Ctrl-C to the launcher, which passes it on, and to all of its processes.
_SAME_SECONDS = 2.0


class Signals:
    """Whether SIGINT, SIGTERM or SIGUSR1 has come. A second one, two seconds later, ends all processes at once.

    SIGUSR1 unless the program has a handler of its own: Open MPI's launcher passes it on, and kills all after others.
    """

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._first: float | None = None

    @property
    def came(self) -> bool:
        """Whether one has come."""
        return self._first is not None

    def _notice(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._first >= _SAME_SECONDS:
            self._communicator.abort(STATUS)

    @contextlib.contextmanager
    def noticed(self) -> Iterator[None]:
        """Notice signals in this block, instead of what else would happen; only Python's main thread can."""
        self._first = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
            numbers.append(signal.SIGUSR1)
        before = [signal.signal(number, self._notice) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
