"""Ctrl-C at moments when what belongs together is being done together."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

_waiting: list[Any] = []


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the block is over. Not to be nested."""
    if not _in_main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    _waiting.clear()
    previous = signal.signal(signal.SIGINT, lambda _number, frame: _waiting.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        came, _waiting[:] = _waiting[:], []
        if came and callable(previous):
            previous(signal.SIGINT, came[0])


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
