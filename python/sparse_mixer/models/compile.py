"""From what `compile` is given to losses and metrics of ours: names, objects of Keras, functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparse_mixer._core.checks import as_float
from sparse_mixer.models import criteria, row_metrics
from sparse_mixer.models.criteria import Criterion, OwnLoss
from sparse_mixer.models.keras_objects import described, refuse_others
from sparse_mixer.models.row_metrics import RowMetric
from sparse_mixer.optimizers import Optimizer

POSSIBLE_LOSSES = (
    "possible are None for the model's own, Keras's SparseCategoricalCrossentropy, CategoricalCrossentropy and "
    "BinaryCrossentropy with from_logits=True, MeanSquaredError and MeanAbsoluteError, the names 'mse' and 'mae', and "
    "a function (labels, logits) -> (loss, gradient of the logits)"
)
POSSIBLE_METRICS = (
    "possible are 'accuracy', 'sparse_categorical_accuracy', 'categorical_accuracy', 'binary_accuracy', "
    "'sparse_top_k_categorical_accuracy', 'top_k_categorical_accuracy', 'sparse_categorical_crossentropy' (of "
    "logits), 'mse', 'mae', Keras's objects of these, and functions (labels, logits) -> one number per row"
)

# Names that Keras has for the same.
_SHORT = {
    "mse": "meansquarederror",
    "mae": "meanabsoluteerror",
    "acc": "accuracy",
}
# What Keras calls the mean over rows.
_MEANS = ("auto", "mean", "sum_over_batch_size")
_CROSS_ENTROPIES = ("sparsecategoricalcrossentropy", "categoricalcrossentropy", "binarycrossentropy")


@dataclass
class Compiled:
    """What a model has been compiled with.

    Attributes:
        optimizer: An optimiser of ours, or None.
        criterion: The loss; None for the model's own.
        metrics: What to measure besides the loss.
        loss_weights: Factors of the losses of the outputs, in their order; None for 1 each.
    """

    optimizer: Optimizer | None = None
    criterion: Criterion | None = None
    metrics: list[RowMetric] = field(default_factory=list)
    loss_weights: list[float] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the metrics, in their order."""
        return [metric.name for metric in self.metrics]


def criterion_of(loss: Any) -> Criterion | None:
    """The loss that `loss` stands for; None for the model's own.

    Raises:
        ValueError: A loss of probabilities, an unknown name, or a setting that has no counterpart.
        TypeError: Something else.
    """
    loss = the_only("loss", loss)
    known = described("loss", loss, POSSIBLE_LOSSES)
    if loss is None or isinstance(loss, Criterion):
        return loss
    if isinstance(loss, str):
        return _criterion(_plain_name(loss), {}, repr(loss))
    if known is not None:
        kind, config = known
        return _criterion(_plain_name(kind), config or {}, kind)
    if callable(loss) and not isinstance(loss, type):
        if str(getattr(loss, "__module__", "")).split(".")[0] in ("keras", "tf_keras", "tensorflow"):
            raise TypeError(f"loss: {loss.__name__} of Keras gives no gradient by itself; {POSSIBLE_LOSSES}")
        return OwnLoss(loss)
    raise TypeError(f"loss: got {loss!r}; {POSSIBLE_LOSSES}")


def metrics_of(argument: str, metrics: Any, weighted: bool) -> list[RowMetric]:
    """The metrics that `metrics` stands for.

    Args:
        argument: Name in messages.
        metrics: A list of names, objects and functions, one of them by itself, or a dict or list with such a list for
            the only output.
        weighted: Whether rows count by their sample weights.

    Raises:
        ValueError: An unknown name, or a setting that has no counterpart.
        TypeError: Something else.
    """
    given = the_only(argument, metrics)
    if given is None:
        return []
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if len(listed) == 1 and isinstance(listed[0], list | tuple):
        listed = list(listed[0])
    return [_metric(argument, metric)._replace(weighted=weighted) for metric in listed]


def the_only(argument: str, given: Any) -> Any:
    """What is given for the only output, if `given` is a dict by the outputs' names; several must be alike."""
    if not isinstance(given, Mapping) or "class_name" in given:
        return given
    values = list(given.values())
    if not values or any(not _alike(argument, value, values[0]) for value in values[1:]):
        raise ValueError(f"{argument}: expected one entry, or the same for all outputs, got {sorted(map(str, given))}")
    return values[0]


