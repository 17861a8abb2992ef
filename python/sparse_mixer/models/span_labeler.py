"""Start and end of a span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_mixer._core.vjp import OutputGradient
from sparse_mixer.gradients import Gradients
from sparse_mixer.losses import Targets
from sparse_mixer.models.base import Model, stored
from sparse_mixer.models.batch_parts import (
    check_encoder,
    check_output,
    expect_rows,
    log_softmax,
    read_classes,
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
    output_names = ("start_positions", "end_positions")

    def __init__(
        self,
        network: SparseMixer,
        initializer: Any = "glorot_uniform",
        output: str = "logits",
        *,
        name: str = "bert_span_labeler",
        seed: int | None = None,
    ) -> None:
        """Put a span head on an encoder.

        Args:
            network: The encoder.
            initializer: Of the head's kernel.
            output: ``"logits"``, or ``"predictions"`` for the logarithms of probabilities.
            name: Name of the model.
            seed: Source of the head's initial weights; None takes a random one, see `sparse_mixer.set_random_seed`.
        """
        check_encoder("network", network)
        self._config = {"output": check_output(output), "name": str(name)}
        self._head = ProjectionHead(
            "span_labeling",
            network,
            2,
            output_name="span_labeling/predictions/transform/logits",
            initializer=initializer,
            seed=seed,
        )
        super().__init__(str(name), network, [self._head])

    def hugging_face_names(self, kind: str) -> tuple[str, dict[str, str]]:
        """As `Model.hugging_face_names`."""
        return "ForQuestionAnswering", head_names(self._head, {"logits": "qa_outputs"})

    def call(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int | None = None) -> list[Array]:
        """``[start_logits, end_logits]``."""
        drops = self._call_seed(training, seed)
        sequence = self.encoder(inputs, training=training, seed=drops, outputs=self._outputs)["sequence_output"]
        logits = self._logits(sequence, drops)
        start, end = logits if self._config["output"] == "logits" else log_softmax(logits)
        return [start.copy(), end.copy()]

    def _classes(self, predicted: Any) -> Any:
        return [logits.argmax(-1) for logits in predicted]

    def _logits(self, sequence: AnyArray, seed: int | None) -> Array:
        """``[2, B, S]``."""
        logits = self._head.logits(sequence, seed)
        return np.ascontiguousarray(logits.reshape(*sequence.shape[:2], 2).transpose(2, 0, 1))

    def _targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any) -> Targets:
        if isinstance(labels, Mapping):
            if missing := set(self.output_names) - labels.keys():
                raise ValueError(f"labels: {', '.join(sorted(missing))} missing, got {sorted(map(str, labels))}")
            labels = [labels[name] for name in self.output_names]
        elif self._compiled.criterion is None:
            labels = read_classes(labels, 2)
        if labels is None or len(labels) != 2:
            shape = None if labels is None else list(np.shape(labels))
            raise ValueError(f"labels: expected shape [2, B], got {shape}")
        # Keras adds up the losses of outputs; the model's own loss is their mean.
        shares = self._compiled.loss_weights or [1.0 if self._compiled.criterion else 0.5] * 2
        both = [self._criterion().targets(inputs, own, weights, 1) for own in labels]
        number = both[0].divisors["task"]
        if len(both[1].labels) != len(both[0].labels):
            raise ValueError(
                f"labels: expected as many ends as starts, got {len(both[1].labels)} and {len(both[0].labels)}"
            )
        weight = sum(share * own.divisors["weight"] for share, own in zip(shares, both, strict=True))
        divisors = {**both[0].divisors, "task": number, "weight": weight}
        stacked = np.stack([own.weights for own in both])
        return Targets([*zip(shares, both, strict=True)], stacked, divisors, both[0].weighted)

    def _loss(
        self,
        outputs: Mapping[str, Any],
        targets: Targets,
        divisors: Mapping[str, float],
        seed: int | None,
        into: Gradients | None,
    ) -> tuple[Metrics, dict[str, OutputGradient]]:
        sequence = outputs["sequence_output"]
        batch = sequence.shape[0]
        metrics, gradients, total = Metrics(), [], 0.0
        for name, logits, (share, own) in zip(
            self.output_names, self._logits(sequence, seed), targets.labels, strict=True
        ):
            expect_rows(own.labels, (batch,))
            found, d_logits = self._judged(np.ascontiguousarray(logits), own, divisors["task"])
            gradients.append(d_logits * np.float32(share))
            loss, _ = found.pop("task_loss")
            total += share * loss
            if self._compiled.criterion is not None or self._compiled.metrics:
                metrics.add({f"{name}_loss": (loss, own.divisors["task"])})
                metrics.add({f"{name}_{key}": value for key, value in found.items()})
            else:
                metrics.add(found)
        metrics["task_loss"] = (total, targets.divisors["task"])
        if into is None:
            return metrics, {}
        by_position = np.ascontiguousarray(np.stack(gradients, axis=-1), np.float32).reshape(-1, 2)
        return metrics, {"sequence_output": self._head.backward(sequence, by_position, seed, into)}
