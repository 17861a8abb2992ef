"""Encoders with heads, named as in ``tfm.nlp.models``, that can be trained.

Every model is called on the encoder's inputs and gives what its namesake gives. For training, a batch is

* ``(inputs, labels)`` or ``(inputs, labels, sample_weight)`` for `BertClassifier`, `BertTokenClassifier` and
  `BertSpanLabeler`,
* one dict of inputs and labels for `BertPretrainerV2`, under the Model Garden's keys.

The loss that is minimised is the mean cross entropy (squared error for one class) plus the encoder's auxiliary losses.

Example:
    >>> import numpy as np
    >>> from sparse_mixer import SparseMixer, models, optimizers
    >>> encoder = SparseMixer(100, hidden_size=16, num_layers=2, inner_dim=32, max_sequence_length=8, seed=0)
    >>> model = models.BertClassifier(encoder, num_classes=3)
    >>> ids = np.arange(32, dtype=np.int32).reshape(4, 8)
    >>> inputs = dict(input_word_ids=ids, input_mask=np.ones_like(ids), input_type_ids=np.zeros_like(ids))
    >>> labels = np.array([0, 1, 2, 0])
    >>> history = model.fit((inputs, labels), optimizer=optimizers.AdamW(1e-3), epochs=2, progress=False)
    >>> model(inputs).shape
    (4, 3)

``model.save(path)`` and ``BertClassifier.load(path)`` keep encoder and heads in one file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sparse_mixer import activations
from sparse_mixer._arguments import as_int
from sparse_mixer._heads import Array, MaskedLMHead, ProjectionHead, Sums, cross_entropy
from sparse_mixer._model import Metrics as Metrics
from sparse_mixer._model import Model as Model
from sparse_mixer._variables import as_float32
from sparse_mixer.gradients import Gradients
from sparse_mixer.networks import SparseMixer

# Odd, far from small integers: heads get unrelated dropout seeds.
_SEED_STRIDE = 0xD1B54A32D192ED03
_SEED_RANGE = 2**64


class BertClassifier(Model):
    """One label per example, from ``pooled_output`` or from the first position.

    ``model(inputs)`` gives logits ``[B, num_classes]``. Labels are class indices ``[B]``; with one class they are
    numbers, and the loss is the squared error.
    """

    def __init__(
        self,
        network: SparseMixer,
        num_classes: int,
        initializer: Any = "glorot_uniform",
        dropout_rate: float = 0.1,
        use_encoder_pooler: bool = True,
        head_name: str = "sentence_prediction",
        *,
        seed: int = 0,
    ) -> None:
        """Put a classification head on an encoder.

        Args:
            network: The encoder.
            num_classes: Number of classes; 1 for regression.
            initializer: Of the head's kernels.
            dropout_rate: Dropout before the last layer; with the encoder's pooler, also on its output, as in the
                reference.
            use_encoder_pooler: Whether the head sees ``pooled_output``; otherwise it has a tanh layer of its own on
                the first position of ``sequence_output``.
            head_name: Prefix of the head's weights.
            seed: Source of the head's initial weights.
        """
        _check_encoder("network", network)
        self.num_classes = as_int("num_classes", num_classes)
        self.use_encoder_pooler = bool(use_encoder_pooler)
        self._outputs = ("pooled_output",) if self.use_encoder_pooler else ("sequence_output",)
        self._config = {
            "num_classes": self.num_classes,
            "dropout_rate": float(dropout_rate),
            "use_encoder_pooler": self.use_encoder_pooler,
            "head_name": head_name,
        }
        self._head = ProjectionHead(
            head_name,
            network,
            self.num_classes,
            inner_width=0 if self.use_encoder_pooler else network.arguments.hidden_size,
            input_dropout=dropout_rate if self.use_encoder_pooler else 0.0,
            dropout=dropout_rate,
            output_name=f"{head_name}/logits",
            initializer=initializer,
            seed=seed,
        )
        super().__init__("bert_classifier", network, [self._head])

    def __call__(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int = 0) -> Array:
        """Logits ``[B, num_classes]``."""
        outputs = self.encoder(inputs, training=training, seed=seed, outputs=self._outputs)
        return self._head.logits(self._features(outputs), seed if training else None)

    def predict(self, inputs: Mapping[str, Any]) -> npt.NDArray[Any]:
        """Most likely class ``[B]`` of each example; for regression the numbers."""
        logits = self(inputs)
        return logits[:, 0] if self.num_classes == 1 else logits.argmax(-1)

    def _features(self, outputs: Mapping[str, Any]) -> Array:
        if self.use_encoder_pooler:
            pooled: Array = outputs["pooled_output"]
            return pooled
        return np.ascontiguousarray(outputs["sequence_output"][:, 0])

    def _loss(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any],
        labels: Any,
        weights: Any,
        seed: int | None,
        into: Gradients | None,
    ) -> tuple[Metrics, dict[str, Array]]:
        features = self._features(outputs)
        logits = self._head.logits(features, seed)
        sample_weight = _weights(weights, (len(features),))
        if self.num_classes == 1:
            metrics, d_logits = _squared_error(logits, labels, sample_weight)
        else:
            sums, d_logits = _mean_cross_entropy(self.encoder, logits, _labels(labels, (len(features),)), sample_weight)
            metrics = _task(sums)
        if into is None:
            return metrics, {}
        d_features = self._head.backward(features, d_logits, seed, into)
        if self.use_encoder_pooler:
            return metrics, {"pooled_output": d_features}
        d_sequence = np.zeros_like(outputs["sequence_output"])
        d_sequence[:, 0] = d_features
        return metrics, {"sequence_output": d_sequence}


class BertTokenClassifier(Model):
    """One label per position. ``model(inputs)`` gives ``{"logits": [B, S, num_classes]}``.

    Labels are class indices ``[B, S]``; negative ones count for nothing.
    """

    def __init__(
        self,
        network: SparseMixer,
        num_classes: int,
        initializer: Any = "glorot_uniform",
        dropout_rate: float = 0.1,
        *,
        seed: int = 0,
    ) -> None:
        """Put a classifier on every position of an encoder's output.

        Args:
            network: The encoder.
            num_classes: Number of classes.
            initializer: Of the head's kernel.
            dropout_rate: Dropout on the encoder's output.
            seed: Source of the head's initial weights.
        """
        _check_encoder("network", network)
        self._config = {"num_classes": as_int("num_classes", num_classes), "dropout_rate": float(dropout_rate)}
        self._head = ProjectionHead(
            "predictions",
            network,
            as_int("num_classes", num_classes),
            dropout=dropout_rate,
            output_name="predictions/transform/logits",
            initializer=initializer,
            seed=seed,
        )
        super().__init__("bert_token_classifier", network, [self._head])

    def __call__(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int = 0) -> dict[str, Array]:
        """``{"logits": [B, S, num_classes]}``."""
        sequence = self.encoder(inputs, training=training, seed=seed, outputs=self._outputs)["sequence_output"]
        logits = self._head.logits(_as_rows(sequence), seed if training else None)
        return {"logits": logits.reshape(*sequence.shape[:2], -1)}

    def _loss(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any],
        labels: Any,
        weights: Any,
        seed: int | None,
        into: Gradients | None,
    ) -> tuple[Metrics, dict[str, Array]]:
        sequence = outputs["sequence_output"]
        features = _as_rows(sequence)
        classes = _labels(labels, sequence.shape[:2])
        counted = _weights(weights, sequence.shape[:2]) * (classes >= 0)
        logits = self._head.logits(features, seed)
        sums, d_logits = _mean_cross_entropy(self.encoder, logits, classes.ravel(), counted.ravel())
        if into is None:
            return _task(sums), {}
        d_features = self._head.backward(features, d_logits, seed, into)
        return _task(sums), {"sequence_output": d_features.reshape(sequence.shape)}


class BertSpanLabeler(Model):
    """Start and end of a span. ``model(inputs)`` gives ``[start_logits, end_logits]``, each ``[B, S]``.

    Labels are a dict of ``start_positions`` and ``end_positions``, or a pair of such, each ``[B]``.
    """

    def __init__(self, network: SparseMixer, initializer: Any = "glorot_uniform", *, seed: int = 0) -> None:
        """Put a span head on an encoder.

        Args:
            network: The encoder.
            initializer: Of the head's kernel.
            seed: Source of the head's initial weights.
        """
        _check_encoder("network", network)
        self._head = ProjectionHead(
            "span_labeling",
            network,
            2,
            output_name="span_labeling/predictions/transform/logits",
            initializer=initializer,
            seed=seed,
        )
        super().__init__("bert_span_labeler", network, [self._head])

    def __call__(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int = 0) -> list[Array]:
        """``[start_logits, end_logits]``."""
        sequence = self.encoder(inputs, training=training, seed=seed, outputs=self._outputs)["sequence_output"]
        return list(self._logits(sequence, seed if training else None))

    def _logits(self, sequence: Array, seed: int | None) -> Array:
        """``[2, B, S]``."""
        logits = self._head.logits(_as_rows(sequence), seed)
        return np.ascontiguousarray(logits.reshape(*sequence.shape[:2], 2).transpose(2, 0, 1))

    def _loss(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any],
        labels: Any,
        weights: Any,
        seed: int | None,
        into: Gradients | None,
    ) -> tuple[Metrics, dict[str, Array]]:
        sequence = outputs["sequence_output"]
        batch, length = sequence.shape[:2]
        if isinstance(labels, Mapping):
            if missing := {"start_positions", "end_positions"} - labels.keys():
                raise ValueError(f"labels: {', '.join(sorted(missing))} missing, got {sorted(map(str, labels))}")
            labels = [labels["start_positions"], labels["end_positions"]]
        positions = _labels(labels, (2, batch))
        sample_weight = np.tile(_weights(weights, (batch,)), 2)
        logits = self._logits(sequence, seed).reshape(2 * batch, length)
        sums, d_logits = _mean_cross_entropy(self.encoder, logits, positions.ravel(), sample_weight)
        if into is None:
            return _task(sums), {}
        by_position = np.ascontiguousarray(d_logits.reshape(2, batch, length).transpose(1, 2, 0)).reshape(-1, 2)
        d_features = self._head.backward(_as_rows(sequence), by_position, seed, into)
        return _task(sums), {"sequence_output": d_features.reshape(sequence.shape)}


@dataclass(frozen=True)
class ClassificationHead:
    """A head of `BertPretrainerV2` on the first position: a tanh layer, dropout, logits.

    The heads of the paper's JAX code are ``ClassificationHead(0, 2, use_encoder_pooler=True)``.

    Attributes:
        inner_dim: Width of the tanh layer; 0 for none.
        num_classes: Number of classes.
        dropout_rate: Dropout before the last layer.
        initializer: Of the kernels.
        name: Prefix of the weights; ``<name>_labels`` are its labels in a batch.
        use_encoder_pooler: Whether the head sees ``pooled_output`` instead of the first row of ``sequence_output``.
    """

    inner_dim: int
    num_classes: int
    dropout_rate: float = 0.0
    initializer: Any = "glorot_uniform"
    name: str = "next_sentence"
    use_encoder_pooler: bool = False

    def get_config(self) -> dict[str, Any]:
        """The attributes by name, without the initialiser."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "initializer"}


