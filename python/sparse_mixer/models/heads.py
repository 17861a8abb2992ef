"""Heads as layers with weights: what models put on top of an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native, activations, initializers
from sparse_mixer._core.checks import as_seed
from sparse_mixer._core.construction import given_seed
from sparse_mixer._core.part import Part, variables_of
from sparse_mixer._core.seeds import Purpose, fresh_seed, generator
from sparse_mixer._core.vjp import OutputGradient
from sparse_mixer.gradients import Gradients
from sparse_mixer.initializers import Initializer
from sparse_mixer.losses import Sums

Array = npt.NDArray[np.float32]
# Of numpy, or in the core.
AnyArray = Array | _native.CoreArray


class Head(Part):
    """A head: weights in the core, which computes with the threads and instruction set of the encoder."""

    core: _native.Head

    def __init__(self, name: str, encoder: Any, config: Mapping[str, Any], initializer: Any, seed: int | None) -> None:
        resolved = initializers.resolve(initializer)
        known = given_seed(None if seed is None else as_seed("seed", seed), resolved)
        chosen = fresh_seed() if known is None else known
        spec = resolved.spec() if isinstance(resolved, Initializer) else None
        initializer_spec = spec or {"name": "constant", "value": 0.0}
        core = _native.Head(json.dumps(config), json.dumps(initializer_spec), chosen)
        variables = variables_of(core, "")  # the keys have the head's name
        super().__init__(name, core, variables)
        self._encoder = encoder
        self._head_config = dict(config)
        if spec is None:
            for variable in variables:
                if variable.key.endswith("kernel"):
                    values = (
                        resolved.sample(variable.shape, generator(Purpose.HEAD_WEIGHT, chosen, variable.key))
                        if isinstance(resolved, Initializer)
                        else resolved(variable.shape)
                    )
                    variable.assign(values)

    def _requested(self) -> list[bool]:
        """Which weights need a gradient."""
        return [variable.trainable for variable in self._variables]

    def __getstate__(self) -> dict[str, Any]:
        made = ("core", "layers", "_variables")
        return {
            "attributes": {name: value for name, value in self.__dict__.items() if name not in made},
            "trainable": [variable.trainable for variable in self._variables],
            "weights": self.core.get_weights(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        attributes = state["attributes"]
        zeros = json.dumps({"name": "constant", "value": 0.0})
        core = _native.Head(json.dumps(attributes["_head_config"]), zeros, 0)
        core.assign(list(range(len(state["weights"]))), state["weights"])
        super().__init__(attributes["name"], core, variables_of(core, ""))
        for variable, flag in zip(self._variables, state["trainable"], strict=True):
            variable.trainable = flag
        self.__dict__.update(attributes)


class ProjectionHead(Head):
    """Features ``[..., width]`` to logits ``[rows, num_classes]``; with dropout, and perhaps a layer between."""

    def __init__(
        self,
        name: str,
        encoder: Any,
        num_classes: int,
        *,
        inner_width: int = 0,
        inner_activation: Any = "tanh",
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        output_name: str,
        initializer: Any,
        seed: int | None,
    ) -> None:
        config = {
            "kind": "projection",
            "input_width": encoder.arguments.hidden_size,
            "inner_width": inner_width,
            "inner_activation": named_activation(inner_activation, "activation"),
            "num_classes": num_classes,
            "input_dropout": float(input_dropout),
            "dropout": float(dropout),
            "inner_name": f"{name}/pooler_dense",
            "output_name": output_name,
        }
        super().__init__(name, encoder, config, initializer, seed)

    def logits(self, features: AnyArray, seed: int | None, position: int | None = None) -> Array:
        """Logits of all features, or of those ``[B, S, width]`` at one position; `seed` switches dropout on."""
        return self.core.project(self._encoder.core, features, seed, position)

    def backward(
        self, features: AnyArray, d_logits: Array, seed: int | None, into: Gradients, position: int | None = None
    ) -> OutputGradient:
        """Add the gradients of the trainable weights to `into`; returns the features'."""
        buffer = into.buffer_of(self)
        gradient = self.core.project_backward(
            self._encoder.core, features, d_logits, seed, buffer, self._requested(), position
        )
        return OutputGradient((position, gradient))


