"""One label per example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.arguments import as_int
from sparse_mixer.gradients import Gradients
from sparse_mixer.losses import mean_cross_entropy, squared_error, task_metrics
from sparse_mixer.models.base import Model, stored
from sparse_mixer.models.batch_parts import check_encoder, read_labels, read_weights
from sparse_mixer.models.heads import Array, ProjectionHead
from sparse_mixer.networks import SparseMixer
from sparse_mixer.training.metrics import Metrics


@stored
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
        check_encoder("network", network)
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
        sample_weight = read_weights(weights, (len(features),))
        if self.num_classes == 1:
            metrics, d_logits = squared_error(logits, labels, sample_weight)
        else:
            sums, d_logits = mean_cross_entropy(
                self.encoder, logits, read_labels(labels, (len(features),)), sample_weight
            )
            metrics = task_metrics(sums)
        if into is None:
            return metrics, {}
        d_features = self._head.backward(features, d_logits, seed, into)
        if self.use_encoder_pooler:
            return metrics, {"pooled_output": d_features}
        d_sequence = np.zeros_like(outputs["sequence_output"])
        d_sequence[:, 0] = d_features
        return metrics, {"sequence_output": d_sequence}
