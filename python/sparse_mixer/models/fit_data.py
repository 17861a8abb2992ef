"""From Keras's x, y and weights to what trainers take: arrays as one tuple, or an iterable of batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.arrays import as_array, as_float32
from sparse_mixer._core.checks import as_float
from sparse_mixer._core.inputs import are_in_order, as_inputs
from sparse_mixer.training.batches import are_arrays, common_length, map_leaves, read_arrays


def read(
    x: Any,
    y: Any,
    sample_weight: Any,
    class_weight: Mapping[int, float] | None,
    *,
    pairs: bool,
    names: Sequence[str],
) -> Any:
    """Data as `sparse_mixer.training.fit` takes them.

    Args:
        x: Inputs, or data in any form that `fit` takes.
        y: Labels of `x`, or None.
        sample_weight: Weights of `y`, or None.
        class_weight: Factors by class, or None.
        pairs: Whether labels are pairs of start and end positions.
        names: Names of the outputs that labels are for.

    Raises:
        ValueError: Labels beside what has labels itself; no data.
        TypeError: Class weights that are no dict.
    """
    if x is None:
        raise ValueError("x: expected inputs or data, got None")
    data = x
    if y is not None or sample_weight is not None:
        table = hasattr(x, "columns") and hasattr(x, "__getitem__")
        if not (isinstance(x, Mapping) or table or are_in_order(x)):
            raise ValueError(
                f"y: labels beside x of type {type(x).__name__}; only arrays of inputs (a dict, a table, or a list of "
                "three arrays in order) have them apart, an iterable gives (inputs, labels)"
            )
        data = (x, _only(y, names)) if sample_weight is None else (x, _only(y, names), _only(sample_weight, names))
    elif isinstance(data, tuple | list) and len(data) in (2, 3) and are_arrays(data):
        data = type(data)([data[0], *(_only(part, names) for part in data[1:])])
    if class_weight is None:
        return data
    factors = _factors(class_weight)
    if are_arrays(data):
        return _weighted(read_arrays(data, "x", pairs), factors)
    if callable(data):
        # The epoch, and on several processes which of them.
        return lambda *place: WeightedBatches(data(*place), factors)
    return WeightedBatches(data, factors)


def read_validation(data: Any, *, pairs: bool, names: Sequence[str]) -> Any:
    """Validation data: in any form of `read`'s `x`, or as ``(x, y)`` or ``(x, y, sample_weight)``."""
    if isinstance(data, tuple) and len(data) in (2, 3) and are_in_order(data[0]):
        data = (as_inputs(data[0], in_order=True), *data[1:])
    return read(data, None, None, None, pairs=pairs, names=names)


def split(data: Any, share: float) -> tuple[Any, Any]:
    """The first examples of arrays, and the last `share` of them.

    Raises:
        ValueError: Not a share, no arrays, or no example in one of the parts.
    """
    fraction = as_float("validation_split", share)
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"validation_split: expected at least 0 and less than 1, got {share}")
    if not are_arrays(data):
        raise ValueError("validation_split: only arrays can be split; pass validation_data")
    arrays = read_arrays(data, "x", pairs=False)
    size = common_length(arrays)
    at = math.floor(size * (1.0 - fraction))
    if not 0 < at < size:
        raise ValueError(f"validation_split: {share} of {size} examples leaves none for one of the parts")
    return map_leaves(arrays, lambda array: array[:at]), map_leaves(arrays, lambda array: array[at:])


def only_for_arrays(data: Any, **settings: Any) -> dict[str, Any]:
    """The `settings` if `data` are arrays; Keras ignores batch sizes of datasets, which make their own batches."""
    return settings if are_arrays(data) else {}


class WeightedBatches:
    """Batches of an iterable, weighted by their labels' classes."""

    def __init__(self, data: Any, factors: npt.NDArray[np.float32]) -> None:
        self._data = data
        self._factors = factors

    def __iter__(self) -> Iterator[Any]:
        for batch in self._data:
            yield _weighted(tuple(batch) if isinstance(batch, list) else batch, self._factors)

    def __len__(self) -> int:
        return len(self._data)


def _only(labels: Any, names: Sequence[str]) -> Any:
    """Labels of the only output, if they are given by its name."""
    if len(names) == 1 and isinstance(labels, Mapping) and len(labels) == 1:
        return next(iter(labels.values()))
    return labels


def _factors(class_weight: Any) -> npt.NDArray[np.float32]:
    """Factors by class, 1 for those that have none."""
    if not isinstance(class_weight, Mapping):
        raise TypeError(f"class_weight: expected a dict from class to weight, got {type(class_weight).__name__}")
    classes = [int(number) for number in class_weight]
    if not classes or min(classes) < 0:
        raise ValueError(f"class_weight: expected classes of at least 0, got {classes}")
    factors = np.ones(max(classes) + 1, np.float32)
    for number, weight in class_weight.items():
        factors[int(number)] = as_float(f"class_weight[{number}]", weight)
    return factors


def _weighted(data: Any, factors: npt.NDArray[np.float32]) -> tuple[Any, ...]:
    """Inputs, labels and weights, each weight times the factor of its label's class."""
    if not isinstance(data, tuple) or isinstance(data[1], Mapping):
        raise ValueError("class_weight: needs labels that are classes, beside the inputs")
    labels = as_array("labels", data[1])
    classes = labels.argmax(-1) if labels.ndim > 1 and labels.dtype.kind == "f" else labels
    classes = classes.reshape(len(classes)) if classes.size == len(classes) else classes
    # Labels that count for nothing keep their weight.
    inside = (classes >= 0) & (classes < len(factors))
    own = np.where(inside, factors[np.where(inside, classes, 0).astype(np.int64)], np.float32(1))
    if len(data) == 3 and data[2] is not None:
        weights = as_float32("sample_weight", data[2])
        own = own * (weights[:, None] if weights.ndim < own.ndim else weights)
    return data[0], data[1], own.astype(np.float32)
