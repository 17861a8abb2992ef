"""Where batches come from: arrays that are shuffled and cut, or any iterable, in a repeatable order."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol

import numpy as np


class Batches(Protocol):
    """A source of batches."""

    steps: int | None
    """Batches per epoch, if known."""

    def epoch(self, number: int, start: int) -> Iterator[Any]:
        """Batches number `start` and following of epoch `number`; the same ones every time."""
        ...


class ArrayBatches:
    """Cuts arrays of one first dimension into batches, in an order that depends on seed and epoch only."""

    def __init__(self, data: Any, batch_size: int, shuffle: bool, seed: int, drop_remainder: bool = False) -> None:
        sizes = {len(array) for array in _leaves(data)}
        if len(sizes) != 1:
            raise ValueError(f"data: expected arrays of one first dimension, got lengths {sorted(sizes)}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self._data = data
        self._size = sizes.pop()
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        whole, rest = divmod(self._size, batch_size)
        self.steps: int | None = whole if drop_remainder or not rest else whole + 1
        if self.steps == 0:
            raise ValueError(f"data: {self._size} examples make no batch of {batch_size}")

    def epoch(self, number: int, start: int) -> Iterator[Any]:
        """See `Batches`."""
        order = np.arange(self._size)
        if self._shuffle:
            order = np.random.default_rng([self._seed, number]).permutation(self._size)
        for step in range(start, self.steps or 0):
            rows = order[step * self._batch_size : (step + 1) * self._batch_size]
            yield _map_leaves(self._data, lambda array, rows=rows: array[rows])


class IterableBatches:
    """Batches from an iterable that starts again every epoch, or from a function of the epoch's number."""

    def __init__(self, data: Iterable[Any] | Callable[[int], Iterable[Any]]) -> None:
        self._data = data
        self.steps: int | None = None if callable(data) or not isinstance(data, Sized) else len(data)

    def epoch(self, number: int, start: int) -> Iterator[Any]:
        """See `Batches`; passed over batches are made and dropped."""
        batches = self._data(number) if callable(self._data) else self._data
        return itertools.islice(iter(batches), start, None)


def as_batches(data: Any, batch_size: int, shuffle: bool, seed: int, drop_remainder: bool = False) -> Batches:
    """A source of batches for what a user gave.

    Args:
        data: Arrays, as a dict, ``(inputs, labels)`` or ``(inputs, labels, sample_weight)``; or an iterable of batches,
            or a function from the epoch's number to one.
        batch_size: Examples per batch, for arrays.
        shuffle: Whether every epoch of arrays has an order of its own.
        seed: Source of the orders.
        drop_remainder: Whether a smaller last batch is left out.

    Raises:
        TypeError: An iterator, which cannot start again.
    """
    if isinstance(data, Mapping) or (isinstance(data, tuple) and data and isinstance(data[0], Mapping)):
        return ArrayBatches(_map_leaves(data, np.asarray), batch_size, shuffle, seed, drop_remainder)
    if isinstance(data, Iterator):
        raise TypeError("data: an iterator cannot start again; pass an iterable, or a function from epoch to iterable")
    if callable(data) or (isinstance(data, Iterable) and not isinstance(data, str | bytes)):
        return IterableBatches(data)
    raise TypeError(f"data: expected arrays, an iterable of batches or a function, got {type(data).__name__}")


def derived_seed(*numbers: int) -> int:
    """A seed of 64 bits that depends on all `numbers`."""
    packed = struct.pack(f"<{len(numbers)}Q", *(number % 2**64 for number in numbers))
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def token_count(batch: Any) -> int:
    """Positions that are not padding."""
    inputs = batch if isinstance(batch, Mapping) else batch[0]
    mask = inputs.get("input_mask")
    return int(np.count_nonzero(mask)) if mask is not None else int(np.size(inputs["input_type_ids"]))


def _map_leaves(data: Any, function: Callable[..., Any]) -> Any:
    if isinstance(data, Mapping):
        return {name: _map_leaves(value, function) for name, value in data.items()}
    if isinstance(data, tuple | list):
        return tuple(_map_leaves(value, function) for value in data)
    return function(data)


def _leaves(data: Any) -> Iterator[Any]:
    if isinstance(data, Mapping):
        data = tuple(data.values())
    if isinstance(data, tuple):
        for value in data:
            yield from _leaves(value)
    else:
        yield data
