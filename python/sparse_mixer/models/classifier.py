"""One label per example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from sparse_mixer import activations
from sparse_mixer._core.checks import as_int
from sparse_mixer._core.encoder import NO_POOLER
from sparse_mixer._core.vjp import OutputGradient
from sparse_mixer.gradients import Gradients
from sparse_mixer.losses import Targets
from sparse_mixer.models.base import Model, stored
from sparse_mixer.models.batch_parts import check_encoder, expect_rows
from sparse_mixer.models.criteria import SquaredNumber
from sparse_mixer.models.head_layers import ClassificationHead, classification_head
from sparse_mixer.models.heads import Array, ProjectionHead, head_names
from sparse_mixer.networks import SparseMixer
from sparse_mixer.training.metrics import Metrics

# What stands between encoder and logits in the `transformers` package, and its names of the layers.
_HUGGING_FACE_HEADS: dict[str, tuple[str | None, dict[str, str]]] = {
    "bert": (None, {"logits": "classifier"}),
    "roberta": ("tanh", {"pooler_dense": "classifier.dense", "logits": "classifier.out_proj"}),
    "electra": ("gelu", {"pooler_dense": "classifier.dense", "logits": "classifier.out_proj"}),
    "distilbert": ("relu", {"pooler_dense": "pre_classifier", "logits": "classifier"}),
}


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
        cls_head: Any = None,
        *,
        name: str = "bert_classifier",
        activation: Any = "tanh",
        seed: int | None = None,
    ) -> None:
        """Put a classification head on an encoder.

        Args:
            network: The encoder.
            num_classes: Number of classes; 1 for regression.
            initializer: Of the head's kernels.
            dropout_rate: Dropout before the last layer; with the encoder's pooler, also on its output, as in the
                reference.
            use_encoder_pooler: Whether the head sees ``pooled_output``; otherwise it has a layer of its own on the
                first position of ``sequence_output``.
            head_name: Prefix of the head's weights.
            cls_head: The head as a layer: a `ClassificationHead` of ours or of the Model Garden, whose settings replace
                all arguments of the head's but `use_encoder_pooler`, and whose weights are taken over if it has such.
            name: Name of the model.
            activation: Of the head's own layer, by name: ``"tanh"`` as in RoBERTa, ``"gelu"`` as in ELECTRA, ``"relu"``
                as in DistilBERT.
            seed: Source of the head's initial weights; None takes a random one, see `sparse_mixer.set_random_seed`.
        """
        check_encoder("network", network)
        given, weights = (None, None) if cls_head is None else classification_head("cls_head", cls_head)
        inner, input_dropout, self._cls_token_idx = network.arguments.hidden_size, dropout_rate, 0
        if given is not None:
            _check_head(given, bool(use_encoder_pooler))
            num_classes, initializer, head_name = given.num_classes, given.initializer, given.name
            inner, dropout_rate, activation = given.inner_dim or 0, given.dropout_rate, given.activation
            self._cls_token_idx = given.cls_token_idx % network.arguments.max_sequence_length
        self._activation = activations.serialize(activations.resolve(activation, "activation"))
        self.num_classes = as_int("num_classes", num_classes)
        self.head_name, self.initializer = head_name, initializer
        self.use_encoder_pooler = bool(use_encoder_pooler)
        if self.use_encoder_pooler and not network.arguments.with_pooler:
            raise ValueError(f"use_encoder_pooler: got True, but {NO_POOLER}; give use_encoder_pooler=False")
        # What the `transformers` package has is a layer of the encoder's width on the first position.
        self._is_plain = inner == network.arguments.hidden_size and self._cls_token_idx == 0
        self._outputs = ("pooled_output",) if self.use_encoder_pooler else ("sequence_output",)
        self._config = {
            "num_classes": self.num_classes,
            "dropout_rate": float(input_dropout),
            "use_encoder_pooler": self.use_encoder_pooler,
            "head_name": head_name,
            "cls_head": None if given is None else given.get_config(),
            "name": str(name),
            "activation": self._activation,
        }
        self._head = ProjectionHead(
            head_name,
            network,
            self.num_classes,
            inner_width=0 if self.use_encoder_pooler else inner,
            inner_activation=activation,
            input_dropout=input_dropout if self.use_encoder_pooler else 0.0,
            dropout=dropout_rate,
            output_name=f"{head_name}/logits",
            initializer=initializer,
            seed=seed,
        )
        if self.num_classes == 1:
            self._own_criterion = SquaredNumber()
        super().__init__(str(name), network, [self._head])
        if weights is not None:
            self._head.set_weights(weights)

    @property
    def classifier(self) -> ProjectionHead:
        """The head."""
        return self._head

    @classmethod
    def from_config(cls, encoder: Any, config: Mapping[str, Any]) -> Self:
        """See `Model.from_config`."""
        head = config.get("cls_head")
        return cls(encoder, **{**config, "cls_head": None if head is None else ClassificationHead(**head)})

    def hugging_face_names(self, kind: str) -> tuple[str, dict[str, str]]:
        """As `Model.hugging_face_names`; all but BERT have a layer of their own instead of the pooler."""
        activation, parts = _HUGGING_FACE_HEADS[kind]
        fits = activation is None if self.use_encoder_pooler else self._is_plain and activation == self._activation
        if not fits:
            return super().hugging_face_names(kind)
        return "ForSequenceClassification", head_names(self._head, parts)

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
        return None if self.use_encoder_pooler else self._cls_token_idx

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


def _check_head(head: ClassificationHead, use_encoder_pooler: bool) -> None:
    """Refuse heads that the reference cannot call, or that give something else than one row per example."""
    if use_encoder_pooler and head.inner_dim:
        raise ValueError("cls_head: inner_dim is for sequence_output; give use_encoder_pooler=False")
    if not use_encoder_pooler and not head.inner_dim:
        raise ValueError("cls_head: without inner_dim it gives logits for every position; use BertTokenClassifier")
