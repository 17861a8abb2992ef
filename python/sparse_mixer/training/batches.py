"""Where batches come from: arrays that are shuffled and cut, or any iterable, in a repeatable order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy as np

from sparse_mixer._core.arguments import as_positive
from sparse_mixer._core.seeds import Purpose, generator


class Batches(Protocol):
    """A source of batches."""

    steps: int | None
    """Batches per epoch, if known."""
    examples: int | None
    """Examples in all, if known."""
    settings: dict[str, Any]
    """The arguments that the batches depend on, JSON-able."""

    def epoch(self, number: int, start: int, seed: int) -> Iterator[Any]:
        """Batches number `start` and following of epoch `number`, shuffled by `seed`; the same ones every time."""
        ...


class ArrayBatches:
    """Cuts arrays of one first dimension into batches, in their own order or in one that depends on a seed only."""

    def __init__(
        self, data: Any, batch_size: int, shuffle: bool, drop_remainder: bool, steps_per_epoch: int | None
    ) -> None:
        sizes = {len(array) for array in _leaves(data)}
        if len(sizes) != 1:
            raise ValueError(f"data: expected arrays of one first dimension, got lengths {sorted(sizes)}")
        self._data = data
        self._size = sizes.pop()
        self._batch_size = batch_size
        self._shuffle = shuffle
        whole, rest = divmod(self._size, batch_size)
        steps = whole if drop_remainder or not rest else whole + 1
        if steps == 0:
            raise ValueError(f"data: {self._size} examples make no batch of {batch_size}")
        if steps_per_epoch is not None and steps_per_epoch > steps:
            raise ValueError(f"steps_per_epoch: got {steps_per_epoch}, but the arrays make {steps} batches")
        self.steps: int | None = steps if steps_per_epoch is None else steps_per_epoch
        self.examples: int | None = self._size
        self.settings = {"batch_size": batch_size, "shuffle": shuffle, "drop_remainder": drop_remainder}

    def epoch(self, number: int, start: int, seed: int) -> Iterator[Any]:
        """See `Batches`."""
        order = np.arange(self._size)
        if self._shuffle:
            order = generator(Purpose.ORDER, seed).permutation(self._size)
        for step in range(start, self.steps or 0):
            rows = order[step * self._batch_size : (step + 1) * self._batch_size]
            yield _map_leaves(self._data, lambda array, rows=rows: array[rows])


class IterableBatches:
    """Batches from an iterable that starts again every epoch, or from a function of the epoch's number."""

    examples: int | None = None

    def __init__(self, data: Iterable[Any] | Callable[[int], Iterable[Any]], steps_per_epoch: int | None) -> None:
        self._data = data
        length = None if callable(data) or not isinstance(data, Sized) else len(data)
        self.steps: int | None = length if steps_per_epoch is None else steps_per_epoch
        self.settings: dict[str, Any] = {}

    def epoch(self, number: int, start: int, seed: int) -> Iterator[Any]:
        """See `Batches`; passed over batches are made and dropped."""
        batches = self._data(number) if callable(self._data) else self._data
        return itertools.islice(iter(batches), start, None)