def _alike(argument: str, one: Any, other: Any) -> bool:
    """Whether two entries are equal, or objects of Keras with the same settings."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(lambda *both: _alike(argument, *both), one, other))
    known = described(argument, one)
    return bool(one == other) or (known is not None and known == described(argument, other))


def weights_of(loss_weights: Any, names: Sequence[str]) -> list[float] | None:
    """Factors of the losses of the outputs called `names`."""
    if loss_weights is None:
        return None
    if isinstance(loss_weights, Mapping):
        if unknown := sorted(map(str, set(loss_weights) - set(names))):
            raise ValueError(f"loss_weights: no outputs are called {unknown}; they are {list(names)}")
        factors = [as_float("loss_weights", loss_weights.get(name, 1.0)) for name in names]
    elif isinstance(loss_weights, list | tuple) and len(loss_weights) == len(names):
        factors = [as_float("loss_weights", weight) for weight in loss_weights]
    else:
        raise ValueError(f"loss_weights: expected one number per output {list(names)}, got {loss_weights!r}")
    if len(factors) == 1 and factors[0] != 1.0:
        raise ValueError(
            f"loss_weights: got {factors[0]}, and this model has one output, of which the loss counts 1; give "
            "sample_weight, or a loss of your own"
        )
    return factors


def _plain_name(name: str) -> str:
    plain = name.replace("_", "").lower()
    return _SHORT.get(plain, plain)


def _criterion(kind: str, config: Mapping[str, Any], shown: str) -> Criterion:
    if config.get("reduction", "mean") not in _MEANS:
        raise ValueError(f"loss: reduction={config['reduction']!r} of {shown} has no counterpart; losses are means")
    if kind in _CROSS_ENTROPIES and not config.get("from_logits"):
        raise ValueError(
            f"loss: {shown} without from_logits=True is one of probabilities, and the model gives logits; "
            f"{POSSIBLE_LOSSES}"
        )
    made: dict[str, Callable[[], Criterion]] = {
        "sparsecategoricalcrossentropy": lambda: criteria.SparseCrossEntropy(config.get("ignore_class")),
        "categoricalcrossentropy": lambda: criteria.CategoricalCrossEntropy(config.get("label_smoothing") or 0.0),
        "binarycrossentropy": lambda: criteria.BinaryCrossEntropy(config.get("label_smoothing") or 0.0),
        "meansquarederror": criteria.SquaredError,
        "meanabsoluteerror": criteria.AbsoluteError,
    }
    if kind not in made:
        raise ValueError(f"loss: {shown} has no counterpart here; {POSSIBLE_LOSSES}")
    smoothing = {"label_smoothing": ()} if kind in _CROSS_ENTROPIES[1:] else {"ignore_class": ()}
    refuse_others("loss", shown, config, {"reduction": (), "from_logits": (), "axis": (-1,), "fn": (), **smoothing})
    return made[kind]()


def _metric(argument: str, metric: Any) -> RowMetric:
    if isinstance(metric, RowMetric):
        return metric
    if isinstance(metric, str):
        return RowMetric(metric, _row_function(argument, _plain_name(metric), {}, repr(metric)))
    known = described(argument, metric, POSSIBLE_METRICS)
    if known is not None:
        shown, config = known[0], known[1] or {}
        kind = _plain_name(shown)
        if kind == "sparsecategoricalcrossentropy" and not config.get("from_logits"):
            raise ValueError(f"{argument}: {shown} needs from_logits=True: the model gives logits")
        function = _row_function(argument, kind, config, shown)
        heeded: dict[str, tuple[Any, ...]] = {"axis": (-1,), "from_logits": (), "fn": (), "threshold": (), "k": ()}
        refuse_others(argument, shown, config, heeded)
        return RowMetric(str(config.get("name", kind) if isinstance(metric, Mapping) else metric.name), function)
    if callable(metric) and not isinstance(metric, type):
        return RowMetric(getattr(metric, "__name__", type(metric).__name__), metric)
    raise TypeError(f"{argument}: got {metric!r}; {POSSIBLE_METRICS}")


def _row_function(argument: str, kind: str, config: Mapping[str, Any], shown: str) -> row_metrics.RowFunction:
    k, threshold = int(config.get("k") or 5), config.get("threshold")
    functions = {
        # As an object of Keras, `Accuracy` compares labels with logits for equality, which is never meant.
        "accuracy": None if config else row_metrics.accuracy,
        "sparsecategoricalaccuracy": row_metrics.sparse_accuracy,
        "categoricalaccuracy": row_metrics.categorical_accuracy,
        "binaryaccuracy": row_metrics.binary_accuracy(0.5 if threshold is None else float(threshold)),
        "sparsetopkcategoricalaccuracy": row_metrics.top_k(k, sparse=True),
        "topkcategoricalaccuracy": row_metrics.top_k(k, sparse=False),
        "sparsecategoricalcrossentropy": row_metrics.sparse_cross_entropy,
        "meansquarederror": row_metrics.squared_error,
        "meanabsoluteerror": row_metrics.absolute_error,
    }
    found = functions.get(kind)
    if found is None:
        raise ValueError(f"{argument}: {shown} has no counterpart here; {POSSIBLE_METRICS}")
    return found
