"""What an encoder is, apart from its constructor and what it computes: arguments, parts, resources, copies."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from sparse_mixer import _native
from sparse_mixer._core.arguments import Arguments
from sparse_mixer._core.checks import as_dtype, as_int, as_positive, as_strings
from sparse_mixer._core.construction import given_seed, make_core
from sparse_mixer._core.overflow import overflowing, warn_of_overflow
from sparse_mixer._core.part import Part, variables_of
from sparse_mixer._core.router_metrics import Mean, RouterMetrics
from sparse_mixer._core.seeds import Purpose, derived_seed, fresh_seed
from sparse_mixer._core.variables import Variable
from sparse_mixer.layers import Dense, TransformerLayer, group_into_layers

# Attributes that are made anew for a copy; what else there is belongs to the caller, and goes with it.
_ASSEMBLED = frozenset(
    {
        "name",
        "layers",
        "core",
        "arguments",
        "weight_seed",
        "_variables",
        "_trainable",
        "_training_calls",
        "_last",
        "_metrics",
        "_needs_mask",
    }
)

NO_POOLER = "this encoder has no pooler (with_pooler=False, or a file without it); pool sequence_output instead"


class OutputsWithoutPooler(dict[str, Any]):
    """Outputs that say why there is no ``pooled_output`` among them."""

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"pooled_output: {NO_POOLER}" if key == "pooled_output" else key)


class Encoder(Part):
    """Base of `SparseMixer`: checked arguments around the core's encoder.

    Attributes:
        arguments: What the constructor was given, checked.
        weight_seed: Where initial weights and the sequence of dropout seeds come from.
        note: A line that the summary ends with, or None.
        ignored_config_keys: Keys of a configuration of the JAX code that had no part in the encoder, after
            `SparseMixer.from_flax`; else empty.
        loaded_from: A `checkpoints.LoadReport`: what was read from which file by `SparseMixer.load` and its kin; None
            for other encoders.
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
        layers = group_into_layers(variables, attention, moe, arguments.mixing_mechanism, arguments.layer_norm_epsilon)
        super().__init__(name, core, [*foreign, *variables], layers)
        self.arguments = arguments
        self.weight_seed = seed
        self.note: str | None = None
        self.ignored_config_keys: tuple[str, ...] = ()
        self.loaded_from: Any = None
        self._training_calls = itertools.count()
        self._last = threading.local()
        self._metrics = RouterMetrics(moe if arguments.export_metrics else [])
        self._needs_mask = bool(attention)

    def next_call_seed(self) -> int:
        """Seed of a training call that is given none.

        The next one of the encoder's own sequence, which its seed decides; fresh for an encoder that was given no seed.
        """
        seed = given_seed(self.arguments.seed, self.arguments.initializer)
        return fresh_seed() if seed is None else derived_seed(Purpose.CALL, seed, next(self._training_calls))

    @property
    def transformer_layers(self) -> list[TransformerLayer]:
        """The blocks."""
        return [layer for layer in self.layers if isinstance(layer, TransformerLayer)]

    @property
    def pooler_layer(self) -> Dense:
        """The dense layer with tanh behind ``pooled_output``.

        Raises:
            AttributeError: The encoder has none.
        """
        if not self.arguments.with_pooler:
            raise AttributeError(NO_POOLER)
        pooler = self.layers[-1]
        assert isinstance(pooler, Dense)
        return pooler

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
    def weights_version(self) -> int:
        """A number that every change of the weights raises: updates, `set_weights`, `assign`, `load_weights`.

        Of one encoder, equal numbers mean equal weights; an update that was refused may raise it, too. Weights of an
        own embedding layer do not count.
        """
        return self.core.weights_version

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take."""
        return self.core.weight_bytes

    def memory_estimate(
        self,
        batch: int,
        *,
        outputs: Sequence[str] = ("sequence_output", "pooled_output", "encoder_outputs"),
        sequence_length: int | None = None,
    ) -> int:
        """Bytes that a call at inference takes at its peak.

        Counted are the weights with the matrices made of them, the core's copies of the inputs, scratch memory of the
        call and of each thread, results, the arrays that a custom activation gets and returns, and 1.5 MB for all else.
        They are counted by a dry run of the call: it asks for its memory, which is never touched.

        At most a tenth above what the system counts, and not below, for one call at a time on sequences of full length
        with `num_threads` threads, and scratch memory as after `sparse_mixer.release_scratch`. Experts are taken for
        full.

        Args:
            batch: Number of examples.
            outputs: Names of the wanted outputs, as in the call.
            sequence_length: Positions of the inputs; None for `max_sequence_length`.

        Raises:
            ValueError: A batch or a length that the call would refuse.
        """
        length = None if sequence_length is None else as_positive("sequence_length", sequence_length)
        count = as_int("batch", batch)
        if not 0 <= count < 2**40:
            raise ValueError(f"batch: got {count}, expected at least 0 and less than 2**40")
        return self.core.memory_estimate(count, as_strings("outputs", outputs, "names"), length)

    def astype(self, dtype: Any) -> Self:
        """A new encoder with the weights converted to `dtype`; this one is unchanged.

        Args:
            dtype: As in the constructor.

        Weights that are too large for float16 become infinite, with a UserWarning that names them.
        """
        target = as_dtype("dtype", dtype)
        arguments = self.arguments.replace(dtype=target)
        converted = self.around(arguments, self.core.astype(target), self.weight_seed, self.name)
        converted._copy_state(self)
        if found := overflowing(converted.core):
            kept = self.core.get_weights(sorted(found))
            found = {index for index, values in zip(sorted(found), kept, strict=True) if np.isfinite(values).all()}
            warn_of_overflow(converted.core, found, stacklevel=2)
        return converted

    def quantize(self, dtype: str = "int8") -> Self:
        """`astype` under the name that quantisation goes by elsewhere."""
        return self.astype(dtype)

    # Copying, pickling --------------------------------------------------------------------------------------------

    def _copy_state(self, other: Encoder) -> None:
        """Take over what an encoder has besides arguments and weights, among it what a subclass added."""
        self._set_state(other._other_state())

    def _other_state(self) -> dict[str, Any]:
        return {
            "trainable": self._trainable,
            "layers": [layer._trainable for layer in self.layers],
            "variables": [getattr(variable, "trainable", True) for variable in self._variables],
            "more": {name: value for name, value in self.__dict__.items() if name not in _ASSEMBLED},
        }

    def _set_state(self, state: dict[str, Any]) -> None:
        self._trainable = state["trainable"]
        for layer, flag in zip(self.layers, state["layers"], strict=True):
            layer._trainable = flag
        for variable, flag in zip(self._variables, state["variables"], strict=True):
            if isinstance(variable, Variable):
                variable.trainable = flag
        self.__dict__.update(state["more"])

    def __copy__(self) -> Self:
        return self.astype(self.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = self.astype(self.dtype)
        twin.__dict__.update(copy.deepcopy(self._other_state()["more"], memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {
            "arguments": self.arguments,
            "name": self.name,
            "seed": self.weight_seed,
            "state": self._other_state(),
            "weights": self.core.get_weights(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        arguments, seed = state["arguments"], state["seed"]
        stored = iter(state["weights"])
        core = make_core(arguments, seed, lambda _name, _shape: next(stored), None, None)
        self._assemble(arguments, core, seed, state["name"])
        self._set_state(state["state"])
