"""What the layers of both Keras have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from sparse_mixer import networks
from sparse_mixer.keras._arguments import Given

_INPUTS = (
    "input_word_ids",
    "input_word_embeddings",
    "input_mask",
    "input_type_ids",
    "dense_inputs",
    "dense_mask",
    "dense_type_ids",
)

FLOATS = ("input_word_embeddings", "dense_inputs", "input_mask", "dense_mask")
"""Inputs that the encoder takes as float32."""


class EncoderLayer:
    """Base, beside Keras's own, of both layers: made of an encoder, made into one, and what a call reads.

    A layer says by `_encoder_arguments` what it was built with.
    """

    def _encoder_arguments(self) -> tuple[Mapping[str, Any], Any]:
        """The encoder's configuration, and its checked arguments."""
        raise NotImplementedError

    def _value(self, key: str) -> Any:
        """The values of the weight `key`, as numpy has them."""
        raise NotImplementedError

    def _tensor(self, value: Any) -> Any:
        """`value` as a tensor."""
        raise NotImplementedError

    def _word_rows(self, ids: Any) -> Any:
        """Rows of the word table."""
        raise NotImplementedError

    def _differs(self, ids: Any, number: int) -> Any:
        """Where `ids` are not `number`."""
        raise NotImplementedError

    @classmethod
    def from_encoder(
        cls, encoder: networks.SparseMixer, *, name: str | None = None, trainable: bool | None = None, dtype: Any = None
    ) -> Self:
        """A layer with the arguments and weights of `encoder`, independent of it from then on.

        Args:
            encoder: The encoder.
            name: As of every Keras layer.
            trainable: As of every Keras layer; None for the encoder's.
            dtype: As of every Keras layer.
        """
        layer = {"name": name, "trainable": encoder.trainable if trainable is None else trainable, "dtype": dtype}
        build: Any = cls
        return build(Given(encoder, layer))  # type: ignore[no-any-return]

    def to_encoder(self) -> networks.SparseMixer:
        """A `sparse_mixer.SparseMixer` with the arguments and weights of this layer, independent of it from then on."""
        encoder = networks.SparseMixer(**self._encoder_arguments()[0])
        for variable in encoder.weights:
            if hasattr(variable, "key"):
                variable.assign(self._value(variable.key))
        return encoder

    def get_config(self) -> dict[str, Any]:
        """The arguments: TensorFlow's keys and what every Keras layer has."""
        keras_layer: Any = super()
        return {**keras_layer.get_config(), **self._encoder_arguments()[0]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Self:
        """A layer with fresh weights from what `get_config` returned, here or in TensorFlow's class."""
        return cls(**config)

    def _read(self, inputs: Any) -> dict[str, Any]:
        """The tensors that the encoder takes; word ids are looked up here.

        Raises:
            ValueError: Not a dict, missing entries, or a wrong length.
        """
        if not isinstance(inputs, dict):
            raise ValueError(f"Unexpected inputs type ({type(inputs)}) to {type(self)}.")
        arguments = self._encoder_arguments()[1]
        given = {name: self._tensor(inputs[name]) for name in _INPUTS if inputs.get(name) is not None}
        ids = given.pop("input_word_ids", None)
        if "input_word_embeddings" not in given:
            if ids is None:
                raise ValueError(f"input_word_ids: missing from the inputs, which have the keys {sorted(inputs)}")
            given = {"input_word_embeddings": self._word_rows(ids), **given}
            if "input_mask" not in given and arguments.padding_id() is not None:
                given["input_mask"] = self._differs(ids, arguments.padding_id())
        needed = ["input_type_ids", *(["dense_type_ids"] if "dense_inputs" in given else [])]
        if arguments.layers_within("attention_layers"):
            needed += ["input_mask", *(["dense_mask"] if "dense_inputs" in given else [])]
        for name in needed:
            if name not in given:
                raise ValueError(f"{name}: missing from the inputs, which have the keys {sorted(inputs)}")
        lengths = [given[name].shape[1] for name in ("input_word_embeddings", "dense_inputs") if name in given]
        # Where calls may be shorter, the core says what it takes.
        fixed = not arguments.shorter_sequences and arguments.semantics != "paper"
        if fixed and None not in lengths and sum(lengths) != arguments.max_sequence_length:
            raise ValueError(
                f"inputs: {' + '.join(map(str, lengths))} positions, expected max_sequence_length "
                f"({arguments.max_sequence_length})"
            )
        return given
