"""What an encoder is, apart from its constructor and what it computes: arguments, parts, resources, copies."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Sequence
from typing import Any, Self

from sparse_mixer import _native
from sparse_mixer._core.arguments import Arguments, as_dtype, as_int
from sparse_mixer._core.checks import as_strings
from sparse_mixer._core.construction import make_core
from sparse_mixer._core.part import Part, variables_of
from sparse_mixer._core.router_metrics import Mean, RouterMetrics
from sparse_mixer.layers import Layer, TransformerLayer, group_into_layers


class Encoder(Part):
    """Base of `SparseMixer`: checked arguments around the core's encoder.

    Attributes:
        arguments: What the constructor was given, checked.
        weight_seed: Where initial weights and the sequence of dropout seeds come from.
        note: A line that the summary ends with, or None.
        ignored_config_keys: Keys of a configuration of the JAX code that had no part in the encoder, after
            `SparseMixer.from_flax`; else empty.
    """

    core: _native.Encoder

    @classmethod
    def around(cls, arguments: Arguments, core: _native.Encoder, seed: int, name: str) -> Self:
        """An encoder whose weights exist already.

        Args:
            arguments: What it is.
            core: The core's encoder.
            seed: Its `weight_seed`.
            name: Its name.
        """
        encoder = object.__new__(cls)
        encoder._assemble(arguments, core, seed, name)
        return encoder

    def _assemble(self, arguments: Arguments, core: _native.Encoder, seed: int, name: str) -> None:
        """Set all attributes. Layers and variables refer to `core`, never to `self`: no reference cycle."""
        variables = variables_of(core, name)
        attention, moe = arguments.layers_within("attention_layers"), arguments.layers_within("moe_layers")
        foreign: Sequence[Any] = ()
        if arguments.embedding_layer is not None:
            del variables[0]
            foreign = getattr(arguments.embedding_layer, "weights", ())
        layers = group_into_layers(variables, attention, moe, arguments.mixing_mechanism)
        super().__init__(name, core, [*foreign, *variables], layers)
        self.arguments = arguments
        self.weight_seed = seed
        self.note: str | None = None
        self.ignored_config_keys: tuple[str, ...] = ()
        self._training_calls = itertools.count(1)
        self._last = threading.local()
        self._metrics = RouterMetrics(moe if arguments.export_metrics else [])
        self._needs_mask = bool(attention)

    @property
    def transformer_layers(self) -> list[TransformerLayer]:
        """The blocks."""
        return [layer for layer in self.layers if isinstance(layer, TransformerLayer)]

    @property
    def pooler_layer(self) -> Layer:
        """The dense layer behind ``pooled_output``."""
        return self.layers[-1]

    def get_embedding_layer(self) -> Any:
        """The word embeddings: an `EmbeddingLayer`, or what was given as `embedding_layer`."""
        own = self.arguments.embedding_layer
        return self.layers[0] if own is None else own

    def get_embedding_table(self) -> Any:
        """The word table [vocab_size, embedding_width] as a variable; the `embeddings` of an own embedding layer."""
        return self.get_embedding_layer().embeddings

    @property
    def metrics(self) -> list[Mean]:
        """Six running means per MoE layer, over all calls since their `reset_state`; none without `export_metrics`."""
        return list(self._metrics.means)

    @property
    def dtype(self) -> str:
        """Storage type of the weights."""
        return self.core.dtype

    @property
    def isa(self) -> str:
        """Instruction set that the kernels use."""
        return self.core.isa

    @property
    def num_threads(self) -> int:
        """Most threads a call uses; set None to follow `sparse_mixer.set_num_threads`."""
        return self.core.num_threads

    @num_threads.setter
    def num_threads(self, value: int | None) -> None:
        self.core.set_num_threads(None if value is None else as_int("num_threads", value))

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take."""
        return self.core.weight_bytes

    def memory_estimate(
        self, batch: int, *, outputs: Sequence[str] = ("sequence_output", "pooled_output", "encoder_outputs")
    ) -> int:
        """Bytes that a call at inference takes at its peak: weights, inputs, scratch and outputs.

        At most a tenth above what the system counts, and not below, for one call at a time with `num_threads` threads
        and scratch memory as after `sparse_mixer.release_scratch`.

        Args:
            batch: Number of examples.
            outputs: Names of the wanted outputs, as in the call.

        Raises:
            ValueError: A batch that the call would refuse.
        """
        count = as_int("batch", batch)
        if not 0 <= count < 2**40:
            raise ValueError(f"batch: got {count}, expected at least 0 and less than 2**40")
        return self.core.memory_estimate(count, as_strings("outputs", outputs, "names"))

    def astype(self, dtype: Any) -> Self:
        """A new encoder with the weights converted to `dtype`; this one is unchanged.

        Args:
            dtype: As in the constructor.
        """
        target = as_dtype("dtype", dtype)
        arguments = dataclasses.replace(self.arguments, dtype=target)
        converted = self.around(arguments, self.core.astype(target), self.weight_seed, self.name)
        converted._copy_trainable(self)
        converted.note = self.note
        converted.ignored_config_keys = self.ignored_config_keys
        return converted

    def quantize(self, dtype: str = "int8") -> Self:
        """`astype` under the name that quantisation goes by elsewhere."""
        return self.astype(dtype)

    # Copying, pickling --------------------------------------------------------------------------------------------

    def _copy_trainable(self, other: Encoder) -> None:
        self._trainable = other._trainable
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.trainable = theirs.trainable

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.astype(self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "arguments": self.arguments,
            "name": self.name,
            "seed": self.weight_seed,
            "trainable": (self._trainable, [layer.trainable for layer in self.layers]),
            "weights": self.core.get_weights(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        arguments, seed = state["arguments"], state["seed"]
        stored = iter(state["weights"])
        core = make_core(arguments, seed, lambda _name, _shape: next(stored), None, None)
        self._assemble(arguments, core, seed, state["name"])
        self._trainable, flags = state["trainable"]
        for layer, flag in zip(self.layers, flags, strict=True):
            layer.trainable = flag
