"""The encoder's layers as a person sees them: what they own, and what they compute by themselves.

An encoder computes as a whole in the core; objects of this module name, show, freeze, read and write its parts. Called
on arrays, each gives what TensorFlow's layer in its place gives: to look inside, not to be fast.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.arrays import as_float32, as_integers
from sparse_mixer._core.checks import as_bool, as_seed
from sparse_mixer._core.seeds import fresh_seed
from sparse_mixer._core.variables import Variable, assign_all, read_all

Array = npt.NDArray[np.float32]


class MixingMechanism(enum.Enum):
    """What layers without attention use to let tokens exchange information.

    The members and values are those of ``tfm.nlp.layers.MixingMechanism``, and two more of the paper's JAX code. Its
    architectures BERT, F_NET, H_NET, LINEAR, C_NET and T_NET are: attention in all layers, and these in the order
    ``FOURIER``, ``HARTLEY``, ``LINEAR``, ``CIRCULANT``, ``TOEPLITZ``.
    """

    FOURIER = "fourier"
    """Real part of the 2-D discrete Fourier transform over sequence and hidden axes; no weights."""

    HARTLEY = "hartley"
    """Real minus imaginary part of the same transform; no weights."""

    LINEAR = "linear"
    """Two learned matrices, ``seq_kernel @ x @ hidden_kernel``."""

    CIRCULANT = "circulant"
    """Two learned vectors, of the sequence length and the hidden size: circular convolution along both axes."""

    TOEPLITZ = "toeplitz"
    """Two learned vectors: multiplication by matrices that are constant along each diagonal."""

    @classmethod
    def resolve(cls, value: Any, argument: str = "mixing_mechanism") -> MixingMechanism:
        """The member that `value` stands for.

        Args:
            value: A member, its value as a string in any case, or TensorFlow's enum member of the same value.
            argument: Name used in error messages.

        Raises:
            ValueError: `value` stands for no member.
        """
        if isinstance(value, cls):
            return value
        text = getattr(value, "value", value)
        if isinstance(text, str):
            for member in cls:
                if member.value == text.lower():
                    return member
        known = ", ".join(repr(member.value) for member in cls)
        raise ValueError(f"{argument}: unsupported mixing mechanism {value!r}, expected one of {known}")


class Layer:
    """A named part of an encoder, or a whole one, with the weights it owns.

    Attributes:
        name: Keras's name of the layer; for parts, without the encoder's.
        layers: The layers that it is made of, in Keras order.
    """

    def __init__(self, name: str, variables: Sequence[Any], layers: Sequence[Layer] = ()) -> None:
        self.name = name
        self.layers = list(layers)
        self._variables = list(variables)
        self._trainable = True

    @property
    def trainable(self) -> bool:
        """Whether optimisers may change the weights; setting it sets the layers within, too.

        Dropout does not depend on it.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = as_bool("trainable", value)
        for layer in self.layers:
            layer.trainable = self._trainable
        for variable in self._variables:
            if isinstance(variable, Variable):
                variable.trainable = self._trainable

    @property
    def all_variables(self) -> list[Any]:
        """All variables in Keras order, whether trainable or not."""
        return list(self._variables)

    @property
    def trainable_weights(self) -> list[Any]:
        """Variables that optimisers may change, in Keras order."""
        return [variable for variable in self._variables if getattr(variable, "trainable", True)]

    @property
    def non_trainable_weights(self) -> list[Any]:
        """Variables that optimisers leave alone, in Keras order."""
        return [variable for variable in self._variables if not getattr(variable, "trainable", True)]

    @property
    def weights(self) -> list[Any]:
        """All variables: as in Keras the trainable ones, then the others."""
        return [*self.trainable_weights, *self.non_trainable_weights]

    variables = weights
    trainable_variables = trainable_weights
    non_trainable_variables = non_trainable_weights

    def get_weights(self) -> list[npt.NDArray[np.float32]]:
        """Copies of the weights, float32, in the order of `weights`, all of one moment."""
        return read_all(self.weights)

    def set_weights(self, weights: Sequence[npt.ArrayLike]) -> None:
        """Replace all weights, or none.

        Args:
            weights: One array per weight, in the order and shapes of `get_weights`. What TensorFlow's
                ``get_weights()`` returned for the same layer fits as it is.

        Raises:
            ValueError: Wrong number of arrays or a wrong shape; nothing has changed then.
            TypeError: An array is not numeric.
        """
        assign_all(self.weights, weights)

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """One of `layers`, by its name or, counted from 0, by its place.

        Raises:
            ValueError: There is none, or not exactly one of the two is given.
        """
        if (name is None) == (index is None):
            raise ValueError("get_layer: expected either a name or an index")
        if index is not None:
            if not -len(self.layers) <= index < len(self.layers):
                raise ValueError(f"index: got {index}, but there are {len(self.layers)} layers")
            return self.layers[index]
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ValueError(f"name: no layer is called {name!r}; there are {[layer.name for layer in self.layers]}")

    def count_params(self) -> int:
        """Number of parameters."""
        return sum(math.prod(variable.shape) for variable in self._variables)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.count_params():,} parameters>"


