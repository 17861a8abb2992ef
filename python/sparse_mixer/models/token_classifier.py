"""One label per position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_mixer._core.checks import as_bool, as_int
from sparse_mixer._core.vjp import OutputGradient
from sparse_mixer.gradients import Gradients
from sparse_mixer.losses import Targets
from sparse_mixer.models.base import Model, stored
from sparse_mixer.models.batch_parts import (
    check_encoder,
    check_output,
    expect_rows,
    log_softmax,
)
from sparse_mixer.models.criteria import SparseCrossEntropy
from sparse_mixer.models.heads import Array, ProjectionHead, head_names
from sparse_mixer.networks import SparseMixer
from sparse_mixer.training.metrics import Metrics


@stored
class BertTokenClassifier(Model):
    """One label per position. ``model(inputs)`` gives ``{"logits": [B, S, num_classes]}``.

    Labels are class indices ``[B, S]``; negative ones count for nothing. Sample weights are ``[B, S]`` or ``[B]``.
    """

    _own_criterion = SparseCrossEntropy(ignores_negative=True)

    def __init__(
        self,
        network: SparseMixer,
        num_classes: int,
        initializer: Any = "glorot_uniform",
        output: str = "logits",
        dropout_rate: float = 0.1,
        output_encoder_outputs: bool = False,
        *,
        name: str = "bert_token_classifier",
        seed: int | None = None,
    ) -> None:
        """Put a classifier on every position of an encoder's output.

        Args:
            network: The encoder.
            num_classes: Number of classes.
            initializer: Of the head's kernel.
            output: ``"logits"``, or ``"predictions"`` for the logarithms of probabilities, under that name.
            dropout_rate: Dropout on the encoder's output.
            output_encoder_outputs: Whether ``encoder_outputs`` has the encoder's last output.
            name: Name of the model.
            seed: Source of the head's initial weights; None takes a random one, see `sparse_mixer.set_random_seed`.
        """
        check_encoder("network", network)
        self._config = {
            "num_classes": as_int("num_classes", num_classes),
            "output": check_output(output),
            "dropout_rate": float(dropout_rate),
            "output_encoder_outputs": as_bool("output_encoder_outputs", output_encoder_outputs),
            "name": str(name),
        }
        self._head = ProjectionHead(
            "predictions",
            network,
            as_int("num_classes", num_classes),
            dropout=dropout_rate,
            output_name="predictions/transform/logits",
            initializer=initializer,
            seed=seed,
        )
        super().__init__(str(name), network, [self._head])

    def hugging_face_names(self, kind: str) -> tuple[str, dict[str, str]]:
        """As `Model.hugging_face_names`."""
        return "ForTokenClassification", head_names(self._head, {"logits": "classifier"})

    def call(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int | None = None) -> dict[str, Array]:
        """``{"logits": [B, S, num_classes]}``, or what `output` and `output_encoder_outputs` say."""
        drops = self._call_seed(training, seed)
        sequence = self.encoder(inputs, training=training, seed=drops, outputs=self._outputs)["sequence_output"]
        logits = self._head.logits(sequence, drops)
        logits = logits.reshape(*sequence.shape[:2], self._config["num_classes"])
        results = {"logits": logits} if self._config["output"] == "logits" else {"predictions": log_softmax(logits)}
        return {**results, "encoder_outputs": sequence} if self._config["output_encoder_outputs"] else results

    def _classes(self, predicted: Any) -> Any:
        return predicted[self._config["output"]].argmax(-1)

    def _targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any) -> Targets:
        return self._criterion().targets(inputs, labels, weights, 2)

    def _loss(
        self,
        outputs: Mapping[str, Any],
        targets: Targets,
        divisors: Mapping[str, float],
        seed: int | None,
        into: Gradients | None,
    ) -> tuple[Metrics, dict[str, OutputGradient]]:
        sequence = outputs["sequence_output"]
        expect_rows(targets.labels, tuple(sequence.shape[:2]))
        metrics, d_logits = self._judged(self._head.logits(sequence, seed), targets, divisors["task"])
        if into is None:
            return metrics, {}
        return metrics, {"sequence_output": self._head.backward(sequence, d_logits, seed, into)}
