"""Heads that are given as layers: descriptions of ours, or layers of the Model Garden, told by their class."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import activations
from sparse_mixer._core.checks import as_float, as_int
from sparse_mixer.models.keras_objects import config_of, is_foreign, kind_of


@dataclass(frozen=True)
class ClassificationHead:
    """A head of `BertPretrainerV2` or `BertClassifier`: a tanh layer on one position, dropout, logits.

    Without the tanh layer a head of a pre-trainer sees all positions, as in the Model Garden, and gives
    ``[B, S, num_classes]``. Those of the paper's JAX code are ``ClassificationHead(0, 2, use_encoder_pooler=True)``.

    Attributes:
        inner_dim: Width of the tanh layer; 0 or None for none.
        num_classes: Number of classes.
        cls_token_idx: Position that the tanh layer sees.
        activation: ``"tanh"``; there is no other.
        dropout_rate: Dropout before the last layer.
        initializer: Of the kernels.
        name: Prefix of the weights; ``<name>_labels`` are its labels in a batch.
        use_encoder_pooler: Whether the head sees ``pooled_output`` instead of ``sequence_output``.
    """

    inner_dim: int | None
    num_classes: int
    cls_token_idx: int = 0
    activation: Any = "tanh"
    dropout_rate: float = 0.0
    initializer: Any = "glorot_uniform"
    name: str = "next_sentence"
    use_encoder_pooler: bool = False

    def __post_init__(self) -> None:
        as_int("inner_dim", self.inner_dim or 0)
        as_int("num_classes", self.num_classes)
        as_int("cls_token_idx", self.cls_token_idx)
        as_float("dropout_rate", self.dropout_rate)
        if activations.serialize(activations.resolve(self.activation, "activation")) != "tanh":
            raise ValueError(f"activation: expected 'tanh', got {self.activation!r}")
        if not isinstance(self.name, str):
            raise TypeError(f"name: expected a string, got {self.name!r}")

    @property
    def sees_all_positions(self) -> bool:
        """Whether there are logits for every position."""
        return not self.inner_dim and not self.use_encoder_pooler

    def get_config(self) -> dict[str, Any]:
        """The attributes by name, without the initialiser."""
        config = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "initializer"}
        return {**config, "activation": "tanh"}


Weights = list[npt.NDArray[np.float32]]


def classification_head(argument: str, value: Any) -> tuple[ClassificationHead, Weights | None]:
    """The head that `value` stands for, and its weights if it has such.

    Args:
        argument: Name in messages.
        value: A `ClassificationHead`, or the Model Garden's layer of that name.

    Raises:
        TypeError: Something else.
        ValueError: A setting that has no counterpart.
    """
    if isinstance(value, ClassificationHead):
        return value, None
    if not is_foreign(value) or kind_of(value) != "ClassificationHead":
        raise TypeError(f"{argument}: expected a ClassificationHead, got {type(value).__name__}")
    config = config_of(value)
    known = {field.name for field in fields(ClassificationHead)}
    head = ClassificationHead(**{name: setting for name, setting in config.items() if name in known})
    return head, list(value.get_weights()) or None


def masked_lm(value: Any) -> tuple[Any, Any, Weights | None]:
    """Activation and initialiser of the Model Garden's ``MaskedLM`` layer, and its weights without the word table.

    Raises:
        TypeError: Another layer.
        ValueError: A layer that gives probabilities.
    """
    if not is_foreign(value) or kind_of(value) != "MaskedLM":
        raise TypeError(f"customized_masked_lm: expected the Model Garden's MaskedLM, got {type(value).__name__}")
    if value._output_type != "logits":
        raise ValueError(f"customized_masked_lm: expected one that gives logits, got output={value._output_type!r}")
    # Bias, kernel and bias of the dense layer, scale and shift of the norm.
    weights = list(value.get_weights())[-5:]
    return value.activation, value.initializer, weights if len(weights) == 5 else None
