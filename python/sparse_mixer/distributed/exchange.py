"""Adding up the gradients of all ranks, a bucket at a time, while backward computes the next one."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparse_mixer import _native
from sparse_mixer.distributed.communicator import Array, pieces
from sparse_mixer.distributed.records import Records
from sparse_mixer.gradients import Gradients


class GradientExchange:
    """Replaces the gradients of this rank by the sum over all, in the memory where they are.

    A bucket is cut into a piece per rank. Every rank gets its piece of the bucket from all others, adds these up in the
    order of a balanced tree, and sends the sum to all.
    """

    def __init__(self, records: Records, num_threads: int) -> None:
        self._records = records
        self._communicator = communicator = records.communicator
        self._threads = num_threads
        self._bits = communicator.wire_dtype == "bfloat16"
        # Values of a bucket; a multiple of a cache line for every rank.
        unit = 16 * communicator.size
        self._length = max(1, communicator.bucket_bytes // 4 // unit) * unit
        self._received: Array = np.empty(0, np.uint16 if self._bits else np.float32)
        self._packed: Array = np.empty(0, np.uint16)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, gradients: Gradients, partial: Sequence[Gradients], present: Sequence[bool]) -> None:
        """Begin to exchange, as backward finishes the gradients; call `end` afterwards in any case.

        Args:
            gradients: Those that backward will now add to. Until `end`, nobody else may use them.
            partial: Sums of earlier batches of this rank, to be added first, from the last to the first.
            present: Which ranks have any batches in this update.
        """
        self._error = None
        leases = [buffer.lease() for buffer in gradients.buffers]
        earlier = [[buffer.lease() for buffer in one.buffers] for one in partial]
        for one in partial:
            for buffer in one.buffers:
                buffer.finish()
        work = (leases, earlier, list(present))
        self._thread = None
        if self._communicator.overlap:
            self._thread = threading.Thread(target=self._run, args=work, name="gradients")
            self._thread.start()
        else:
            self._work: tuple[Any, ...] | None = work

    def end(self, gradients: Gradients) -> None:
        """Declare all gradients finished, also if backward has failed, and wait until they are exchanged.

        Raises:
            Exception: The communicator has failed.
        """
        for buffer in gradients.buffers:
            buffer.finish()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        else:
            work, self._work = self._work, None
            self._run(*work or ([], [], []))
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        _wait_until_returned(gradients)

    def _run(
        self, leases: list[_native.GradientLease], earlier: list[list[_native.GradientLease]], present: list[bool]
    ) -> None:
        try:
            for part, lease in enumerate(leases):
                for start in range(0, len(lease), self._length):
                    end = min(start + self._length, len(lease))
                    lease.wait_ready(end)
                    bucket: Any = np.asarray(lease.slice(start, end))
                    for partial in reversed(earlier):
                        np.add(np.asarray(partial[part].slice(start, end)), bucket, out=bucket)
                    if len(present) > 1:
                        self._records.guarded(functools.partial(self._exchange, bucket, present))
                    del bucket
        except BaseException as error:
            self._error = error
        finally:
            # The lists are the caller's, too: what they hold would keep the leases.
            leases.clear()
            earlier.clear()

    def _exchange(self, bucket: Array, present: list[bool]) -> None:
        communicator, rank = self._communicator, self._communicator.rank
        lengths = pieces(bucket.size, communicator.size)
        start, own = sum(lengths[:rank]), lengths[rank]
        if self._received.size < communicator.size * own:
            self._received = np.empty(communicator.size * own, self._received.dtype)
        received = self._received[: communicator.size * own]
        mine = bucket[start : start + own]
        if not self._bits:
            communicator.alltoall(bucket, lengths, received)
            _native.tree_sum(received.reshape(communicator.size, own), present, mine, self._threads)
            communicator.allgather(bucket, lengths)
            return
        if self._packed.size < bucket.size:
            self._packed = np.empty(bucket.size, np.uint16)
        packed = self._packed[: bucket.size]
        _native.pack_bfloat16(bucket, packed, self._threads)
        communicator.alltoall(packed, lengths, received)
        _native.tree_sum(received.reshape(communicator.size, own), present, mine, self._threads)
        _native.pack_bfloat16(mine, packed[start : start + own], self._threads)
        communicator.allgather(packed, lengths)
        # All ranks go on with the same numbers, also those that have more bits of some.
        _native.unpack_bfloat16(packed, bucket, self._threads)


def _wait_until_returned(gradients: Gradients, seconds: float = 10.0) -> None:
    """Wait for libraries whose threads drop the arrays that they have sent a moment after they have sent them.

    Raises:
        RuntimeError: One keeps them.
    """
    end = time.monotonic() + seconds
    while any(buffer.is_leased() for buffer in gradients.buffers):
        if time.monotonic() > end:
            raise RuntimeError("communicator: it keeps arrays that it was given to send")
        time.sleep(1e-4)
