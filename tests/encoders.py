"""Small encoders and matching inputs, shared by the tests of the Python interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import sparse_mixer

Array = np.ndarray[Any, Any]

VOCAB_SIZE, TYPES, LENGTH, WIDTH = 50, 3, 8, 16

ARGUMENTS: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "num_layers": 3,
    "moe_layers": (1,),
    "attention_layers": (2,),
    "num_experts": 4,
    "num_attention_heads": 2,
    "max_sequence_length": LENGTH,
    "type_vocab_size": TYPES,
    "inner_dim": 32,
    "seed": 7,
}


def small_encoder(**changes: Any) -> sparse_mixer.SparseMixer:
    """Three blocks: linear mixing with a dense feed-forward, linear mixing with experts, attention."""
    return sparse_mixer.SparseMixer(**(ARGUMENTS | changes))


def small_inputs(batch: int = 2, seed: int = 0) -> dict[str, Array]:
    """Random inputs for `small_encoder`; the last two positions are padding."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, LENGTH), np.int32)
    mask[:, -2:] = 0
    return {
        "input_word_ids": rng.integers(0, VOCAB_SIZE, (batch, LENGTH), dtype=np.int32),
        "input_mask": mask,
        "input_type_ids": rng.integers(0, TYPES, (batch, LENGTH), dtype=np.int32),
    }


def assert_same_outputs(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bitwise equality of two calls' outputs."""
    assert one.keys() == other.keys()
    for name in one:
        for a, b in zip(np.atleast_1d(one[name]), np.atleast_1d(other[name]), strict=True):
            np.testing.assert_array_equal(a, b)
