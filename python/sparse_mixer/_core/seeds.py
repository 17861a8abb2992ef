"""Seeds, and where whatever has none takes one from.

Every use of random numbers has a purpose. Seeds for it are hashes of the purpose, the seed that a user gave and the
place of the use, so that equal seeds never make two uses see the same numbers. The core keeps its own list of purposes,
in ``src/random.rs``.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import os
import struct
from collections.abc import Iterator

import numpy as np

from sparse_mixer._core.checks import as_seed

SEED_RANGE = 2**64


class Purpose(enum.Enum):
    """What random numbers are for; the values go into the hash, at most 16 letters."""

    UNSEEDED = "unseeded"
    """Seeds of what has none, after `set_random_seed`."""
    CALL = "call"
    """Dropout and jitter of the calls of an encoder that has a seed, one after the other."""
    BATCH = "batch"
    """Dropout and jitter of a batch in `fit`."""
    TRANSFORM = "transform"
    """The seed that `fit` hands to `transform` with a batch."""
    ORDER = "order"
    """The order of the examples in an epoch."""
    MASKING = "masking"
    """Choice and replacement of tokens to predict."""
    ENCODER_WEIGHT = "encoder weight"
    """Initial values of an encoder's weight that are not made by the core."""
    HEAD_WEIGHT = "head weight"
    """The same of a head."""


# The seed and the numbers of those who asked. One attribute, replaced as a whole: no lock that a fork could find held.
_sequence: tuple[int, Iterator[int]] | None = None


def set_random_seed(seed: int | None) -> None:
    """Make everything that is given no seed repeatable, from now on, in this process.

    That is initial weights of encoders and heads, calls with ``training=True`` of encoders without a seed, `fit`
    (order, dropout, jitter, the seeds of `transform`) and `masking.mask_tokens`. Each of them takes the next seed of
    one sequence, so the same program gives the same numbers if it asks in the same order, from one thread. What has a
    seed of its own does not depend on this one.

    Examples:
        >>> import sparse_mixer
        >>> sizes = dict(hidden_size=16, num_layers=2, inner_dim=32, max_sequence_length=8)
        >>> def table():
        ...     sparse_mixer.set_random_seed(1)
        ...     return sparse_mixer.SparseMixer(100, **sizes).get_weights()[0]
        >>> bool((table() == table()).all())
        True
        >>> sparse_mixer.set_random_seed(None)

    Args:
        seed: An integer in ``[0, 2**64)``; None goes back to seeds from the operating system, as at the start.

    Raises:
        TypeError: Not an integer.
        ValueError: Out of range.
    """
    global _sequence
    _sequence = None if seed is None else (as_seed("seed", seed), itertools.count())


def fresh_seed() -> int:
    """A seed for what was given none: from the operating system, or the next one after `set_random_seed`."""
    sequence = _sequence
    if sequence is None:
        return int.from_bytes(os.urandom(8), "little")
    seed, numbers = sequence
    return derived_seed(Purpose.UNSEEDED, seed, next(numbers))


def derived_seed(purpose: Purpose, seed: int, *place: int | str) -> int:
    """A seed of 64 bits for a purpose.

    Args:
        purpose: What it is for.
        seed: The seed that was given or chosen at random, in ``[0, 2**64)``.
        place: Which of the uses for this purpose: numbers in ``[0, 2**64)`` and names.
    """
    return int.from_bytes(_digest(purpose, seed, place)[:8], "little")


def generator(purpose: Purpose, seed: int, *place: int | str) -> np.random.Generator:
    """A generator for a purpose; the arguments are those of `derived_seed`."""
    return np.random.default_rng(int.from_bytes(_digest(purpose, seed, place), "little"))


def _digest(purpose: Purpose, seed: int, place: tuple[int | str, ...]) -> bytes:
    """16 bytes that depend on all arguments, and on which of them is which."""
    hashed = hashlib.blake2b(struct.pack("<Q", seed), digest_size=16, person=purpose.value.encode())
    for part in place:
        if isinstance(part, str):
            text = part.encode()
            hashed.update(struct.pack("<cQ", b"s", len(text)) + text)
        else:
            hashed.update(struct.pack("<cQ", b"i", part))
    return hashed.digest()
