"""Losses of predictions: sums over them, and the gradients of their weighted means."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.variables import as_float32
from sparse_mixer.training.metrics import Metrics

Array = npt.NDArray[np.float32]


class Sums(NamedTuple):
    """Sums over predictions: weighted cross entropies, weights, and weights of the right ones."""

    loss: float
    weight: float
    hits: float


def cross_entropy(
    encoder: Any, logits: Array, labels: npt.NDArray[Any], weights: Array, scale: float
) -> tuple[Sums, Array]:
    """Sums over the rows of `logits` ``[rows, classes]``, and the gradient of `scale` times the loss sum."""
    sums, d_logits = _native.cross_entropy(
        encoder.core,
        np.ascontiguousarray(logits),
        np.ascontiguousarray(labels, np.int64),
        np.ascontiguousarray(weights, np.float32),
        scale,
    )
    return Sums(*sums), d_logits


def mean_cross_entropy(
    encoder: Any, logits: Array, labels: npt.NDArray[np.int64], weights: Array
) -> tuple[Sums, Array]:
    """Sums, and the gradient of the weighted mean."""
    weight = float(weights.sum())
    return cross_entropy(encoder, logits, labels, weights, 1.0 / weight if weight else 0.0)


def squared_error(logits: Array, labels: Any, weights: Array) -> tuple[Metrics, Array]:
    """Metrics, and the gradient of the weighted mean of the squared error of `logits` ``[rows, 1]``."""
    targets = as_float32("labels", labels).reshape(-1)
    if targets.shape != weights.shape:
        raise ValueError(f"labels: expected shape {list(weights.shape)}, got {list(np.shape(labels))}")
    difference = logits[:, 0] - targets
    weight = float(weights.sum())
    loss = float(np.sum(weights * difference * difference, dtype=np.float64))
    d_logits = (2.0 / weight if weight else 0.0) * (weights * difference)
    return Metrics(task_loss=(loss, weight)), np.ascontiguousarray(d_logits[:, None], np.float32)


def task_metrics(sums: Sums) -> Metrics:
    """``task_loss`` and ``accuracy`` of a classification."""
    return Metrics(task_loss=(sums.loss, sums.weight), accuracy=(sums.hits, sums.weight))