class MaskedLMHead(Head):
    """Hidden states at some positions to words, through the encoder's own word table."""

    def __init__(self, name: str, encoder: Any, *, activation: Any, initializer: Any, seed: int | None) -> None:
        arguments = encoder.arguments
        if arguments.embedding_layer is not None:
            raise ValueError("encoder_network: a masked language model needs the encoder's own word table")
        config = {
            "kind": "masked_lm",
            "hidden_size": arguments.hidden_size,
            "embedding_width": arguments.width(),
            "vocab_size": arguments.vocab_size,
            "activation": named_activation("linear" if activation is None else activation, "mlm_activation"),
            # As in the `transformers` package; TensorFlow's encoders have but one.
            "layer_norm_epsilon": arguments.layer_norm_epsilon,
            "name": name,
        }
        super().__init__(name, encoder, config, initializer, seed)

    def logits(self, sequence_output: AnyArray, positions: npt.NDArray[Any]) -> Array:
        """Logits ``[B, P, vocab_size]`` at `positions` ``[B, P]``."""
        logits = self.core.masked_lm_logits(self._encoder.core, sequence_output, _rows(sequence_output, positions))
        return logits.reshape(*positions.shape, -1)

    def loss(
        self,
        sequence_output: AnyArray,
        positions: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        weights: Array,
        *,
        scale: float = 1.0,
        into: Gradients | None = None,
    ) -> tuple[Sums, OutputGradient]:
        """Sums over the predictions; with `into`, also the gradient of the sequence output.

        Args:
            sequence_output: ``[B, S, H]``.
            positions: ``[B, P]``, in ``[0, S)``.
            labels: Word ids ``[B, P]``.
            weights: ``[B, P]``; predictions of weight 0 cost nothing.
            scale: What the loss sum is multiplied by before it is differentiated.
            into: Where the gradients of the head and of the word table are added.
        """
        buffers = None if into is None else (into.buffer_of(self), into.buffer_of(self._encoder))
        sums, d_sequence = self.core.masked_lm_loss(
            self._encoder.core,
            sequence_output,
            _rows(sequence_output, positions),
            np.ascontiguousarray(labels, np.int64).ravel(),
            np.ascontiguousarray(weights, np.float32).ravel(),
            scale,
            buffers,
            self._requested(),
            self._encoder.get_embedding_table().trainable,
        )
        return Sums(*sums), OutputGradient() if d_sequence is None else OutputGradient((None, d_sequence))


def named_activation(activation: Any, argument: str) -> dict[str, Any]:
    """What the core knows `activation` by.

    Raises:
        TypeError: It is a callable.
        ValueError: There is none of that name.
    """
    function = activations.resolve(activation, argument)
    if isinstance(function, activations.Activation):
        raise TypeError(f"{argument}: expected one of the named activations, got a callable")
    return dict(function)


def _rows(sequence_output: AnyArray, positions: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Rows of the whole batch that `positions` within the examples stand for."""
    length = sequence_output.shape[1]
    wrong = (positions < 0) | (positions >= length)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"masked_lm_positions{list(at)}: got {positions[at]}, expected 0 <= position < {length}")
    rows: npt.NDArray[np.int64] = positions.astype(np.int64) + length * np.arange(len(positions))[:, None]
    return rows.ravel()


def head_names(head: Head, parts: Mapping[str, str]) -> dict[str, str]:
    """PyTorch's names of a head's weights by our keys.

    Args:
        head: The head.
        parts: That package's name of each of its layers, by the last part of ours.
    """
    leaves = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
    names = {}
    for variable in head.all_variables:
        *_, part, leaf = variable.key.split("/")
        names[variable.key] = f"{parts[part]}.{leaves[leaf]}"
    return names
