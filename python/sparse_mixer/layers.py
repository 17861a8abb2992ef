"""The encoder's sublayers as a person sees them: which mixing a layer uses, and the weights it owns.

The computation is the core's; objects of this module name, show, freeze, read and write parts of an encoder.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.arrays import as_integers
from sparse_mixer._core.checks import as_bool
from sparse_mixer._core.variables import Variable, assign_all, read_all


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

    def count_params(self) -> int:
        """Number of parameters."""
        return sum(math.prod(variable.shape) for variable in self._variables)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.count_params():,} parameters>"


class EmbeddingLayer(Layer):
    """The word embeddings: token ids to rows of a table ``[vocab_size, embedding_width]``."""

    @property
    def embeddings(self) -> Variable:
        """The table."""
        table: Variable = self._variables[0]
        return table

    def __call__(self, ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
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

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name!r}, {self.mixing} + {self.feed_forward}, "
            f"{self.count_params():,} parameters>"
        )


def group_into_layers(
    variables: Sequence[Variable], attention: Sequence[int], moe: Sequence[int], mixing: MixingMechanism
) -> list[Layer]:
    """One layer per part of an encoder, in Keras order.

    Args:
        variables: The encoder's weights, in Keras order.
        attention: Indices of the blocks with attention.
        moe: Indices of the blocks with a mixture of experts.
        mixing: What the other blocks mix by.
    """
    owned: dict[str, list[Variable]] = {}
    for variable in variables:
        parts = variable.key.split("/")
        depth = 2 if parts[0] in ("transformer", "embeddings") else 1
        owned.setdefault("/".join(parts[:depth]), []).append(variable)
    layers: list[Layer] = []
    for name, group in owned.items():
        if name == "word_embeddings":
            layers.append(EmbeddingLayer(name, group))
        elif name.startswith("transformer/layer_"):
            index = int(name.removeprefix("transformer/layer_"))
            by = "attention" if index in attention else mixing.value
            layers.append(TransformerLayer(name, group, index=index, mixing=by, is_moe=index in moe))
        else:
            layers.append(Layer(name, group))
    return layers
