"""Arguments of the layers: those of `sparse_mixer.SparseMixer`, without the ones that every Keras layer has itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer._core.variables import Variable
from sparse_mixer.networks import SparseMixer

LAYER_ARGUMENTS = ("name", "trainable", "dtype")
"""What Keras's own layers take and keep."""

SIGNATURE = inspect.signature(SparseMixer)


class Given:
    """What a layer is built with: checked arguments, and the weights that it starts from.

    Attributes:
        layer: `LAYER_ARGUMENTS` that were given.
        config: What the encoder's `get_config` returns; without a seed that nobody gave.
        arguments: The encoder's checked arguments.
        embedding_layer: The user's own word embeddings, or None.
        num_threads: As in the constructor.
        isa: As in the constructor.
        values: Initial weights by key, in Keras order; without the word table if there is an own embedding layer.
    """

    def __init__(
        self,
        encoder: SparseMixer,
        layer: Mapping[str, Any],
        num_threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        """The arguments and weights of `encoder`, which is not kept."""
        self.layer = {name: value for name, value in layer.items() if value is not None}
        self.num_threads, self.isa = num_threads, isa
        self.arguments = encoder.arguments
        self.config = {name: value for name, value in encoder.get_config().items() if name not in LAYER_ARGUMENTS}
        self.embedding_layer = self.arguments.embedding_layer
        own = [variable for variable in encoder.weights if isinstance(variable, Variable)]
        self.values: dict[str, npt.NDArray[np.float32]] = {variable.key: variable.numpy() for variable in own}

    @classmethod
    def read(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], fresh_seed: Callable[[], int]) -> Given:
        """Check the arguments of a layer's constructor and draw weights.

        Args:
            args: Positional ones.
            kwargs: Named ones.
            fresh_seed: Gives a seed, from the framework's generator, if there is none among them.

        Raises:
            TypeError: Unknown, missing or repeated arguments, or values of wrong types.
            ValueError: As `sparse_mixer.SparseMixer`.
        """
        given = dict(SIGNATURE.bind(*args, **kwargs).arguments)
        layer = {name: given.pop(name) for name in LAYER_ARGUMENTS if name in given}
        drawn = given.get("seed") is None and _seed_of(given.get("initializer")) is None
        if drawn:
            given["seed"] = fresh_seed()
        read = cls(SparseMixer(**given), layer, given.get("num_threads"), given.get("isa"))
        if drawn:
            del read.config["seed"]
        return read


def _seed_of(initializer: Any) -> Any:
    """The seed that an initialiser, or what Keras serialises one to, brings along."""
    if isinstance(initializer, Mapping):
        return (initializer.get("config") or {}).get("seed")
    return getattr(initializer, "seed", None)
