"""Processes that an MPI launcher has started."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from sparse_mixer._core.extras import require
from sparse_mixer.distributed.communicator import Array
from sparse_mixer.distributed.options import Options

LOOK, PAUSE = 1e-3, 1e-4
"""Seconds in which an exchange that goes on beside a computation is looked at, and then left alone, in turn."""


class MPI(Options):
    """The processes that ``mpirun -n 8 python train.py`` starts, through mpi4py (extra ``mpi``).

    MPI itself (MPICH, Open MPI, Intel MPI or what the cluster has) is not part of the extra; ``pip install mpich``
    has one for a single machine. A process that ends with an exception that nobody catches ends all others, too: for
    one that MPI does not hear of again, they would wait for ever.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    def __init__(
        self, comm: Any = None, *, bucket_bytes: int = 50_000_000, wire_dtype: str = "float32", overlap: bool = True
    ) -> None:
        """Take part in a group of processes.

        Args:
            comm: A communicator of mpi4py, of which a duplicate is used; None for ``MPI.COMM_WORLD``.
            bucket_bytes: About how many bytes of gradients are exchanged at a time.
            wire_dtype: ``"float32"``; or ``"bfloat16"``: gradients travel in half of their bits and are added up in
                float32. The result then depends on the number of processes.
            overlap: Exchange gradients in a thread of its own while others are still being computed. Needs an MPI
                that may be called from any thread, else it has no effect.

        Raises:
            ImportError: mpi4py is not installed, or finds no MPI.
        """
        super().__init__(bucket_bytes, wire_dtype, overlap)
        require("mpi4py", "mpi")
        self._mpi = mpi = require("mpi4py.MPI", "mpi")
        # Our messages must not meet those of the program.
        self._comm = (mpi.COMM_WORLD if comm is None else comm).Dup()
        self.rank, self.size = int(self._comm.rank), int(self._comm.size)
        self.overlap &= mpi.Query_thread() >= mpi.THREAD_SERIALIZED
        if self.size > 1:
            self._abort_on_exceptions()

    def alltoall(self, send: Array, lengths: Sequence[int], receive: Array) -> None:
        """See `Communicator`."""
        own = [lengths[self.rank]] * self.size
        self._finish(self._comm.Ialltoallv(self._bytes(send, lengths), self._bytes(receive, own)))

    def allgather(self, whole: Array, lengths: Sequence[int]) -> None:
        """See `Communicator`."""
        self._finish(self._comm.Iallgatherv(self._mpi.IN_PLACE, self._bytes(whole, lengths)))

    def broadcast(self, array: Array) -> None:
        """See `Communicator`."""
        self._comm.Bcast([array, self._mpi.BYTE])

    def exchange(self, record: bytes) -> list[bytes]:
        """See `Communicator`."""
        records: list[bytes] = self._comm.allgather(record)
        return records

    def abort(self, status: int) -> None:
        """See `Communicator`."""
        sys.stderr.flush()
        self._comm.Abort(status)

    def _finish(self, request: Any) -> None:
        """Wait for an exchange.

        Where it goes on beside a computation, this looks at it now and then. An MPI that waits by itself gives its turn
        away each time that it has found nothing new; where threads share processors it then gets hardly any.
        """
        if not self.overlap:
            request.Wait()
            return
        pause = time.perf_counter() + LOOK
        while not request.Test():
            if time.perf_counter() > pause:
                time.sleep(PAUSE)
                pause = time.perf_counter() + LOOK

    def _bytes(self, array: Array, lengths: Sequence[int]) -> list[Any]:
        counts = [length * array.itemsize for length in lengths]
        starts = [sum(counts[:number]) for number in range(len(counts))]
        return [array, counts, starts, self._mpi.BYTE]

    def _abort_on_exceptions(self) -> None:
        previous = sys.excepthook

        def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
            previous(kind, value, trace)
            if not self._mpi.Is_finalized():
                self.abort(1)

        sys.excepthook = hook

    def __repr__(self) -> str:
        return f"<MPI rank {self.rank} of {self.size}>"
