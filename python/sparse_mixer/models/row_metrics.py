"""Metrics of logits that `compile` takes, with Keras's names and numbers: one value per row, then means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_mixer.losses import Array, Targets
from sparse_mixer.models.batch_parts import log_softmax
from sparse_mixer.training.metrics import Metrics

RowFunction = Callable[[npt.NDArray[Any], Array], npt.NDArray[Any]]
"""``(labels, logits) -> one value per row``."""


class RowMetric(NamedTuple):
    """A metric and the name that it has in logs."""

    name: str
    function: RowFunction
    weighted: bool = False
    """Whether rows count by their sample weights."""


def measured(metrics: Sequence[RowMetric], targets: Targets, logits: Array) -> Metrics:
    """Sums and weights of all `metrics` for rows of logits.

    Args:
        metrics: What to measure.
        targets: Labels and weights of the rows.
        logits: ``[rows, classes]``.

    Raises:
        ValueError: A metric gives something else than one value per row, or one for all of them.
    """
    rows = targets.weights.shape
    results = Metrics()
    for metric in metrics:
        values = np.asarray(metric.function(targets.labels, logits.reshape(*rows, -1)), np.float64)
        if values.ndim == 0:
            values = np.full(rows, float(values))
        if values.shape != rows:
            raise ValueError(
                f"metrics: expected one number per row, {list(rows)}, from {metric.name!r}, got {list(values.shape)}"
            )
        weights = targets.weights.astype(np.float64) if metric.weighted else np.ones(rows)
        if targets.counted is not None:
            weights = weights * targets.counted
        results[metric.name] = (float((values * weights).sum()), float(weights.sum()))
    return results


def sparse_accuracy(labels: npt.NDArray[Any], logits: Array) -> npt.NDArray[Any]:
    """Whether the largest logit is that of the class ``labels`` [...]."""
    classes = labels[..., 0] if labels.ndim == logits.ndim else labels
    hits: npt.NDArray[Any] = logits.argmax(-1) == classes
    return hits


def categorical_accuracy(labels: npt.NDArray[Any], logits: Array) -> npt.NDArray[Any]:
    """Whether the largest logit is where the largest label is."""
    hits: npt.NDArray[Any] = logits.argmax(-1) == labels.argmax(-1)
    return hits


def binary_accuracy(threshold: float = 0.5) -> RowFunction:
    """Share of the logits that are on the side of `threshold` on which labels of 1 should be; Keras's is 0.5."""

    def function(labels: npt.NDArray[Any], logits: Array) -> npt.NDArray[Any]:
        shares: npt.NDArray[Any] = ((logits > threshold) == _beside(labels, logits)).mean(-1)
        return shares

    return function


def accuracy(labels: npt.NDArray[Any], logits: Array) -> npt.NDArray[Any]:
    """What Keras makes of the name ``"accuracy"``: it depends on the shapes of labels and logits."""
    if logits.shape[-1] == 1:
        return binary_accuracy()(labels, logits)
    if labels.ndim < logits.ndim or labels.shape[-1] == 1:
        return sparse_accuracy(labels, logits)
    return categorical_accuracy(labels, logits)


def top_k(k: int, sparse: bool) -> RowFunction:
    """Whether the right class is among the `k` largest logits."""

    def function(labels: npt.NDArray[Any], logits: Array) -> npt.NDArray[Any]:
        classes = labels if sparse else labels.argmax(-1)
        right = np.take_along_axis(logits, classes[..., None].astype(np.int64), -1)
        hits: npt.NDArray[Any] = (logits > right).sum(-1) < k
        return hits

    return function


def squared_error(labels: npt.NDArray[Any], logits: Array) -> npt.NDArray[Any]:
    """Mean of the squared errors over a row."""
    errors: npt.NDArray[Any] = ((logits - _beside(labels, logits)) ** 2).mean(-1)
    return errors


def absolute_error(labels: npt.NDArray[Any], logits: Array) -> npt.NDArray[Any]:
    """Mean of the absolute errors over a row."""
    errors: npt.NDArray[Any] = np.abs(logits - _beside(labels, logits)).mean(-1)
    return errors


def sparse_cross_entropy(labels: npt.NDArray[Any], logits: Array) -> npt.NDArray[Any]:
    """Cross entropies of class indices."""
    right = np.take_along_axis(log_softmax(logits), np.maximum(labels, 0)[..., None].astype(np.int64), -1)
    losses: npt.NDArray[Any] = -right[..., 0]
    return losses


def _beside(labels: npt.NDArray[Any], logits: Array) -> npt.NDArray[Any]:
    """Labels with an axis for the classes."""
    return labels if labels.ndim == logits.ndim else labels[..., None]
