"""Start and end of a span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_mixer.gradients import Gradients
from sparse_mixer.losses import mean_cross_entropy, task_metrics
from sparse_mixer.models.base import Model, stored
from sparse_mixer.models.batch_parts import as_rows, check_encoder, read_labels, read_weights
from sparse_mixer.models.heads import Array, ProjectionHead
from sparse_mixer.networks import SparseMixer
from sparse_mixer.training.metrics import Metrics


@stored
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
        check_encoder("network", network)
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
        logits = self._head.logits(as_rows(sequence), seed)
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
        positions = read_labels(labels, (2, batch))
        sample_weight = np.tile(read_weights(weights, (batch,)), 2)
        logits = self._logits(sequence, seed).reshape(2 * batch, length)
        sums, d_logits = mean_cross_entropy(self.encoder, logits, positions.ravel(), sample_weight)
        if into is None:
            return task_metrics(sums), {}
        by_position = np.ascontiguousarray(d_logits.reshape(2, batch, length).transpose(1, 2, 0)).reshape(-1, 2)
        d_features = self._head.backward(as_rows(sequence), by_position, seed, into)
        return task_metrics(sums), {"sequence_output": d_features.reshape(sequence.shape)}
