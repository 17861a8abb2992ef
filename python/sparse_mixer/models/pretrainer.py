"""Masked language models, and heads beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from sparse_mixer import activations
from sparse_mixer._core.arrays import as_float32, as_integers
from sparse_mixer._core.checks import as_int, as_list
from sparse_mixer._core.encoder import NO_POOLER
from sparse_mixer._core.inputs import InputSpec
from sparse_mixer._core.vjp import OutputGradient
from sparse_mixer.gradients import Gradients
from sparse_mixer.losses import Targets, cross_entropy, reciprocal
from sparse_mixer.models.base import Model, stored
from sparse_mixer.models.batch_parts import (
    check_encoder,
    expect_shape,
    position_count,
    read_classes,
    read_integers,
)
from sparse_mixer.models.head_layers import ClassificationHead, classification_head, masked_lm
from sparse_mixer.models.heads import AnyArray, MaskedLMHead, ProjectionHead, head_names
from sparse_mixer.networks import SparseMixer
from sparse_mixer.training.metrics import Metrics

# The activation of masked language models in the `transformers` package, or None for the encoder's, and its names of
# output bias, dense layer and layer norm.
_HUGGING_FACE_HEADS = {
    "bert": (None, "cls.predictions", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    "roberta": ("gelu", "lm_head", "lm_head.dense", "lm_head.layer_norm"),
    "electra": ("gelu", "generator_lm_head", "generator_predictions.dense", "generator_predictions.LayerNorm"),
    "distilbert": (None, "vocab_projector", "vocab_transform", "vocab_layer_norm"),
}


@stored
class BertPretrainerV2(Model):
    """Masked language model with tied embeddings, and perhaps heads such as next-sentence prediction.

    ``model(inputs)`` gives the encoder's outputs, ``mlm_logits`` ``[B, P, vocab_size]`` if there are
    ``masked_lm_positions`` ``[B, P]`` among the inputs, and one array of logits per classification head under its name.

    A batch for training is the dict of inputs with ``masked_lm_positions``, ``masked_lm_ids`` and
    ``masked_lm_weights``, each ``[B, P]``, and ``<head>_labels`` for each head, ``[B]`` or ``[B, S]`` as its logits;
    `masking.mask_tokens` makes the former. The loss is the mean over predictions, by their weights, plus the means of
    the heads. A batch without a prediction teaches nothing, the heads neither.
    """

    _takes_losses = False

    def __init__(
        self,
        encoder_network: SparseMixer,
        mlm_activation: Any = None,
        mlm_initializer: Any = "glorot_uniform",
        classification_heads: Sequence[Any] | None = (),
        customized_masked_lm: Any = None,
        name: str = "bert",
        *,
        seed: int | None = None,
    ) -> None:
        """Put pre-training heads on an encoder.

        Args:
            encoder_network: The encoder.
            mlm_activation: Activation of the masked language model's transform; None for none, BERT's is ``"gelu"``.
            mlm_initializer: Of its kernel.
            classification_heads: Further heads: `ClassificationHead` of ours or layers of that name of the Model
                Garden, whose weights are taken over if they have such.
            customized_masked_lm: The Model Garden's ``MaskedLM`` layer, whose activation, initialiser and, if it has
                such, weights replace the two arguments; it gives logits through this encoder's word table.
            name: Name of the model.
            seed: Source of the heads' initial weights; None takes random ones, see `sparse_mixer.set_random_seed`.
        """
        check_encoder("encoder_network", encoder_network)
        given = () if classification_heads is None else classification_heads
        listed = as_list("classification_heads", given, "ClassificationHead")
        read = [classification_head(f"classification_heads[{i}]", head) for i, head in enumerate(listed)]
        heads = [head for head, _ in read]
        mlm_weights = None
        if customized_masked_lm is not None:
            mlm_activation, mlm_initializer, mlm_weights = masked_lm(customized_masked_lm)
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
        self._seen = heads
        if any(head.use_encoder_pooler for head in heads):
            if not encoder_network.arguments.with_pooler:
                raise ValueError(f"classification_heads: got use_encoder_pooler=True, but {NO_POOLER}")
            self._outputs = ("sequence_output", "pooled_output")
        super().__init__(name, encoder_network, [self.masked_lm, *self.classification_heads])
        for own, weights in [
            (self.masked_lm, mlm_weights),
            *zip(self.classification_heads, (w for _, w in read), strict=True),
        ]:
            if weights is not None:
                own.set_weights(weights)

    @property
    def encoder_network(self) -> Any:
        """The encoder."""
        return self.encoder

    @property
    def inputs(self) -> dict[str, InputSpec]:
        """Name, shape and type of each input of a call."""
        positions = InputSpec("masked_lm_positions", (None, None), "int32")
        return {**super().inputs, positions.name: positions}

    @property
    def checkpoint_items(self) -> dict[str, Any]:
        """Encoder and heads by the names that the Model Garden gives them in checkpoints."""
        return {"encoder": self.encoder, "masked_lm": self.masked_lm, **super().checkpoint_items}

    def hugging_face_names(self, kind: str) -> tuple[str, dict[str, str]]:
        """As `Model.hugging_face_names`; a BERT may have a head for pairs of sentences, two classes on the pooler."""
        activation, *parts = _HUGGING_FACE_HEADS[kind]
        own = activations.serialize(self.encoder.arguments.inner_activation)
        if self._config["mlm_activation"] != (activation or own):
            return super().hugging_face_names(kind)
        names = head_names(self.masked_lm, dict(zip(("output_bias", "dense", "LayerNorm"), parts, strict=True)))
        if not self.classification_heads:
            return "ForMaskedLM", names
        seen = self._seen[0]
        if kind != "bert" or len(self._seen) > 1 or not seen.use_encoder_pooler or seen.num_classes != 2:
            return super().hugging_face_names(kind)
        return "ForPreTraining", names | head_names(self.classification_heads[0], {"logits": "cls.seq_relationship"})

    def call(self, inputs: Mapping[str, Any], *, training: bool = False, seed: int | None = None) -> dict[str, Any]:
        """The encoder's outputs and the heads' logits."""
        drops = self._call_seed(training, seed)
        outputs: dict[str, Any] = self.encoder(inputs, training=training, seed=drops)
        sequence = outputs["sequence_output"]
        if inputs.get("masked_lm_positions") is not None:
            outputs["mlm_logits"] = self.masked_lm.logits(sequence, read_integers(inputs, "masked_lm_positions"))
        for number, head in enumerate(self.classification_heads):
            features, position = self._features(number, outputs)
            logits = head.logits(features, drops, position)
            seen = self._seen[number]
            outputs[head.name] = logits.reshape(*sequence.shape[:2], -1) if seen.sees_all_positions else logits
        return outputs

    @classmethod
    def from_config(cls, encoder: Any, config: Mapping[str, Any]) -> Self:
        """See `Model.from_config`."""
        heads = [ClassificationHead(**head) for head in config["classification_heads"]]
        return cls(encoder, **{**config, "classification_heads": heads})

    def _classes(self, predicted: Any) -> Any:
        classes = {f"{head.name}_labels": predicted[head.name].argmax(-1) for head in self._seen}
        words = predicted.get("mlm_logits")
        return classes if words is None else {"masked_lm_ids": words.argmax(-1), **classes}

    def _variables_in_keras_order(self) -> list[Any]:
        # Keras tracks the list of heads before the encoder.
        parts = [*self.classification_heads, self.encoder, self.masked_lm]
        return [variable for part in parts for variable in part.all_variables]

    def _features(self, number: int, outputs: Mapping[str, Any]) -> tuple[AnyArray, int | None]:
        """What classification head `number` sees: an output, and a position of it or None for all."""
        head, sequence = self._seen[number], outputs["sequence_output"]
        if head.use_encoder_pooler:
            return outputs["pooled_output"], None
        if head.sees_all_positions:
            return sequence, None
        length = sequence.shape[1]
        if not -length <= head.cls_token_idx < length:
            raise ValueError(f"cls_token_idx: got {head.cls_token_idx}, but there are {length} positions")
        return sequence, head.cls_token_idx % length

    def _targets(self, inputs: Mapping[str, Any], labels: Any, weights: Any) -> Targets:
        if labels is not None:
            raise ValueError("labels: BertPretrainerV2 finds its labels among the inputs; pass one dict")
        if weights is not None:
            raise ValueError("sample_weight: BertPretrainerV2 weighs predictions by masked_lm_weights")
        positions = read_integers(inputs, "masked_lm_positions")
        ids = read_integers(inputs, "masked_lm_ids")
        _check_other_labels(inputs, {f"{head.name}_labels" for head in self._seen}, len(positions))
        counted = as_float32("masked_lm_weights", inputs.get("masked_lm_weights", np.ones(positions.shape)))
        if not positions.shape == ids.shape == counted.shape:
            raise ValueError(
                "masked_lm_ids, masked_lm_weights: expected the shape of masked_lm_positions, "
                f"{positions.shape}, got {ids.shape} and {counted.shape}"
            )
        classes = [
            read_classes(inputs.get(f"{head.name}_labels"), 1 + head.sees_all_positions, f"{head.name}_labels")
            for head in self._seen
        ]
        # As in the Model Garden's task: these weights choose predictions, they do not make some dearer.
        weight = float(counted.sum(dtype=np.float64))
        heads = {
            f"head/{head.name}": float(own.size) for head, own in zip(self.classification_heads, classes, strict=True)
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
    ) -> tuple[Metrics, dict[str, OutputGradient]]:
        sequence = outputs["sequence_output"]
        positions, ids, classes = targets.labels
        scale = reciprocal(divisors["task"])
        sums, d_sequence = self.masked_lm.loss(sequence, positions, ids, targets.weights, scale=scale, into=into)
        metrics = Metrics(mlm_loss=(sums.loss, sums.weight), mlm_accuracy=(sums.correct, sums.weight))
        total = sums.loss
        d_outputs = {"sequence_output": d_sequence}
        for number, head in enumerate(self.classification_heads):
            features, position = self._features(number, outputs)
            logits = head.logits(features, seed, position)
            seen, own_classes = self._seen[number], classes[number]
            shape = tuple(sequence.shape[: 1 + seen.sees_all_positions])
            expect_shape(f"{head.name}_labels", own_classes, shape)
            divisor = divisors[f"head/{head.name}"]
            ones = np.ones(len(logits), np.float32)
            own, d_logits = cross_entropy(self.encoder, logits, own_classes.ravel(), ones, reciprocal(divisor))
            metrics[f"{head.name}_loss"] = (own.loss, own.weight)
            metrics[f"{head.name}_accuracy"] = (own.correct, own.weight)
            # Divided by the predictions like the rest of the task's loss, this is a mean over the head's examples.
            total += own.loss * divisors["task"] * reciprocal(divisor)
            if into is not None:
                name = "pooled_output" if seen.use_encoder_pooler else "sequence_output"
                gradient = head.backward(features, d_logits, seed, into, position)
                d_outputs.setdefault(name, OutputGradient()).terms.extend(gradient.terms)
        metrics["task_loss"] = (total, sums.weight)
        return metrics, d_outputs


def _check_other_labels(inputs: Mapping[str, Any], own: set[str], batch: int) -> None:
    """Labels of heads that the model lacks, such as the pipelines of the Model Garden give, have no use; check them."""
    for name, value in inputs.items():
        if str(name).endswith("_labels") and name not in own and value is not None:
            labels = as_integers(str(name), value, booleans=True)
            if labels.shape[:1] != (batch,):
                raise ValueError(f"{name}: expected one entry per example, {batch}, got shape {list(labels.shape)}")
