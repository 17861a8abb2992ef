"""What logits are trained on: how labels are read, and loss and gradient of logits given as rows.

A row is an example of a classifier, a position of a token classifier, or a start or an end of a span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.arrays import as_array, as_float32
from sparse_mixer._core.checks import as_float
from sparse_mixer.losses import Array, Targets, classification, reciprocal, squared_error
from sparse_mixer.models.batch_parts import log_softmax, read_classes, targets_of
from sparse_mixer.training.metrics import Metrics

LossFunction = Callable[[npt.NDArray[Any], Array], Any]
"""``(labels, logits) -> (loss, gradient)``; see `Model.compile`."""


class Criterion:
    """Base of the losses."""

    def targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any, axes: int) -> Targets:
        """Read and check the labels of a batch.

        Args:
            inputs: The inputs beside them.
            labels: As the user gave them.
            weights: Sample weights, or None.
            axes: Axes of the rows: ``[B]`` has 1, ``[B, S]`` 2.

        Raises:
            ValueError: Labels or weights of a wrong shape.
            TypeError: Labels of a wrong type.
        """
        raise NotImplementedError

    def compute(self, encoder: Any, logits: Array, targets: Targets, divisor: float) -> tuple[Metrics, Array]:
        """Metrics, among them ``task_loss``, and the gradient of the logits of all rows.

        Args:
            encoder: Whose threads compute.
            logits: ``[rows, classes]``.
            targets: What `targets` gave.
            divisor: What the loss is divided by.

        Raises:
            ValueError: Labels that do not fit the logits.
        """
        raise NotImplementedError


class SparseCrossEntropy(Criterion):
    """Cross entropy of class indices, ``sparse_categorical_crossentropy`` of logits."""

    def __init__(self, ignored: int | None = None, ignores_negative: bool = False) -> None:
        """Make one.

        Args:
            ignored: Rows with this label count for nothing, not in the number of rows either.
            ignores_negative: Whether all negative labels are such.
        """
        self._ignored = ignored
        self._ignores_negative = ignores_negative

    def targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any, axes: int) -> Targets:
        """See `Criterion`."""
        classes = read_classes(labels, axes)
        counted = classes >= 0 if self._ignores_negative else None
        if self._ignored is not None:
            kept = classes != self._ignored
            counted = kept if counted is None else counted & kept
        return targets_of(inputs, classes, weights, counted=counted)

    def compute(self, encoder: Any, logits: Array, targets: Targets, divisor: float) -> tuple[Metrics, Array]:
        """See `Criterion`."""
        return classification(encoder, logits, targets, divisor)


class SquaredNumber(Criterion):
    """The squared error of one number per row: a classifier's own loss if it has one class."""

    def targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any, axes: int) -> Targets:
        """See `Criterion`."""
        numbers = as_float32("labels", labels)
        if numbers.ndim > 1 and numbers.size != len(numbers):
            raise ValueError(f"labels: expected shape [{len(numbers)}], got {list(numbers.shape)}")
        return targets_of(inputs, numbers.reshape(-1), weights)

    def compute(self, encoder: Any, logits: Array, targets: Targets, divisor: float) -> tuple[Metrics, Array]:
        """See `Criterion`."""
        return squared_error(logits, targets, divisor)


class RowLoss(Criterion):
    """Base of the losses of one vector of labels per row."""

    def targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any, axes: int) -> Targets:
        """See `Criterion`."""
        array = as_float32("labels", labels)
        if array.ndim == axes:
            array = array[..., None]
        if array.ndim != axes + 1:
            raise ValueError(f"labels: expected {axes + 1} axes, the last one of classes, got {list(array.shape)}")
        flat = targets_of(inputs, np.zeros(array.shape[:-1], np.int64), weights)
        return Targets(array, flat.weights, flat.divisors, flat.weighted)

    def compute(self, encoder: Any, logits: Array, targets: Targets, divisor: float) -> tuple[Metrics, Array]:
        """See `Criterion`."""
        labels = targets.labels.reshape(-1, targets.labels.shape[-1])
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels: expected one number per logit, {list(logits.shape)} for all rows, got {list(labels.shape)}"
            )
        losses, gradient = self.rows(labels, logits)
        weights = targets.weights.ravel()
        total = float(np.sum(weights * losses, dtype=np.float64))
        d_logits = gradient * (weights * np.float32(reciprocal(divisor)))[:, None]
        metrics = Metrics(task_loss=(total, targets.divisors["task"]))
        return metrics, np.ascontiguousarray(d_logits, np.float32)

    def rows(self, labels: Array, logits: Array) -> tuple[Array, Array]:
        """The loss of each row ``[rows]``, and the gradients of these ``[rows, classes]``."""
        raise NotImplementedError


