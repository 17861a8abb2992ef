"""Where batches come from: arrays that are shuffled and split, or any iterable, in a repeatable order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy as np

from sparse_mixer._core.arrays import as_array
from sparse_mixer._core.checks import as_bool, as_positive
from sparse_mixer._core.inputs import KEYS, are_in_order, as_inputs
from sparse_mixer._core.seeds import Purpose, generator


class Batches(Protocol):
    """A source of batches."""

    steps: int | None
    """Batches per epoch, if known."""
    examples: int | None
    """Examples in all, if known."""
    data: Any
    """What the batches are made of."""
    settings: dict[str, Any]
    """The arguments that the batches depend on, JSON-able."""

    def epoch(self, number: int, start: int, seed: int) -> Iterator[Any]:
        """Batches number `start` and following of epoch `number`, shuffled by `seed`; the same ones every time."""
        ...


class ArrayBatches:
    """Splits arrays of one first dimension into batches, in their own order or in one that depends on a seed only."""

    def __init__(
        self, data: Any, batch_size: int, shuffle: bool, drop_remainder: bool, steps_per_epoch: int | None
    ) -> None:
        self.data = data
        self._size = common_length(data)
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

    def __repr__(self) -> str:
        return f"<{self.steps} batches of {self._size} examples: {self.settings}>"

    def epoch(self, number: int, start: int, seed: int) -> Iterator[Any]:
        """See `Batches`."""
        order = np.arange(self._size)
        if self._shuffle:
            order = generator(Purpose.ORDER, seed).permutation(self._size)
        for step in range(start, self.steps or 0):
            rows = order[step * self._batch_size : (step + 1) * self._batch_size]
            yield map_leaves(self.data, lambda array, rows=rows: array[rows])


class IterableBatches:
    """Batches from an iterable that starts again every epoch, or from a function of the epoch's number."""

    examples: int | None = None

    def __init__(self, data: Iterable[Any] | Callable[[int], Iterable[Any]], steps_per_epoch: int | None) -> None:
        self.data = data
        self.steps: int | None = _length_of(data) if steps_per_epoch is None else steps_per_epoch
        self.settings: dict[str, Any] = {}

    def epoch(self, number: int, start: int, seed: int) -> Iterator[Any]:
        """See `Batches`; passed over batches are made and dropped."""
        batches = self.data(number) if callable(self.data) else self.data
        return itertools.islice(iter(batches), start, None)


class StreamBatches:
    """Epochs of so many batches from an iterable, each starting where the one before ended.

    At its end the iterable starts again; an iterator, which cannot, ends.
    """

    examples: int | None = None

    def __init__(self, data: Iterable[Any], steps_per_epoch: int, first_epoch: int = 0) -> None:
        self.data = data
        self._first_epoch = first_epoch
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
        wanted = (number - self._first_epoch) * self._steps + start
        if wanted < self._position:
            if isinstance(self.data, Iterator):
                raise ValueError(
                    f"data: an iterator cannot go back from batch {self._position} to {wanted}; pass a new one"
                )
            self._stream, self._position = self._passes(), 0
        while self._position < wanted and self._next() is not None:
            pass
        while (batch := self._next()) is not None:
            yield batch

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.data, Iterator):
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
            for batch in self.data:
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
    pairs: bool = False,
    first_epoch: int = 0,
) -> Batches:
    """A source of batches for what a user gave.

    Args:
        data: Arrays, as a dict, ``(inputs, labels)`` or ``(inputs, labels, sample_weight)``, in whatever a call of the
            encoder takes; or an iterable of batches,
            or a function from the epoch's number to one; with `steps_per_epoch` also an iterator.
        batch_size: Examples per batch, for arrays; None for 32.
        shuffle: Whether every epoch of arrays has an order of its own; None for yes.
        drop_remainder: Whether a smaller last batch of arrays is left out; None for no.
        steps_per_epoch: Batches per epoch. Epochs of an iterable then start where the one before ended.
        argument: The name of `data` in messages.
        pairs: Whether labels are pairs of start and end positions.
        first_epoch: Number of the epoch that an iterable's first batches are for.

    Raises:
        TypeError: No such data; an iterator, which cannot start again, without `steps_per_epoch`.
        ValueError: An argument that these data leave without a meaning, or that cannot work.
    """
    steps = None if steps_per_epoch is None else as_positive("steps_per_epoch", steps_per_epoch)
    if are_arrays(data):
        size = 32 if batch_size is None else as_positive("batch_size", batch_size)
        return ArrayBatches(
            read_arrays(data, argument, pairs),
            size,
            shuffle is None or as_bool("shuffle", shuffle),
            drop_remainder is not None and as_bool("drop_remainder", drop_remainder),
            steps,
        )
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
    single = isinstance(data, str | bytes) or getattr(data, "shape", None) == ()
    if isinstance(data, Iterable) and not single:
        return IterableBatches(data, steps) if steps is None else StreamBatches(data, steps, first_epoch)
    raise TypeError(f"{argument}: expected arrays, an iterable of batches or a function, got {type(data).__name__}")


def _length_of(data: Any) -> int | None:
    """Number of batches, if an iterable knows it: datasets of TensorFlow have a length only then."""
    if callable(data) or not isinstance(data, Sized):
        return None
    try:
        return len(data)
    except TypeError:
        return None


