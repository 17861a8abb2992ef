"""Making the core's encoder from checked arguments: seeds, initial weights, custom activations."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._arguments import Arguments, as_int
from sparse_mixer._variables import as_float32
from sparse_mixer.activations import Activation
from sparse_mixer.initializers import Initializer

Array = npt.NDArray[np.float32]
SEED_RANGE = 2**64


def make_native(
    arguments: Arguments,
    seed: int,
    provider: Callable[[str, tuple[int, ...]], Array] | None,
    num_threads: int | None,
    isa: str | None,
) -> _native.Encoder:
    activation = arguments.inner_activation
    custom = activation if isinstance(activation, Activation) else None
    return _native.Encoder(
        arguments.native_config(seed),
        provider,
        activation=None if custom is None else custom.function,
        activation_derivative=None if custom is None else custom.derivative,
        num_threads=None if num_threads is None else as_int("num_threads", num_threads),
        isa=isa,
    )


def provider(arguments: Arguments, seed: int) -> Callable[[str, tuple[int, ...]], Array] | None:
    """Initial values by weight name, made in Python; None where the core draws them."""
    if arguments.native_initializer() is not None:
        return None
    initializer = arguments.initializer
    number = itertools.count()

    def provide(name: str, shape: tuple[int, ...]) -> Array:
        stream = np.random.default_rng([seed, next(number)])
        if name.endswith(("bias", "beta")):
            return np.zeros(shape, np.float32)
        if name.endswith("gamma"):
            return np.ones(shape, np.float32)
        if isinstance(initializer, Initializer):
            return initializer.draw(shape, stream)
        values = as_float32(f"initializer({shape})", initializer(shape))
        if values.shape != shape:
            raise ValueError(f"initializer: expected an array of shape {shape} for {name}, got {values.shape}")
        return values

    return provide


def weight_seed(arguments: Arguments) -> int:
    """The encoder's seed, else its initialiser's, else one from the operating system."""
    for seed in (arguments.seed, getattr(arguments.initializer, "seed", None)):
        if seed is not None:
            return int(seed) % SEED_RANGE
    return int.from_bytes(os.urandom(8), "little")