class StreamBatches:
    """Epochs of so many batches from an iterable, each going on where the one before ended.

    At its end the iterable starts again; an iterator, which cannot, ends.
    """

    examples: int | None = None

    def __init__(self, data: Iterable[Any], steps_per_epoch: int) -> None:
        self._data = data
        self._steps = steps_per_epoch
        self.steps: int | None = steps_per_epoch
        self.settings: dict[str, Any] = {}
        self._stream = self._passes()
        self._position = 0

    def epoch(self, number: int, start: int, seed: int) -> Iterator[Any]:
        """See `Batches`; passed over batches are made and dropped.

        Raises:
            ValueError: An iterator that has been read further than that.
        """
        wanted = number * self._steps + start
        if wanted < self._position:
            if isinstance(self._data, Iterator):
                raise ValueError(
                    f"data: an iterator cannot go back from batch {self._position} to {wanted}; pass a new one"
                )
            self._stream, self._position = self._passes(), 0
        while self._position < wanted and self._next() is not None:
            pass
        while (batch := self._next()) is not None:
            yield batch

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self._data, Iterator):
            raise TypeError("data: an iterator cannot be copied or pickled; pass an iterable, or a function")
        # A copy finds its place by passing over batches.
        return dict(self.__dict__, _stream=None, _position=0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stream = self._passes()

    def _next(self) -> Any:
        batch = next(self._stream, None)
        self._position += batch is not None
        return batch

    def _passes(self) -> Iterator[Any]:
        """All batches of the iterable, again and again unless there are none."""
        while True:
            some = False
            for batch in self._data:
                some = True
                yield batch
            if not some:
                return


def as_batches(
    data: Any,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    drop_remainder: bool | None = None,
    steps_per_epoch: int | None = None,
    argument: str = "data",
) -> Batches:
    """A source of batches for what a user gave.

    Args:
        data: Arrays, as a dict, ``(inputs, labels)`` or ``(inputs, labels, sample_weight)``; or an iterable of batches,
            or a function from the epoch's number to one; with `steps_per_epoch` also an iterator.
        batch_size: Examples per batch, for arrays; None for 32.
        shuffle: Whether every epoch of arrays has an order of its own; None for yes.
        drop_remainder: Whether a smaller last batch of arrays is left out; None for no.
        steps_per_epoch: Batches per epoch. Epochs of an iterable then go on where the one before ended.
        argument: The name of `data` in messages.

    Raises:
        TypeError: No such data; an iterator, which cannot start again, without `steps_per_epoch`.
        ValueError: An argument that these data leave without a meaning, or that cannot work.
    """
    steps = None if steps_per_epoch is None else as_positive("steps_per_epoch", steps_per_epoch)
    if are_arrays(data):
        size = 32 if batch_size is None else as_positive("batch_size", batch_size)
        arrays = _map_leaves(data, np.asarray)
        return ArrayBatches(arrays, size, shuffle is None or bool(shuffle), bool(drop_remainder), steps)
    for name, value in {"batch_size": batch_size, "shuffle": shuffle, "drop_remainder": drop_remainder}.items():
        if value is not None:
            raise ValueError(f"{name}: got {value!r}, but {argument} are not arrays; an iterable makes its own batches")
    if callable(data):
        return IterableBatches(data, steps)
    if isinstance(data, Iterator) and steps is None:
        raise TypeError(
            f"{argument}: an iterator cannot start again; pass steps_per_epoch, an iterable, or a function from epoch "
            "to iterable"
        )
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return IterableBatches(data, steps) if steps is None else StreamBatches(data, steps)
    raise TypeError(f"{argument}: expected arrays, an iterable of batches or a function, got {type(data).__name__}")


def are_arrays(data: Any) -> bool:
    """Whether `data` are arrays to be cut into batches."""
    return isinstance(data, Mapping) or (isinstance(data, tuple) and bool(data) and isinstance(data[0], Mapping))


def unpack(batch: Any) -> tuple[Mapping[str, Any], Any, Any]:
    """Inputs, labels and sample weights of a batch."""
    if isinstance(batch, Mapping):
        return batch, None, None
    if isinstance(batch, Sequence) and 2 <= len(batch) <= 3 and isinstance(batch[0], Mapping):
        return batch[0], batch[1], batch[2] if len(batch) == 3 else None
    raise TypeError("batch: expected a dict of inputs, (inputs, labels) or (inputs, labels, sample_weight)")


def token_count(batch: Any) -> int:
    """Positions that are not padding.

    Raises:
        TypeError: Not a batch.
        ValueError: It has neither mask nor type ids.
    """
    inputs = unpack(batch)[0]
    mask = inputs.get("input_mask")
    if mask is not None:
        return int(np.count_nonzero(mask))
    if "input_type_ids" not in inputs:
        raise ValueError("input_type_ids: missing")
    return int(np.size(inputs["input_type_ids"]))


def _map_leaves(data: Any, function: Callable[..., Any]) -> Any:
    if isinstance(data, Mapping):
        return {name: _map_leaves(value, function) for name, value in data.items()}
    if isinstance(data, tuple | list):
        return tuple(_map_leaves(value, function) for value in data)
    return None if data is None else function(data)


def _leaves(data: Any) -> Iterator[Any]:
    if isinstance(data, Mapping):
        data = tuple(data.values())
    if isinstance(data, tuple):
        for value in data:
            yield from _leaves(value)
    elif data is not None:
        yield data
