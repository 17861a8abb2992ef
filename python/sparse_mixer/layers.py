"""The encoder's sublayers as a person sees them: which mixing a layer uses, and the weights it owns.

The computation is the core's; objects of this module name, show, freeze, read and write parts of an encoder.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._variables import Variable, assign_all


class MixingMechanism(enum.Enum):
    """What layers without attention use to let tokens exchange information.

    The members and values are those of ``tfm.nlp.layers.MixingMechanism``.
    """

    FOURIER = "fourier"
    """Real part of the 2-D discrete Fourier transform over sequence and hidden axes; no weights."""

    HARTLEY = "hartley"
    """Real minus imaginary part of the same transform; no weights."""

    LINEAR = "linear"
    """Two learned matrices, ``seq_kernel @ x @ hidden_kernel``."""

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
    """A named part of an encoder, with the weights it owns in Keras order.

    Attributes:
        name: Keras's name of the layer, without the encoder's.
    """

    def __init__(self, name: str, variables: Sequence[Variable]) -> None:
        self.name = name
        self._variables = list(variables)
        self._trainable = True

    @property
    def trainable(self) -> bool:
        """Whether optimisers may change this layer's weights; setting it sets all of them."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        for variable in self._variables:
            variable.trainable = self._trainable

    @property
    def weights(self) -> list[Variable]:
        """The layer's weights."""
        return list(self._variables)

    @property
    def trainable_weights(self) -> list[Variable]:
        """The weights that optimisers may change."""
        return [variable for variable in self._variables if variable.trainable]

    @property
    def non_trainable_weights(self) -> list[Variable]:
        """The weights that optimisers leave alone."""
        return [variable for variable in self._variables if not variable.trainable]

    def get_weights(self) -> list[npt.NDArray[np.float32]]:
        """Copies of the weights, float32."""
        return [variable.numpy() for variable in self._variables]

    def set_weights(self, weights: Sequence[npt.ArrayLike]) -> None:
        """Replace all weights of this layer, or none.

        Args:
            weights: One array per weight, in the order and shapes of `get_weights`.

        Raises:
            ValueError: Wrong number of arrays or a wrong shape; nothing has changed then.
            TypeError: An array is not numeric.
        """
        assign_all(self._variables, weights)

    def count_params(self) -> int:
        """Number of parameters of this layer."""
        return sum(variable.size for variable in self._variables)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.count_params():,} parameters>"


class EmbeddingLayer(Layer):
    """The word embeddings: token ids to rows of a table ``[vocab_size, embedding_width]``."""

    @property
    def embeddings(self) -> Variable:
        """The table."""
        return self._variables[0]

    def __call__(self, ids: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Look up rows.

        Args:
            ids: Integers of any shape, each in ``[0, vocab_size)``.

        Returns:
            float32 array ``[*ids.shape, embedding_width]``.

        Raises:
            TypeError: `ids` are not integers.
            ValueError: An id lies outside the vocabulary.
        """
        rows = np.asarray(ids)
        vocab_size = self.embeddings.shape[0]
        if rows.dtype.kind not in "iu":
            raise TypeError(f"ids: expected integers, got {rows.dtype}")
        if rows.size and not (rows.min() >= 0 and rows.max() < vocab_size):
            position = tuple(int(i) for i in np.argwhere((rows < 0) | (rows >= vocab_size))[0])
            raise ValueError(f"ids{list(position)}: got {rows[position]}, expected 0 <= id < {vocab_size}")
        return self.embeddings.numpy()[rows]


class TransformerLayer(Layer):
    """One block: mixing or attention, then a feed-forward sublayer or a mixture of experts.

    Attributes:
        index: Position in the encoder, from 0.
        mixing: ``"attention"``, ``"linear"``, ``"fourier"`` or ``"hartley"``.
        is_moe: Whether the feed-forward sublayer is a mixture of experts.
    """

    def __init__(
        self, name: str, variables: Sequence[Variable], *, index: int, mixing: str, is_moe: bool
    ) -> None:
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
