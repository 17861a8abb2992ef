"""What training needs of a means to talk to other processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

Array = npt.NDArray[Any]


@runtime_checkable
class Communicator(Protocol):
    """Processes that talk to each other. All of them make the same calls in the same order.

    Calls come from one thread at a time, though not always from the same one. They wait until this process's part is
    done. Arrays have one axis and are contiguous; pieces are counted in elements.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        bucket_bytes: About how many bytes of gradients are exchanged at a time.
        wire_dtype: ``"float32"``; or ``"bfloat16"``: gradients travel in half of their bits and are added up in
            float32.
        overlap: Whether gradients are exchanged by a thread of its own while others are still being computed.
    """

    rank: int
    size: int
    bucket_bytes: int
    wire_dtype: str
    overlap: bool

    def alltoall(self, send: Array, lengths: Sequence[int], receive: Array) -> None:
        """Send a piece to every process, and receive one from each.

        Args:
            send: The pieces one after the other, the one for process `r` with ``lengths[r]`` elements.
            lengths: The same on all processes.
            receive: Gets ``size`` pieces of ``lengths[rank]`` elements, in the order of the processes.
        """
        ...

    def allgather(self, whole: Array, lengths: Sequence[int]) -> None:
        """Fill `whole` with the pieces of all processes.

        Args:
            whole: Pieces one after the other, the one of process `r` with ``lengths[r]`` elements. This process's own
                is there already.
            lengths: The same on all processes.
        """
        ...

    def broadcast(self, array: Array) -> None:
        """Fill `array` with that of process 0."""
        ...

    def exchange(self, record: bytes) -> list[bytes]:
        """The records of all processes, a few kilobytes each, in their order."""
        ...

    def abort(self, status: int) -> None:
        """End all processes at once, this one with `status`, as far as that can be done."""
        ...


def pieces(length: int, count: int) -> list[int]:
    """Lengths of `count` pieces of `length` elements: equal and multiples of 16, but for the last ones."""
    whole = -(-length // count)
    whole += -whole % 16
    return [min(whole, max(0, length - number * whole)) for number in range(count)]
