"""Masked language models, and heads beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from sparse_mixer import activations
from sparse_mixer._core.arguments import as_int
from sparse_mixer._core.arrays import as_float32
from sparse_mixer._core.checks import as_list
from sparse_mixer.gradients import Gradients
from sparse_mixer.losses import Targets, cross_entropy, reciprocal
from sparse_mixer.models.base import Model, stored
from sparse_mixer.models.batch_parts import check_encoder, expect_shape, position_count, read_classes, read_integers
from sparse_mixer.models.heads import Array, MaskedLMHead, ProjectionHead
from sparse_mixer.networks import SparseMixer
from sparse_mixer.training.metrics import Metrics


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


@stored
class BertPretrainerV2(Model):
    """Masked language model with tied embeddings, and perhaps heads such as next-sentence prediction.

    ``model(inputs)`` gives the encoder's outputs, ``mlm_logits`` ``[B, P, vocab_size]`` if there are
    ``masked_lm_positions`` ``[B, P]`` among the inputs, and one array of logits per classification head under its name.

    A batch for training is the dict of inputs with ``masked_lm_positions``, ``masked_lm_ids`` and
    ``masked_lm_weights``, each ``[B, P]``, and ``<head>_labels`` ``[B]`` for each head; `masking.mask_tokens`
    makes the former. The loss is the mean over predictions, by their weights, plus the means of the heads. A batch
    without a prediction teaches nothing, the heads neither.
    """

    def __init__(
        self,
        encoder_network: SparseMixer,
        mlm_activation: Any = None,
        mlm_initializer: Any = "glorot_uniform",
        classification_heads: Sequence[ClassificationHead] = (),
        name: str = "bert",
        *,
        seed: int | None = None,
    ) -> None:
        """Put pre-training heads on an encoder.

        Args:
            encoder_network: The encoder.
            mlm_activation: Activation of the masked language model's transform; None for none, BERT's is ``"gelu"``.
            mlm_initializer: Of its kernel.
            classification_heads: Further heads.
            name: Name of the model.
            seed: Source of the heads' initial weights; None draws them, see `sparse_mixer.set_random_seed`.
        """
        check_encoder("encoder_network", encoder_network)
        given = () if classification_heads is None else classification_heads
        heads = as_list("classification_heads", given, "ClassificationHead")
        for position, head in enumerate(heads):
            if not isinstance(head, ClassificationHead):
                kind = type(head).__name__
                raise TypeError(f"classification_heads[{position}]: expected a ClassificationHead, got {kind}")
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
                seed=seed,
            )
            for head in heads
        ]
        self._pools = [bool(head.use_encoder_pooler) for head in heads]
        if any(self._pools):
            self._outputs = ("sequence_output", "pooled_output")
        super().__init__(name, encoder_network, [self.masked_lm, *self.classification_heads])

    def __call__(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int | None = None) -> dict[str, Any]:
        """The encoder's outputs and the heads' logits."""
        drops = self._call_seed(training, seed)
        outputs: dict[str, Any] = self.encoder(inputs, training=training, seed=drops)
        sequence = outputs["sequence_output"]
        if inputs.get("masked_lm_positions") is not None:
            outputs["mlm_logits"] = self.masked_lm.logits(sequence, read_integers(inputs, "masked_lm_positions"))
        features = self._features(outputs)
        for number, head in enumerate(self.classification_heads):
            outputs[head.name] = head.logits(features[number], drops)
        return outputs

    @classmethod
    def from_config(cls, encoder: Any, config: Mapping[str, Any]) -> Self:
        """See `Model.from_config`."""
        heads = [ClassificationHead(**head) for head in config["classification_heads"]]
        return cls(encoder, **{**config, "classification_heads": heads})

    def _features(self, outputs: Mapping[str, Any]) -> list[Array]:
        """What each classification head sees, [B, H]."""
        first = np.ascontiguousarray(outputs["sequence_output"][:, 0])
        return [outputs["pooled_output"] if pools else first for pools in self._pools]

    def _targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any) -> Targets:
        positions = read_integers(inputs, "masked_lm_positions")
        ids = read_integers(inputs, "masked_lm_ids")
        counted = as_float32("masked_lm_weights", inputs.get("masked_lm_weights", np.ones(positions.shape)))
        if not positions.shape == ids.shape == counted.shape:
            raise ValueError(
                "masked_lm_ids, masked_lm_weights: expected the shape of masked_lm_positions, "
                f"{positions.shape}, got {ids.shape} and {counted.shape}"
            )
        classes = [
            read_classes(inputs.get(f"{head.name}_labels"), 1, f"{head.name}_labels")
            for head in self.classification_heads
        ]
        # As in the Model Garden's task: these weights choose predictions, they do not make some dearer.
        weight = float(counted.sum(dtype=np.float64))
        heads = {
            f"head/{head.name}": float(len(own)) for head, own in zip(self.classification_heads, classes, strict=True)
        }
        learnable = float(np.abs(counted).sum(dtype=np.float64))
        divisors = {"weight": learnable, "task": weight, **heads, "auxiliary": position_count(inputs)}
        return Targets((positions, ids, classes), counted, divisors, weighted=False)

    def _loss(
        self,
        outputs: Mapping[str, Any],
        targets: Targets,
        divisors: Mapping[str, float],
        seed: int | None,
        into: Gradients | None,
    ) -> tuple[Metrics, dict[str, Array]]:
        sequence = outputs["sequence_output"]
        positions, ids, classes = targets.labels
        scale = reciprocal(divisors["task"])
        sums, d_sequence = self.masked_lm.loss(sequence, positions, ids, targets.weights, scale=scale, into=into)
        metrics = Metrics(mlm_loss=(sums.loss, sums.weight), mlm_accuracy=(sums.hits, sums.weight))
        total = sums.loss
        d_pooled = np.zeros((len(sequence), sequence.shape[-1]), np.float32) if any(self._pools) else None
        for number, (head, features) in enumerate(zip(self.classification_heads, self._features(outputs), strict=True)):
            logits = head.logits(features, seed)
            expect_shape(f"{head.name}_labels", classes[number], (len(features),))
            divisor = divisors[f"head/{head.name}"]
            ones = np.ones(len(features), np.float32)
            own, d_logits = cross_entropy(self.encoder, logits, classes[number], ones, reciprocal(divisor))
            metrics[f"{head.name}_loss"] = (own.loss, own.weight)
            metrics[f"{head.name}_accuracy"] = (own.hits, own.weight)
            # Divided by the predictions like the rest of the task's loss, this is a mean over the head's examples.
            total += own.loss * divisors["task"] * reciprocal(divisor)
            if into is not None and d_sequence is not None:
                d_features = head.backward(features, d_logits, seed, into)
                if d_pooled is not None and self._pools[number]:
                    d_pooled += d_features
                else:
                    d_sequence[:, 0] += d_features
        metrics["task_loss"] = (total, sums.weight)
        if d_sequence is None:
            return metrics, {}
        gradients = {"sequence_output": d_sequence}
        return metrics, gradients if d_pooled is None else {**gradients, "pooled_output": d_pooled}