def are_arrays(data: Any) -> bool:
    """Whether `data` are arrays to be split into batches: inputs, or a tuple or list of inputs, labels and weights."""
    if not isinstance(data, tuple | list) or are_in_order(data):
        return _are_inputs(data)
    if not data or not _are_inputs(data[0]):
        return False
    # A list may also be one of batches: of dicts with inputs and labels.
    return isinstance(data, tuple) or (2 <= len(data) <= 3 and not _is_batch(data[1]))


def split_batches(inputs: Mapping[str, Any], batch_size: int) -> Iterator[dict[str, Any]]:
    """Batches of inputs, in their order; none of no examples."""
    arrays = read_arrays(inputs, "inputs", pairs=False)
    for start in range(0, common_length(arrays), batch_size):
        yield {name: array[start : start + batch_size] for name, array in arrays.items()}


def unpack(batch: Any) -> tuple[Mapping[str, Any], Any, Any]:
    """Inputs, labels and sample weights of a batch."""
    if _are_inputs(batch):
        return as_inputs(batch, in_order=True), None, None
    if isinstance(batch, Sequence) and 2 <= len(batch) <= 3 and _are_inputs(batch[0]):
        return as_inputs(batch[0], in_order=True), batch[1], batch[2] if len(batch) == 3 else None
    raise TypeError("batch: expected a dict of inputs, (inputs, labels) or (inputs, labels, sample_weight)")


def read_batch(batch: Any, pairs: bool) -> Any:
    """The same batch with arrays of numpy in it, whatever they were: so each is converted once.

    Args:
        batch: As `unpack` takes it.
        pairs: As in `as_batches`.

    Raises:
        TypeError: Not a batch.
    """
    parts = unpack(batch)
    return read_arrays(parts[0] if _are_inputs(batch) else parts[: len(batch)], "batch", pairs)


def _are_inputs(data: Any) -> bool:
    """A dict, a table of pandas, or a list of arrays in their order."""
    table = hasattr(data, "columns") and hasattr(data, "__getitem__")
    return isinstance(data, Mapping) or table or are_in_order(data)


def _is_batch(data: Any) -> bool:
    if isinstance(data, tuple | list) and not are_in_order(data):
        return bool(data) and _are_inputs(data[0])
    return _are_inputs(data) and "input_type_ids" in as_inputs(data, in_order=True)


def read_arrays(data: Any, argument: str, pairs: bool) -> Any:
    """What a user gave as arrays of numpy: a dict, or a tuple of a dict, labels and weights.

    Args:
        data: Inputs, or inputs, labels and perhaps weights.
        argument: The name of `data` in messages.
        pairs: As in `as_batches`.

    Raises:
        TypeError, ValueError: Something that is no array.
    """
    if _are_inputs(data):
        return {
            name: _read_input(str(name), value)
            for name, value in as_inputs(data, in_order=True).items()
            if value is not None
        }
    if len(data) > 3:
        raise ValueError(f"{argument}: expected inputs, labels and sample weights, got {len(data)} things")
    inputs, labels, weights = (*data, None, None)[:3]
    read_labels: Any = labels
    if pairs and isinstance(labels, tuple | list) and len(labels) == 2:
        labels = dict(zip(("start_positions", "end_positions"), labels, strict=True))
    if _are_inputs(labels):
        read_labels = {name: as_array(str(name), value) for name, value in as_inputs(labels).items()}
    elif labels is not None:
        read_labels = as_array("labels", labels)
    parts = (
        read_arrays(inputs, argument, pairs),
        read_labels,
        None if weights is None else as_array("sample_weight", weights),
    )
    return parts[: len(data)]


def _read_input(name: str, value: Any) -> Any:
    # What is none of ours, such as names of examples, may be of any type.
    own = name in KEYS or name.startswith("masked_lm_") or name.endswith("_labels")
    return as_array(name, value) if own else np.asarray(value)


def common_length(data: Any) -> int:
    """Number of examples in arrays that must agree about it."""
    lengths: dict[str, int] = {}
    for name, array in _named_leaves(data, ""):
        if not array.ndim:
            raise ValueError(f"data: {name}: expected an entry per example, got a single value")
        lengths[name] = len(array)
    if len(set(lengths.values())) != 1:
        raise ValueError(f"data: expected arrays of one first dimension, got lengths {lengths}")
    return next(iter(lengths.values()))


def _named_leaves(data: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _named_leaves(value, f"{name}[{key!r}]" if name else str(key))
    elif isinstance(data, tuple):
        for part, value in zip(("inputs", "labels", "sample_weight"), data, strict=False):
            yield from _named_leaves(value, "" if part == "inputs" else part)
    elif data is not None:
        yield name, data


def token_count(batch: Any) -> int:
    """Positions that are not padding.

    Raises:
        TypeError: Not a batch.
        ValueError: It has neither mask nor type ids.
    """
    inputs = unpack(batch)[0]
    mask = inputs.get("input_mask")
    if mask is not None:
        return int(np.count_nonzero(as_array("input_mask", mask)))
    if "input_type_ids" not in inputs:
        raise ValueError("input_type_ids: missing")
    return int(as_array("input_type_ids", inputs["input_type_ids"]).size)


def map_leaves(data: Any, function: Callable[..., Any]) -> Any:
    """The same dicts and tuples with `function` of each array in them."""
    if isinstance(data, Mapping):
        return {name: map_leaves(value, function) for name, value in data.items()}
    if isinstance(data, tuple):
        return tuple(map_leaves(value, function) for value in data)
    return None if data is None else function(data)
