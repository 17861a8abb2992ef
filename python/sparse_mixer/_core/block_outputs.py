"""Outputs of all blocks of a recorded call, copied out of the record as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native

Array = npt.NDArray[np.float32]


class BlockOutputs(Sequence[Array]):
    """The output of every block, float32 [B, S, H] each, of a call that `SparseMixer.vjp` has recorded.

    The record has them anyway until it is used. Each is copied when it is first read, which takes its memory then, and
    is the reader's from then on. Those that nobody has read before the VJP is called are gone with the record: reading
    one of them raises RuntimeError. Keeps the record as long as it is not used, as the VJP does.
    """

    def __init__(self, tape: _native.Tape, count: int) -> None:
        self._tape: _native.Tape | None = tape
        self._arrays: list[Array | None] = [None] * count

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [self._read(layer) for layer in range(len(self))[index]]
        return self._read(range(len(self))[index])

    def __len__(self) -> int:
        return len(self._arrays)

    def _read(self, layer: int) -> Array:
        array = self._arrays[layer]
        if array is None:
            assert self._tape is not None, "it is there as long as an array is missing"
            array = self._arrays[layer] = self._tape.block_output(layer)
            if all(array is not None for array in self._arrays):
                self._tape = None
        return array

    def __reduce__(self) -> Any:
        # A copy is a list of arrays; the record cannot be copied.
        return list, (list(self),)

    def __repr__(self) -> str:
        return f"<outputs of {len(self)} blocks>"
