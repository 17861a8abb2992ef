"""Processes that PyTorch's launcher, or Ray Train, has started."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparse_mixer._core.extras import require
from sparse_mixer.distributed.communicator import Array
from sparse_mixer.distributed.options import Options


class Torch(Options):
    """The processes of a group of ``torch.distributed`` with the backend ``"gloo"`` (extra ``torch``).

    As ``torchrun --nproc-per-node 8 train.py`` starts them, or Ray Train's ``TorchTrainer``.

    Attributes:
        rank: Number of this process in the group, from 0.
        size: Number of processes in the group.
    """

    def __init__(
        self, group: Any = None, *, bucket_bytes: int = 50_000_000, wire_dtype: str = "float32", overlap: bool = True
    ) -> None:
        """Take part in a group of processes.

        Args:
            group: A process group of the backend gloo; None for the whole one. If there is none yet, it is made from
                the environment that launchers set.
            bucket_bytes: As in `MPI`.
            wire_dtype: As in `MPI`.
            overlap: As in `MPI`.

        Raises:
            ImportError: PyTorch is not installed.
            ValueError: The group has another backend.
        """
        super().__init__(bucket_bytes, wire_dtype, overlap)
        self._torch = require("torch", "torch")
        self._distributed = distributed = require("torch.distributed", "torch")
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
            atexit.register(self._end)
        self._group = distributed.group.WORLD if group is None else group
        if (backend := distributed.get_backend(self._group)) != "gloo":
            raise ValueError(f"group: expected the backend gloo, which works on the memory of CPUs, got {backend}")
        self.rank, self.size = distributed.get_rank(self._group), distributed.get_world_size(self._group)
        self._ranks = [distributed.get_global_rank(self._group, rank) for rank in range(self.size)]

    def _end(self) -> None:
        """Wait for gloo's threads: one that drops an array while the interpreter goes down aborts the process."""
        self._group = None
        if self._distributed.is_initialized():
            self._distributed.destroy_process_group()

    def alltoall(self, send: Array, lengths: Sequence[int], receive: Array) -> None:
        """See `Communicator`."""
        own = [lengths[self.rank] * receive.itemsize] * self.size
        sent = [length * send.itemsize for length in lengths]
        self._distributed.all_to_all_single(self._tensor(receive), self._tensor(send), own, sent, group=self._group)

    def allgather(self, whole: Array, lengths: Sequence[int]) -> None:
        """See `Communicator`."""
        # gloo gathers pieces of one length alone.
        starts = [sum(lengths[:rank]) for rank in range(self.size)]
        works = [
            self._distributed.broadcast(
                self._tensor(whole[start : start + length]), source, group=self._group, async_op=True
            )
            for start, length, source in zip(starts, lengths, self._ranks, strict=True)
            if length
        ]
        for work in works:
            work.wait()

    def broadcast(self, array: Array) -> None:
        """See `Communicator`."""
        self._distributed.broadcast(self._tensor(array), self._ranks[0], group=self._group)

    def exchange(self, record: bytes) -> list[bytes]:
        """See `Communicator`."""
        length = np.array([len(record)], np.int64)
        lengths = np.zeros(self.size, np.int64)
        lengths[self.rank] = length[0]
        self.allgather(lengths, [1] * self.size)
        sizes = lengths.tolist()
        starts = [sum(sizes[:rank]) for rank in range(self.size)]
        whole = np.zeros(sum(sizes), np.uint8)
        whole[starts[self.rank] : starts[self.rank] + len(record)] = np.frombuffer(record, np.uint8)
        self.allgather(whole, sizes)
        return [whole[start : start + size].tobytes() for start, size in zip(starts, sizes, strict=True)]

    def abort(self, status: int) -> None:
        """See `Communicator`: this process ends, and calls of the others fail because of that."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def _tensor(self, array: Array) -> Any:
        return self._torch.from_numpy(array.view(np.uint8))

    def __repr__(self) -> str:
        return f"<Torch rank {self.rank} of {self.size}>"
