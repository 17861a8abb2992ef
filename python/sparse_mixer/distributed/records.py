"""Small records that all ranks exchange, and what one of them must know of the others' failures."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from sparse_mixer.distributed.communicator import Array, Communicator

T = TypeVar("T")
Record = dict[str, Any]

_FAILED = "failed"
# Bytes of an array that are sent at once.
_PIECE = 1 << 28


class RankError(RuntimeError):
    """Another rank has failed, and training cannot go on without it."""


class Interrupted(SystemExit):
    """A signal to one of the ranks has ended training on all of them; the program ends with status 130.

    All have made the same updates, and the state is saved if the run has a path for it.
    """


class Records:
    """Exchanges records, so that whatever fails on one rank is an error on all, and none waits for it in vain.

    Attributes:
        communicator: The processes.
        is_broken: Whether the communicator itself has failed: there is nobody to tell.
    """

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator
        self.is_broken = False
        self._is_told = False

    def begin(self) -> None:
        """What has failed so far is over."""
        self._is_told = False

    def exchange(self, record: Mapping[str, Any]) -> list[Record]:
        """The records of all ranks, in their order; they are made of what JSON has.

        Raises:
            RankError, FloatingPointError: Another rank has failed.
        """
        records: list[Record] = [json.loads(text) for text in self._send(json.dumps(record).encode())]
        for rank, other in enumerate(records):
            if _FAILED in other and rank != self.communicator.rank:
                self._is_told = True
                kind, text = other[_FAILED]
                if kind == FloatingPointError.__name__:
                    raise FloatingPointError(text)
                raise RankError(f"rank {rank} failed: {kind}: {text}")
        return records

    def tell(self, error: BaseException) -> None:
        """Tell the others, who are about to exchange records, of what has failed here; unless they know."""
        if self.is_broken or self._is_told:
            return
        self._is_told = True
        failure = [type(error).__name__, str(error)]
        self._send(json.dumps({_FAILED: failure}).encode())

    def broadcast_bytes(self, content: bytes) -> bytes:
        """The bytes of rank 0."""
        length = np.array([len(content)], np.int64)
        self.broadcast(length)
        array = np.zeros(int(length[0]), np.uint8)
        if not self.communicator.rank:
            array[:] = np.frombuffer(content, np.uint8)
        self.broadcast(array)
        return array.tobytes()

    def broadcast(self, array: Array) -> None:
        """Fill a contiguous array with that of rank 0."""
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _PIECE):
            self.guarded(functools.partial(self.communicator.broadcast, flat[start : start + _PIECE]))

    def guarded(self, call: Callable[[], T]) -> T:
        """The result of a call of the communicator."""
        try:
            return call()
        except BaseException:
            self.is_broken = True
            raise

    def _send(self, record: bytes) -> list[bytes]:
        return self.guarded(lambda: self.communicator.exchange(record))