class BertPretrainerV2(Model):
    """Masked language model with tied embeddings, and perhaps heads such as next-sentence prediction.

    ``model(inputs)`` gives the encoder's outputs, ``mlm_logits`` ``[B, P, vocab_size]`` if there are
    ``masked_lm_positions`` ``[B, P]`` among the inputs, and one array of logits per classification head under its name.

    A batch for training is the dict of inputs with ``masked_lm_positions``, ``masked_lm_ids`` and
    ``masked_lm_weights``, each ``[B, P]``, and ``<head>_labels`` ``[B]`` for each head; `masking.mask_tokens`
    makes the former. The loss is the mean over predictions plus the means of the heads.
    """

    def __init__(
        self,
        encoder_network: SparseMixer,
        mlm_activation: Any = None,
        mlm_initializer: Any = "glorot_uniform",
        classification_heads: Sequence[ClassificationHead] = (),
        name: str = "bert",
        *,
        seed: int = 0,
    ) -> None:
        """Put pre-training heads on an encoder.

        Args:
            encoder_network: The encoder.
            mlm_activation: Activation of the masked language model's transform; None for none, BERT's is ``"gelu"``.
            mlm_initializer: Of its kernel.
            classification_heads: Further heads.
            name: Name of the model.
            seed: Source of the heads' initial weights.
        """
        _check_encoder("encoder_network", encoder_network)
        heads = list(classification_heads or ())
        self._config = {
            "mlm_activation": activations.serialize(activations.resolve(mlm_activation, "mlm_activation")),
            "classification_heads": [head.get_config() for head in heads],
            "name": name,
        }
        self.masked_lm = MaskedLMHead(
            "cls/predictions", encoder_network, activation=mlm_activation, initializer=mlm_initializer, seed=seed
        )
        self.classification_heads = [
            ProjectionHead(
                head.name,
                encoder_network,
                as_int("num_classes", head.num_classes),
                inner_width=as_int("inner_dim", head.inner_dim or 0),
                dropout=head.dropout_rate,
                output_name=f"{head.name}/logits",
                initializer=head.initializer,
                seed=seed + 1 + number,
            )
            for number, head in enumerate(heads)
        ]
        self._pools = [bool(head.use_encoder_pooler) for head in heads]
        if any(self._pools):
            self._outputs = ("sequence_output", "pooled_output")
        super().__init__(name, encoder_network, [self.masked_lm, *self.classification_heads])

    def __call__(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int = 0) -> dict[str, Any]:
        """The encoder's outputs and the heads' logits."""
        outputs: dict[str, Any] = self.encoder(inputs, training=training, seed=seed)
        sequence = outputs["sequence_output"]
        if inputs.get("masked_lm_positions") is not None:
            outputs["mlm_logits"] = self.masked_lm.logits(sequence, _integers(inputs, "masked_lm_positions"))
        features = self._features(outputs)
        for number, head in enumerate(self.classification_heads):
            outputs[head.name] = head.logits(features[number], _head_seed(seed, number) if training else None)
        return outputs

    @classmethod
    def _from_config(cls, encoder: Any, config: Mapping[str, Any]) -> Self:
        heads = [ClassificationHead(**head) for head in config["classification_heads"]]
        return cls(encoder, **{**config, "classification_heads": heads})

    def _features(self, outputs: Mapping[str, Any]) -> list[Array]:
        """What each classification head sees, [B, H]."""
        first = np.ascontiguousarray(outputs["sequence_output"][:, 0])
        return [outputs["pooled_output"] if pools else first for pools in self._pools]

    def _loss(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any],
        labels: Any,
        weights: Any,
        seed: int | None,
        into: Gradients | None,
    ) -> tuple[Metrics, dict[str, Array]]:
        sequence = outputs["sequence_output"]
        positions = _integers(inputs, "masked_lm_positions")
        ids = _integers(inputs, "masked_lm_ids")
        counted = as_float32("masked_lm_weights", inputs.get("masked_lm_weights", np.ones(positions.shape)))
        if not positions.shape == ids.shape == counted.shape:
            raise ValueError(
                "masked_lm_ids, masked_lm_weights: expected the shape of masked_lm_positions, "
                f"{positions.shape}, got {ids.shape} and {counted.shape}"
            )
        weight = float(counted.sum())
        scale = 1.0 / weight if weight else 0.0
        sums, d_sequence = self.masked_lm.loss(sequence, positions, ids, counted, scale=scale, into=into)
        metrics = Metrics(mlm_loss=(sums.loss, sums.weight), mlm_accuracy=(sums.hits, sums.weight))
        total = sums.loss * scale
        d_pooled = np.zeros((len(sequence), sequence.shape[-1]), np.float32) if any(self._pools) else None
        for number, (head, features) in enumerate(zip(self.classification_heads, self._features(outputs), strict=True)):
            head_seed = None if seed is None else _head_seed(seed, number)
            logits = head.logits(features, head_seed)
            classes = _labels(inputs.get(f"{head.name}_labels"), (len(features),), f"{head.name}_labels")
            sums, d_logits = _mean_cross_entropy(self.encoder, logits, classes, _weights(None, (len(features),)))
            metrics[f"{head.name}_loss"] = (sums.loss, sums.weight)
            metrics[f"{head.name}_accuracy"] = (sums.hits, sums.weight)
            total += sums.loss / sums.weight
            if into is not None and d_sequence is not None:
                d_features = head.backward(features, d_logits, head_seed, into)
                if d_pooled is not None and self._pools[number]:
                    d_pooled += d_features
                else:
                    d_sequence[:, 0] += d_features
        metrics["task_loss"] = (total * weight, weight)
        if d_sequence is None:
            return metrics, {}
        gradients = {"sequence_output": d_sequence}
        return metrics, gradients if d_pooled is None else {**gradients, "pooled_output": d_pooled}