class CategoricalCrossEntropy(RowLoss):
    """Cross entropy of distributions over classes, ``categorical_crossentropy`` of logits."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """Make one; `label_smoothing` is the share of each label that goes to all classes evenly."""
        self._smoothing = _smoothing(label_smoothing)

    def rows(self, labels: Array, logits: Array) -> tuple[Array, Array]:
        """See `RowLoss`."""
        labels = labels * np.float32(1.0 - self._smoothing) + np.float32(self._smoothing / labels.shape[-1])
        logarithms = log_softmax(logits)
        return -(labels * logarithms).sum(-1), np.exp(logarithms) * labels.sum(-1, keepdims=True) - labels


class BinaryCrossEntropy(RowLoss):
    """Mean over the classes of the cross entropies of yes or no, ``binary_crossentropy`` of logits: several labels."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """Make one; `label_smoothing` draws labels towards one half."""
        self._smoothing = _smoothing(label_smoothing)

    def rows(self, labels: Array, logits: Array) -> tuple[Array, Array]:
        """See `RowLoss`."""
        labels = labels * np.float32(1.0 - self._smoothing) + np.float32(0.5 * self._smoothing)
        # The logarithm of 1 + exp(x), without an overflow.
        losses = np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))
        half = np.float32(0.5)
        gradient = half * (np.tanh(half * logits) + 1) - labels
        return losses.mean(-1), gradient / np.float32(logits.shape[-1])


class SquaredError(RowLoss):
    """Mean of the squared errors over a row, ``mean_squared_error``."""

    def rows(self, labels: Array, logits: Array) -> tuple[Array, Array]:
        """See `RowLoss`."""
        difference = logits - labels
        return (difference * difference).mean(-1), difference * np.float32(2.0 / logits.shape[-1])


class AbsoluteError(RowLoss):
    """Mean of the absolute errors over a row, ``mean_absolute_error``."""

    def rows(self, labels: Array, logits: Array) -> tuple[Array, Array]:
        """See `RowLoss`."""
        difference = logits - labels
        return np.abs(difference).mean(-1), np.sign(difference) / np.float32(logits.shape[-1])


class OwnLoss(Criterion):
    """A function of the user's from labels and logits to loss and gradient."""

    def __init__(self, function: LossFunction) -> None:
        self.function = function

    def targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any, axes: int) -> Targets:
        """See `Criterion`."""
        if labels is None:
            raise ValueError("labels: missing")
        array = as_array("labels", labels)
        if array.ndim < 1 or array.shape[:axes] != array.shape[: min(axes, array.ndim)]:
            raise ValueError(f"labels: expected an entry per example, got shape {list(array.shape)}")
        rows = array.shape[:axes] if array.ndim >= axes else array.shape
        flat = targets_of(inputs, np.zeros(rows, np.int64), weights)
        return Targets(array, flat.weights, flat.divisors, flat.weighted)

    def compute(self, encoder: Any, logits: Array, targets: Targets, divisor: float) -> tuple[Metrics, Array]:
        """See `Criterion`."""
        rows = targets.weights.shape
        shaped = logits.reshape(*rows, -1)
        loss, gradient = self._call(targets.labels, shaped)
        number, scale = targets.divisors["task"], np.float32(reciprocal(divisor))
        if loss.ndim:
            if loss.shape != rows:
                raise ValueError(f"loss: expected a number or an array {list(rows)} from it, got {list(loss.shape)}")
            total = float(np.sum(targets.weights * loss, dtype=np.float64))
            gradient = gradient * (targets.weights * scale)[..., None]
        else:
            if targets.weighted:
                raise ValueError(
                    "sample_weight: the loss gives one number for the whole batch; have it give one per row to be "
                    "weighted"
                )
            # As a mean, it counts as much as its rows.
            total = float(loss) * number
            gradient = gradient * np.float32(number * float(scale))
        metrics = Metrics(task_loss=(total, number))
        return metrics, np.ascontiguousarray(gradient.reshape(logits.shape), np.float32)

    def _call(self, labels: npt.NDArray[Any], logits: Array) -> tuple[npt.NDArray[Any], Array]:
        """What the function returns, checked."""
        result = self.function(labels, logits)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise TypeError(
                f"loss: expected (loss, gradient of the logits) from the function, got {type(result).__name__}; "
                "losses of Keras are given as strings or objects"
            )
        loss = as_float32("loss", result[0])
        gradient = as_float32("loss's gradient", result[1])
        if gradient.shape != logits.shape:
            raise ValueError(
                f"loss: expected a gradient of the logits' shape, {list(logits.shape)}, got {list(gradient.shape)}"
            )
        return loss, gradient


def _smoothing(value: Any) -> float:
    number = as_float("label_smoothing", value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"label_smoothing: expected 0 to 1, got {number}")
    return number
