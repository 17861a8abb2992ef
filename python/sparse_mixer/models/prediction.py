"""Computing a model's outputs for any number of examples, a few at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from sparse_mixer._core.checks import as_positive
from sparse_mixer._core.inputs import KEYS, are_in_order, as_inputs
from sparse_mixer.training.batches import split_batches, unpack


def predict(model: Any, x: Any, batch_size: int | None, steps: int | None) -> Any:
    """`Model.predict`."""
    batches = _batches(model, x, batch_size)
    count = None if steps is None else as_positive("steps", steps)
    parts = [model(batch) for batch in itertools.islice(batches, count)]
    if not parts:
        raise ValueError("x: there is no batch")
    return parts[0] if len(parts) == 1 else _joined(parts)


def _batches(model: Any, x: Any, batch_size: int | None) -> Iterator[Mapping[str, Any]]:
    size = 32 if batch_size is None else as_positive("batch_size", batch_size)
    table = hasattr(x, "columns") and hasattr(x, "__getitem__")
    if isinstance(x, Mapping) or table or are_in_order(x):
        group = max(1, math.ceil(model.encoder.arguments.group_examples()))
        given = {
            name: value
            for name, value in as_inputs(x, in_order=True).items()
            if value is not None and (name in KEYS or name == "masked_lm_positions")
        }
        batches = split_batches(given, math.ceil(size / group) * group)
        first = next(batches, None)
        # Without examples, the call itself gives outputs of the right shapes, or says what is missing.
        return itertools.chain([given if first is None else first], batches)
    # Arrays call themselves iterable, also those without an axis.
    scalar = getattr(x, "ndim", None) == 0
    if scalar or isinstance(x, str | bytes) or not (isinstance(x, Iterable) or callable(x)):
        raise TypeError(
            f"x: expected inputs or an iterable of batches, got {type(x).__name__}{' without axes' if scalar else ''}"
        )
    return (unpack(batch)[0] for batch in (x(0) if callable(x) else x))


def _joined(parts: list[Any]) -> Any:
    """The outputs of batches one after the other, in the dict or list that each of them is."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, list | tuple):
        return [_joined(list(each)) for each in zip(*parts, strict=True)]
    return np.concatenate(parts)


def mapped(function: Callable[[Any], Any], outputs: Any) -> Any:
    """Outputs with each array in them replaced."""
    if isinstance(outputs, list | tuple):
        return [mapped(function, output) for output in outputs]
    return function(outputs)
