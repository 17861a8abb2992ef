"""Losses of predictions: sums over them, and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer.training.metrics import Metrics

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Targets:
    """What a batch's predictions are compared with, checked.

    Attributes:
        labels: As the model's loss reads them.
        weights: One float32 per label.
        divisors: See `Model.loss_divisors`.
        weighted: Whether the user gave weights.
        counted: Which labels count; None for all.
    """

    labels: Any
    weights: Array
    divisors: dict[str, float]
    weighted: bool
    counted: npt.NDArray[np.bool_] | None = None


class Sums(NamedTuple):
    """Sums over predictions: weighted cross entropies, weights, and weights of the right ones."""

    loss: float
    weight: float
    correct: float


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


def reciprocal(divisor: float) -> float:
    """One over `divisor`; 0 if that is 0, where the sum that is divided is 0, too."""
    return 1.0 / divisor if divisor else 0.0


def classification(encoder: Any, logits: Array, targets: Targets, divisor: float) -> tuple[Metrics, Array]:
    """Metrics, and the gradient of the weighted cross entropies of `logits` ``[rows, classes]`` over `divisor`.

    As in Keras, the loss is divided by the number of labels, not by their weights; ``accuracy`` takes no notice of
    weights, and ``weighted_accuracy`` is what ``weighted_metrics`` gives.
    """
    labels, number = targets.labels.ravel(), targets.divisors["task"]
    sums, d_logits = cross_entropy(encoder, logits, labels, targets.weights.ravel(), reciprocal(divisor))
    if not targets.weighted:
        return Metrics(task_loss=(sums.loss, number), accuracy=(sums.correct, number)), d_logits
    correct = logits.argmax(axis=-1) == labels
    if targets.counted is not None:
        correct &= targets.counted.ravel()
    metrics = Metrics(
        task_loss=(sums.loss, number),
        accuracy=(float(np.count_nonzero(correct)), number),
        weighted_accuracy=(sums.correct, sums.weight),
    )
    return metrics, d_logits


def squared_error(logits: Array, targets: Targets, divisor: float) -> tuple[Metrics, Array]:
    """Metrics, and the gradient of the weighted squared errors of `logits` ``[rows, 1]`` over `divisor`."""
    difference = logits[:, 0] - targets.labels
    loss = float(np.sum(targets.weights * difference * difference, dtype=np.float64))
    d_logits = np.float32(2.0 * reciprocal(divisor)) * (targets.weights * difference)
    metrics = Metrics(task_loss=(loss, targets.divisors["task"]))
    return metrics, np.ascontiguousarray(d_logits[:, None], np.float32)
