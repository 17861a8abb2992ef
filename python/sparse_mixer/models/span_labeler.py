"""Start and end of a span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_mixer._core.vjp import OutputGradient
from sparse_mixer.gradients import Gradients
from sparse_mixer.losses import Targets, classification
from sparse_mixer.models.base import Model, stored
from sparse_mixer.models.batch_parts import (
    check_encoder,
    check_output,
    expect_shape,
    log_softmax,
    read_classes,
    read_weights,
    targets_of,
)
from sparse_mixer.models.heads import AnyArray, Array, ProjectionHead, head_names
from sparse_mixer.networks import SparseMixer
from sparse_mixer.training.metrics import Metrics


@stored
class BertSpanLabeler(Model):
    """Start and end of a span. ``model(inputs)`` gives ``[start_logits, end_logits]``, each ``[B, S]``.

    Labels are a dict of ``start_positions`` and ``end_positions``, or a pair of such, each ``[B]``.
    """

    _labels_are_pairs = True

    def __init__(
        self,
        network: SparseMixer,
        initializer: Any = "glorot_uniform",
        output: str = "logits",
        *,
        seed: int | None = None,
    ) -> None:
        """Put a span head on an encoder.

        Args:
            network: The encoder.
            initializer: Of the head's kernel.
            output: ``"logits"``, or ``"predictions"`` for the logarithms of probabilities.
            seed: Source of the head's initial weights; None takes a random one, see `sparse_mixer.set_random_seed`.
        """
        check_encoder("network", network)
        self._config = {"output": check_output(output)}
        self._head = ProjectionHead(
            "span_labeling",
            network,
            2,
            output_name="span_labeling/predictions/transform/logits",
            initializer=initializer,
            seed=seed,
        )
        super().__init__("bert_span_labeler", network, [self._head])

    def hugging_face_names(self) -> tuple[str, dict[str, str]]:
        """As `Model.hugging_face_names`."""
        return "BertForQuestionAnswering", head_names(self._head, {"logits": "qa_outputs"})

    def call(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int | None = None) -> list[Array]:
        """``[start_logits, end_logits]``."""
        drops = self._call_seed(training, seed)
        sequence = self.encoder(inputs, training=training, seed=drops, outputs=self._outputs)["sequence_output"]
        logits = self._logits(sequence, drops)
        start, end = logits if self._config["output"] == "logits" else log_softmax(logits)
        return [start.copy(), end.copy()]

    def _logits(self, sequence: AnyArray, seed: int | None) -> Array:
        """``[2, B, S]``."""
        logits = self._head.logits(sequence, seed)
        return np.ascontiguousarray(logits.reshape(*sequence.shape[:2], 2).transpose(2, 0, 1))

    def _targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any) -> Targets:
        if isinstance(labels, Mapping):
            if missing := {"start_positions", "end_positions"} - labels.keys():
                raise ValueError(f"labels: {', '.join(sorted(missing))} missing, got {sorted(map(str, labels))}")
            labels = [labels["start_positions"], labels["end_positions"]]
        positions = read_classes(labels, 2)
        if len(positions) != 2:
            raise ValueError(f"labels: expected shape [2, B], got {list(positions.shape)}")
        if weights is not None:
            weights = np.stack([read_weights(weights, positions.shape[1:])] * 2)
        return targets_of(inputs, positions, weights)

    def _loss(
        self,
        outputs: Mapping[str, Any],
        targets: Targets,
        divisors: Mapping[str, float],
        seed: int | None,
        into: Gradients | None,
    ) -> tuple[Metrics, dict[str, OutputGradient]]:
        sequence = outputs["sequence_output"]
        batch, length = sequence.shape[:2]
        expect_shape("labels", targets.labels, (2, batch))
        logits = self._logits(sequence, seed).reshape(2 * batch, length)
        metrics, d_logits = classification(self.encoder, logits, targets, divisors["task"])
        if into is None:
            return metrics, {}
        by_position = np.ascontiguousarray(d_logits.reshape(2, batch, length).transpose(1, 2, 0)).reshape(-1, 2)
        return metrics, {"sequence_output": self._head.backward(sequence, by_position, seed, into)}
