"""What a batch holds besides the encoder's inputs: labels, positions and weights, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.arrays import as_float32, as_integers
from sparse_mixer.networks import SparseMixer

Array = npt.NDArray[np.float32]


def as_rows(sequence: Array) -> Array:
    """``[B, S, H]`` as ``[B * S, H]``."""
    return sequence.reshape(-1, sequence.shape[-1])


def read_labels(labels: Any, shape: tuple[int, ...], argument: str = "labels") -> npt.NDArray[np.int64]:
    """Class indices of `shape`; a last axis of length 1 may follow."""
    if labels is None:
        raise ValueError(f"{argument}: missing")
    array = as_integers(argument, labels, booleans=True)
    if array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.shape != shape:
        hint = ""
        if array.ndim == len(shape) + 1 and array.shape[:-1] == shape and _is_one_hot(array):
            hint = "; one-hot labels become class indices by labels.argmax(-1)"
        raise ValueError(f"{argument}: expected shape {list(shape)}, got {list(array.shape)}{hint}")
    return array.astype(np.int64, copy=False)


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
    """Sample weights of `shape`; ones where there are none."""
    if weights is None:
        return np.ones(shape, np.float32)
    array = as_float32("sample_weight", weights)
    if array.shape != shape:
        raise ValueError(f"sample_weight: expected shape {list(shape)}, got {list(array.shape)}")
    return array


def check_encoder(argument: str, value: Any) -> None:
    """Refuse what is not an encoder of ours."""
    if not isinstance(value, SparseMixer):
        raise TypeError(f"{argument}: expected a SparseMixer, got {type(value).__name__}")
