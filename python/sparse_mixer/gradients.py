"""Gradients of the weights of an encoder or a model, held by the core in buffers that are used again."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.part import Part
from sparse_mixer._core.variables import as_float32

Array = npt.NDArray[np.float32]

INPUTS = ("input_word_embeddings", "dense_inputs")
"""Floating-point inputs of an encoder: the entries of `Gradients` that belong to no weight."""


class Gradients(Mapping[str, Array]):
    """One gradient per weight, in Keras order: a read-only mapping from the weight's key to a float32 array.

    Reading an entry copies it. The buffers start at zero; whatever computes gradients adds to them. Weights that were
    not reached, such as the pooler's under a loss of ``sequence_output``, read as zeros, and optimisers leave them
    alone, as Keras does where a gradient is None. A plain dict of these arrays has a gradient for each of its keys.

    With `keys` there are entries of these weights alone.

    Memory: 4 bytes per weight (Base: 727 MB), until the object is dropped. It is kept for the next gradients then, of
    whatever encoder; `sparse_mixer.release_scratch` gives it back to the system, and so does the end of the encoder and
    the last gradients of it. A loop that calls ``vjp`` and ``apply_gradients`` has one set at a time: see `of_a_step`.

    Attributes:
        parts: The encoder, and the heads if it is a model, that the weights belong to.
        buffers: The core's buffers, one per part.
        inputs: Gradients of floating-point inputs by name, of the last call; they are entries of the mapping, too.
    """

    def __init__(self, target: Any, keys: Collection[str] | None = None) -> None:
        """Zeros for the weights of `target`, an encoder or a model; for all, or those called `keys`."""
        self._build(target, keys, pass_on=False)

    @classmethod
    def of_a_step(cls, target: Any, keys: Collection[str] | None = None) -> Gradients:
        """Zeros in memory that goes from one step of training to the next: of ``vjp`` and ``loss_and_gradients``.

        ``apply_gradients`` leaves them as they are, and they can be read. The next gradients of this kind that the same
        thread computes for the same encoder or model take over the memory of those that it has applied last; reading
        these, or adding to them, raises RuntimeError then. `copy` keeps them; `clear` makes them zeros again, in new
        memory. Gradients that have not been applied, or were changed after that, keep their memory.

        Args:
            target: As in the constructor.
            keys: As there.
        """
        gradients = cls.__new__(cls)
        gradients._build(target, keys, pass_on=True)
        return gradients

    def _build(self, target: Any, keys: Collection[str] | None, *, pass_on: bool) -> None:
        self.parts = parts_of(target)
        self.buffers: list[_native.Gradients] = [part.core.gradients(pass_on) for part in self.parts]
        self.inputs: dict[str, Array] = {}
        self._places = {
            key: (buffer, index)
            for part, buffer in zip(self.parts, self.buffers, strict=True)
            for index, key in enumerate(part.weight_keys)
            if keys is None or key in keys
        }

    def __getitem__(self, key: str) -> Array:
        if key in self.inputs:
            return self.inputs[key]
        buffer, index = self._places[key]
        return buffer.get(index)

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from self.inputs

    def __len__(self) -> int:
        return len(self._places) + len(self.inputs)

    def __contains__(self, key: object) -> bool:
        return key in self._places or key in self.inputs

    def copy(self) -> Gradients:
        """The same in memory of their own, which no later step takes over."""
        return copy.copy(self)

    def set(self, key: str, value: npt.ArrayLike) -> None:
        """Replace the gradient of the weight `key`.

        Raises:
            KeyError: No such weight.
            ValueError: Wrong shape.
        """
        buffer, index = self._places[key]
        buffer.set(index, as_float32(key, value))

    def buffer_of(self, part: Any) -> _native.Gradients:
        """The core's buffer of an encoder or head.

        Raises:
            ValueError: These are gradients of other parts.
        """
        for own, buffer in zip(self.parts, self.buffers, strict=True):
            if own is part:
                return buffer
        raise ValueError("gradients: they belong to another encoder or model")

    def clear(self) -> None:
        """Set all gradients to zero."""
        self.inputs = {}
        for buffer in self.buffers:
            buffer.clear()

    def global_norm(self) -> float:
        """Euclidean norm over the gradients of all weights together."""
        return float(np.sqrt(sum(buffer.global_norm() ** 2 for buffer in self.buffers)))

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "keys": list(self._places), **self._values()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(_Parts(state["parts"]), state["keys"])  # type: ignore[misc]
        self.inputs = {name: np.array(array) for name, array in state["inputs"].items()}
        for buffer, values in zip(self.buffers, state["values"], strict=True):
            for index, array in values.items():
                buffer.set(index, array)

    def __copy__(self) -> Gradients:
        twin = Gradients.__new__(Gradients)
        twin.__setstate__(self.__getstate__())
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Gradients:
        # Of the same encoder or model, unless that is being copied, too.
        twin = Gradients.__new__(Gradients)
        twin.__setstate__(self.__getstate__() | {"parts": [memo.get(id(part), part) for part in self.parts]})
        return twin

    def _values(self) -> dict[str, Any]:
        """All gradients that something has been added to, by their places, and those of inputs."""
        values = [
            {index: buffer.get(index) for index, reached in enumerate(buffer.reached()) if reached}
            for buffer in self.buffers
        ]
        return {"values": values, "inputs": self.inputs}

    def __repr__(self) -> str:
        return f"<Gradients of {len(self)} weights>"


class _Parts:
    """Parts without the model that they make up."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts


def parts_of(target: Any) -> list[Any]:
    """The layers with storage of their own: a model's encoder and heads, or just the encoder."""
    parts = list(getattr(target, "parts", [target]))
    if not all(isinstance(part, Part) for part in parts):
        raise TypeError(f"target: expected a SparseMixer or a model around one, got {type(target).__name__}")
    return parts
