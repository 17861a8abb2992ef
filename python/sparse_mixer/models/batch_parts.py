"""What a batch holds besides the encoder's inputs: labels, positions and weights, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.arrays import as_array, as_float32, as_integers
from sparse_mixer.losses import Targets
from sparse_mixer.networks import SparseMixer

Array = npt.NDArray[np.float32]


def check_output(output: Any) -> str:
    """``"logits"`` or ``"predictions"``, as the Model Garden's models know them."""
    if output not in ("logits", "predictions"):
        raise ValueError(f"output: expected 'logits' or 'predictions', got {output!r}")
    return str(output)


def log_softmax(logits: Array) -> Array:
    """Logarithms of the probabilities over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def read_classes(labels: Any, axes: int, argument: str = "labels") -> npt.NDArray[np.int64]:
    """Integers with so many axes; one more of size 1 is dropped."""
    if labels is None:
        raise ValueError(f"{argument}: missing")
    array = as_integers(argument, labels, booleans=True)
    if array.ndim == axes + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != axes:
        hint = ""
        if array.ndim == axes + 1 and _is_one_hot(array):
            hint = "; one-hot labels become class indices by labels.argmax(-1)"
        raise ValueError(f"{argument}: expected {axes} axes, got shape {list(array.shape)}{hint}")
    return array.astype(np.int64, copy=False)


def expect_shape(argument: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    """Refuse an array of another shape."""
    if array.shape != shape:
        raise ValueError(f"{argument}: expected shape {list(shape)}, got {list(array.shape)}")


def expect_rows(labels: npt.NDArray[Any], rows: tuple[int, ...]) -> None:
    """Refuse labels that are not for these rows."""
    if labels.shape[: len(rows)] != rows:
        raise ValueError(f"labels: expected shape {list(rows)}, got {list(labels.shape)}")


def _is_one_hot(array: npt.NDArray[Any]) -> bool:
    return bool(((array == 0) | (array == 1)).all() and (array.sum(-1) == 1).all())


def read_integers(inputs: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
    """The integers ``[B, P]`` under `key`."""
    if inputs.get(key) is None:
        raise ValueError(f"{key}: missing from the inputs")
    array = as_integers(key, inputs[key])
    if array.ndim != 2:
        raise ValueError(f"{key}: expected integers [B, P], got shape {list(array.shape)}")
    return array


def read_weights(weights: Any, shape: tuple[int, ...]) -> Array:
    """Sample weights of `shape`; one per example counts for all of its tokens, as in Keras."""
    if weights is None:
        return np.ones(shape, np.float32)
    array = as_float32("sample_weight", weights)
    if len(shape) == 2 and array.shape == shape[:1]:
        array = np.repeat(array[:, None], shape[1], axis=1)
    expect_shape("sample_weight", array, shape)
    return array


def position_count(inputs: Mapping[str, Any]) -> float:
    """Positions of a batch, padding among them: what the router's losses are means over."""
    names = ["input_type_ids"] + ["dense_type_ids"] * (inputs.get("dense_inputs") is not None)
    return float(sum(as_array(name, inputs[name]).size for name in names if inputs.get(name) is not None))


def targets_of(
    inputs: Mapping[str, Any], labels: npt.NDArray[Any], weights: Any, counted: npt.NDArray[np.bool_] | None = None
) -> Targets:
    """Targets of a loss that is divided by the number of its labels: of all, or of those that are `counted`."""
    array = read_weights(weights, labels.shape)
    number = float(labels.size)
    if counted is not None:
        array, number = array * counted, float(np.count_nonzero(counted))
    weight = float(np.abs(array).sum(dtype=np.float64))
    divisors = {"weight": weight, "task": number, "auxiliary": position_count(inputs)}
    return Targets(labels, array, divisors, weights is not None, counted)


def check_encoder(argument: str, value: Any) -> None:
    """Refuse what is not an encoder of ours."""
    if not isinstance(value, SparseMixer):
        raise TypeError(f"{argument}: expected a SparseMixer, got {type(value).__name__}")
