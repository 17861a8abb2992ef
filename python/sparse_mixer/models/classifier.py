"""One label per example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_mixer._core.checks import as_int
from sparse_mixer._core.encoder import NO_POOLER
from sparse_mixer._core.vjp import OutputGradient
from sparse_mixer.gradients import Gradients
from sparse_mixer.losses import Targets
from sparse_mixer.models.base import Model, stored
from sparse_mixer.models.batch_parts import check_encoder, expect_rows
from sparse_mixer.models.criteria import SquaredNumber
from sparse_mixer.models.heads import Array, ProjectionHead, head_names
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
        seed: int | None = None,
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
            seed: Source of the head's initial weights; None takes a random one, see `sparse_mixer.set_random_seed`.
        """
        check_encoder("network", network)
        self.num_classes = as_int("num_classes", num_classes)
        self.use_encoder_pooler = bool(use_encoder_pooler)
        if self.use_encoder_pooler and not network.arguments.with_pooler:
            raise ValueError(f"use_encoder_pooler: got True, but {NO_POOLER}; give use_encoder_pooler=False")
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
        if self.num_classes == 1:
            self._own_criterion = SquaredNumber()
        super().__init__("bert_classifier", network, [self._head])

    def hugging_face_names(self) -> tuple[str, dict[str, str]]:
        """As `Model.hugging_face_names`."""
        if not self.use_encoder_pooler:
            return super().hugging_face_names()
        return "BertForSequenceClassification", head_names(self._head, {"logits": "classifier"})

    def call(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int | None = None) -> Array:
        """Logits ``[B, num_classes]``."""
        drops = self._call_seed(training, seed)
        outputs = self.encoder(inputs, training=training, seed=drops, outputs=self._outputs)
        # Of no examples, the head gives no columns either.
        return self._head.logits(outputs[self._outputs[0]], drops, self._position).reshape(-1, self.num_classes)

    def _classes(self, predicted: Any) -> Any:
        if self.num_classes == 1:
            raise ValueError("predict_classes: a model with one class predicts numbers, which predict gives")
        return predicted.argmax(-1)

    @property
    def _position(self) -> int | None:
        """Where in the output that the head sees; None for the pooled one, which has no positions."""
        return None if self.use_encoder_pooler else 0

    def _targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any) -> Targets:
        return self._criterion().targets(inputs, labels, weights, 1)

    def _loss(
        self,
        outputs: Mapping[str, Any],
        targets: Targets,
        divisors: Mapping[str, float],
        seed: int | None,
        into: Gradients | None,
    ) -> tuple[Metrics, dict[str, OutputGradient]]:
        name = self._outputs[0]
        features = outputs[name]
        logits = self._head.logits(features, seed, self._position)
        expect_rows(targets.labels, (len(logits),))
        metrics, d_logits = self._judged(logits, targets, divisors["task"])
        if into is None:
            return metrics, {}
        return metrics, {name: self._head.backward(features, d_logits, seed, into, self._position)}