class EmbeddingLayer(Layer):
    """The embeddings of words or types: ids to rows of a table ``[vocab_size, embedding_width]``."""

    @property
    def embeddings(self) -> Variable:
        """The table."""
        table: Variable = self._variables[0]
        return table

    def __call__(self, ids: npt.ArrayLike) -> Array:
        """Look up rows.

        Args:
            ids: Integers of any shape, each in ``[0, vocab_size)``. Only their rows are copied.

        Returns:
            float32 array ``[*ids.shape, embedding_width]``.

        Raises:
            TypeError: `ids` are not integers.
            ValueError: An id lies outside the vocabulary.
        """
        rows = as_integers("ids", ids)
        vocab_size, width = self.embeddings.shape
        wrong = (rows < 0) | (rows >= vocab_size)
        if wrong.any():
            position = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"ids{list(position)}: got {rows[position]}, expected 0 <= id < {vocab_size}")
        flat = np.ascontiguousarray(rows, np.int64).ravel()
        return self.embeddings.rows(flat).reshape(*rows.shape, width)


class PositionEmbedding(Layer):
    """The position embeddings: a table ``[max_sequence_length, embedding_width]``."""

    @property
    def embeddings(self) -> Variable:
        """The table."""
        table: Variable = self._variables[0]
        return table

    def __call__(self, inputs: Any) -> Array:
        """The rows of the positions of `inputs`.

        Args:
            inputs: Anything with the axes ``[B, S, ...]``, such as word embeddings; only its shape counts.

        Returns:
            float32 array ``[B, S, embedding_width]``, the same for every example.

        Raises:
            ValueError: Fewer than two axes, or more positions than there are.
        """
        shape = np.shape(inputs)
        longest, _ = self.embeddings.shape
        if len(shape) < 2 or shape[1] > longest:
            raise ValueError(f"inputs: expected shape [B, S, ...] with S at most {longest}, got {list(shape)}")
        rows = self.embeddings.rows(np.arange(shape[1], dtype=np.int64))
        return np.broadcast_to(rows, (shape[0], *rows.shape)).copy()


class LayerNormalization(Layer):
    """Layer norm over the last axis.

    Attributes:
        epsilon: What is added to the variance.
    """

    def __init__(self, name: str, variables: Sequence[Variable], *, epsilon: float) -> None:
        super().__init__(name, variables)
        self.epsilon = epsilon

    def __call__(self, inputs: npt.ArrayLike) -> Array:
        """Normalise rows ``[..., width]``; float32 of the same shape.

        Raises:
            ValueError: Another width.
            TypeError: Not numeric.
        """
        gamma, beta = (variable.numpy() for variable in self._variables)
        x = _rows("inputs", inputs, len(gamma))
        centred = x - x.mean(-1, keepdims=True, dtype=np.float32)
        variance = np.square(centred).mean(-1, keepdims=True, dtype=np.float32)
        normal: Array = centred / np.sqrt(variance + np.float32(self.epsilon)) * gamma + beta
        return normal


class Dense(Layer):
    """A dense layer on the last axis: ``x @ kernel + bias``, and perhaps tanh.

    Attributes:
        activation: ``"tanh"`` or ``"linear"``.
    """

    def __init__(self, name: str, variables: Sequence[Variable], *, activation: str) -> None:
        super().__init__(name, variables)
        self.activation = activation

    def __call__(self, inputs: npt.ArrayLike) -> Array:
        """Map rows ``[..., inputs]`` to ``[..., outputs]``, float32.

        Raises:
            ValueError: Another width.
            TypeError: Not numeric.
        """
        kernel, bias = (variable.numpy() for variable in self._variables)
        mapped: Array = _rows("inputs", inputs, len(kernel)) @ kernel + bias
        return np.tanh(mapped) if self.activation == "tanh" else mapped


