"""Layers whose weights the core holds by themselves: encoders and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparse_mixer import _native
from sparse_mixer._core.variables import Variable
from sparse_mixer.layers import Layer


class Part(Layer):
    """Base of encoders and heads: what optimisers, models, files and adapters to other frameworks build on.

    Attributes:
        core: The core's object that holds the weights. ``sparse_mixer/_native.pyi`` describes its methods.
    """

    core: _native.Encoder | _native.Head

    def __init__(
        self,
        name: str,
        core: _native.Encoder | _native.Head,
        variables: Sequence[Any],
        layers: Sequence[Layer] = (),
    ) -> None:
        super().__init__(name, variables, layers)
        self.core = core

    @property
    def weight_keys(self) -> list[str]:
        """Keys of all weights in the core, in its order."""
        return [key for key, _ in self.core.weight_specs()]


def variables_of(core: _native.Encoder | _native.Head, owner: str) -> list[Variable]:
    """One variable per weight of `core`; `owner` is what their full names start with, if not empty."""
    return [Variable(core, index, key, tuple(shape), owner) for index, (key, shape) in enumerate(core.weight_specs())]