KINDS = (BertClassifier, BertTokenClassifier, BertSpanLabeler, BertPretrainerV2)
"""The models that files hold."""


def _as_rows(sequence: Array) -> Array:
    return sequence.reshape(-1, sequence.shape[-1])


def _head_seed(seed: int, number: int) -> int:
    return (seed + number * _SEED_STRIDE) % _SEED_RANGE


def _labels(labels: Any, shape: tuple[int, ...], argument: str = "labels") -> npt.NDArray[np.int64]:
    if labels is None:
        raise ValueError(f"{argument}: missing")
    array = np.asarray(labels)
    if array.dtype.kind not in "iub":
        raise TypeError(f"{argument}: expected integers, got dtype {array.dtype}")
    if array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.shape != shape:
        raise ValueError(f"{argument}: expected shape {list(shape)}, got {list(array.shape)}")
    return array.astype(np.int64, copy=False)


def _integers(inputs: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
    if inputs.get(key) is None:
        raise ValueError(f"{key}: missing from the inputs")
    array = np.asarray(inputs[key])
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise ValueError(f"{key}: expected integers [B, P], got {array.dtype} {list(array.shape)}")
    return array


def _weights(weights: Any, shape: tuple[int, ...]) -> Array:
    if weights is None:
        return np.ones(shape, np.float32)
    array = as_float32("sample_weight", weights)
    if array.shape != shape:
        raise ValueError(f"sample_weight: expected shape {list(shape)}, got {list(array.shape)}")
    return array


def _mean_cross_entropy(
    encoder: Any, logits: Array, labels: npt.NDArray[np.int64], weights: Array
) -> tuple[Sums, Array]:
    """Sums, and the gradient of the weighted mean."""
    weight = float(weights.sum())
    return cross_entropy(encoder, logits, labels, weights, 1.0 / weight if weight else 0.0)


def _squared_error(logits: Array, labels: Any, weights: Array) -> tuple[Metrics, Array]:
    targets = as_float32("labels", labels).reshape(-1)
    if targets.shape != weights.shape:
        raise ValueError(f"labels: expected shape {list(weights.shape)}, got {list(np.shape(labels))}")
    difference = logits[:, 0] - targets
    weight = float(weights.sum())
    loss = float(np.sum(weights * difference * difference, dtype=np.float64))
    d_logits = (2.0 / weight if weight else 0.0) * (weights * difference)
    return Metrics(task_loss=(loss, weight)), np.ascontiguousarray(d_logits[:, None], np.float32)


def _task(sums: Sums) -> Metrics:
    return Metrics(task_loss=(sums.loss, sums.weight), accuracy=(sums.hits, sums.weight))


def _check_encoder(argument: str, value: Any) -> None:
    if not isinstance(value, SparseMixer):
        raise TypeError(f"{argument}: expected a SparseMixer, got {type(value).__name__}")