class TransformerLayer(Layer):
    """One block: mixing or attention, then a feed-forward sublayer or a mixture of experts.

    Attributes:
        index: Position in the encoder, from 0.
        mixing: ``"attention"``, or the value of a `MixingMechanism`.
        is_moe: Whether the feed-forward sublayer is a mixture of experts.
    """

    def __init__(self, name: str, variables: Sequence[Variable], *, index: int, mixing: str, is_moe: bool) -> None:
        super().__init__(name, variables)
        self.index = index
        self.mixing = mixing
        self.is_moe = is_moe

    @property
    def feed_forward(self) -> str:
        """``"moe"`` or ``"dense"``."""
        return "moe" if self.is_moe else "dense"

    def __call__(
        self, inputs: Any, attention_mask: Any = None, *, training: bool | None = None, seed: int | None = None
    ) -> Array:
        """What the block makes of the stream between blocks.

        Args:
            inputs: Floats ``[B, S, hidden_size]``, as an entry of ``encoder_outputs``; or, as in TensorFlow, the list
                ``[inputs, attention_mask]``.
            attention_mask: Which keys each query may see, ``[B, S, S]``, or ``[B, S]`` for all queries alike, as
                ``input_mask``; None for all. Only attention uses it. It acts as in TensorFlow, also in encoders that
                have a `pad_id`.
            training: Use the training capacity factor, dropout and router jitter. None means False.
            seed: Source of these; None for a fresh one.

        Returns:
            float32 ``[B, S, hidden_size]``: all rows, also of the last block of an encoder with an `output_range`.

        Raises:
            ValueError: A shape that does not fit.
            TypeError: Not numeric, or a variable that was copied away from its encoder.
        """
        if isinstance(inputs, list | tuple) and len(inputs) == 2:
            if attention_mask is not None:
                raise ValueError("attention_mask: given twice, beside inputs and among them")
            inputs, attention_mask = inputs
        core = self._variables[0]._core
        if not isinstance(core, _native.Encoder):
            raise TypeError("this block's weights are copies without their encoder; call the encoder's own block")
        x = _plain("inputs", inputs)
        if x.ndim != 3:
            raise ValueError(f"inputs: expected shape [B, S, hidden_size], got {list(x.shape)}")
        mask = None if attention_mask is None else _plain("attention_mask", attention_mask)
        if mask is not None and mask.ndim == 2:
            mask = np.repeat(mask[:, None, :], x.shape[1], axis=1)
        trains = False if training is None else as_bool("training", training)
        given = fresh_seed() if seed is None else as_seed("seed", seed)
        return _native.run_block(core, self.index, x, mask, given if trains else None)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name!r}, {self.mixing} + {self.feed_forward}, "
            f"{self.count_params():,} parameters>"
        )


def _plain(argument: str, value: Any) -> Array:
    return np.require(as_float32(argument, value), np.float32, ["C", "A", "E"])


def _rows(argument: str, value: Any, width: int) -> Array:
    array = as_float32(argument, value)
    if array.ndim < 1 or array.shape[-1] != width:
        raise ValueError(f"{argument}: expected shape [..., {width}], got {list(array.shape)}")
    return array


def group_into_layers(
    variables: Sequence[Variable],
    attention: Sequence[int],
    moe: Sequence[int],
    mixing: MixingMechanism,
    epsilon: float,
) -> list[Layer]:
    """One layer per part of an encoder, in Keras order.

    Args:
        variables: The encoder's weights, in Keras order.
        attention: Indices of the blocks with attention.
        moe: Indices of the blocks with a mixture of experts.
        mixing: What the other blocks mix by.
        epsilon: What layer norms add to the variance.
    """
    owned: dict[str, list[Variable]] = {}
    for variable in variables:
        parts = variable.key.split("/")
        depth = 2 if parts[0] in ("transformer", "embeddings") else 1
        owned.setdefault("/".join(parts[:depth]), []).append(variable)
    layers: list[Layer] = []
    for name, group in owned.items():
        if name in ("word_embeddings", "type_embeddings"):
            layers.append(EmbeddingLayer(name, group))
        elif name.startswith("transformer/layer_"):
            index = int(name.removeprefix("transformer/layer_"))
            by = "attention" if index in attention else mixing.value
            layers.append(TransformerLayer(name, group, index=index, mixing=by, is_moe=index in moe))
        elif name == "position_embedding":
            layers.append(PositionEmbedding(name, group))
        elif name.endswith("layer_norm"):
            layers.append(LayerNormalization(name, group, epsilon=epsilon))
        else:
            activation = "tanh" if name == "pooler_transform" else "linear"
            layers.append(Dense(name, group, activation=activation))
    return layers
