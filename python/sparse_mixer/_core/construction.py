"""Making the core's encoder from checked arguments: seeds, initial weights, custom activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_mixer import _native
from sparse_mixer._core.arguments import Arguments
from sparse_mixer._core.checks import as_int
from sparse_mixer._core.seeds import SEED_RANGE, Purpose, fresh_seed, generator
from sparse_mixer._core.variables import as_float32
from sparse_mixer.activations import Activation
from sparse_mixer.initializers import Initializer

Array = npt.NDArray[np.float32]


def make_core(
    arguments: Arguments,
    seed: int,
    provider: Callable[[str, tuple[int, ...]], Array] | None,
    num_threads: int | None,
    isa: str | None,
) -> _native.Encoder:
    """The core's encoder.

    Args:
        arguments: What it is.
        seed: Where the core's random initial weights come from.
        provider: Gives the initial weights instead, by name and shape.
        num_threads: Most threads per call; None follows the process's setting.
        isa: Instruction set; None for the best.
    """
    activation = arguments.inner_activation
    custom = activation if isinstance(activation, Activation) else None
    return _native.Encoder(
        arguments.core_config(seed),
        provider,
        activation=None if custom is None else _checked(custom.function, "inner_activation"),
        activation_derivative=None
        if custom is None or custom.derivative is None
        else _checked(custom.derivative, "derivative of inner_activation"),
        num_threads=None if num_threads is None else as_int("num_threads", num_threads),
        isa=isa,
    )


def _checked(function: Callable[[Any], Any], argument: str) -> Callable[[Array], Array]:
    """`function` with its result as the core reads it: float32, C-contiguous, of the argument's shape."""

    def call(x: Array) -> Array:
        values = as_float32(f"{argument}(x)", function(x))
        if values.shape != x.shape:
            raise ValueError(f"{argument}(x): expected shape {x.shape}, that of x, got {values.shape}")
        return np.require(values, np.float32, ["C", "A", "E"])

    return call


def provider(arguments: Arguments, seed: int) -> Callable[[str, tuple[int, ...]], Array] | None:
    """Initial values by weight name, made in Python; None where the core samples them."""
    if arguments.core_samples():
        return None
    initializer = arguments.initializer

    def provide(name: str, shape: tuple[int, ...]) -> Array:
        if name.endswith(("bias", "beta")):
            return np.zeros(shape, np.float32)
        if name.endswith("gamma"):
            return np.ones(shape, np.float32)
        if isinstance(initializer, Initializer):
            return np.ascontiguousarray(initializer.sample(shape, generator(Purpose.ENCODER_WEIGHT, seed, name)))
        values = as_float32(f"initializer({shape})", initializer(shape))
        if values.shape != shape:
            raise ValueError(f"initializer: expected an array of shape {shape} for {name}, got {values.shape}")
        return np.require(values, np.float32, ["C", "A", "E"])

    return provide


def weight_seed(arguments: Arguments) -> int:
    """The encoder's seed, else its initialiser's, else a fresh one."""
    seed = given_seed(arguments.seed, arguments.initializer)
    return fresh_seed() if seed is None else seed


def given_seed(seed: int | None, initializer: Any) -> int | None:
    """The seed, or without one that of the initialiser; None if neither has one."""
    for candidate in (seed, getattr(initializer, "seed", None)):
        if candidate is not None:
            return int(candidate) % SEED_RANGE
    return None
