"""Encoders of which a single sublayer is at work.

With all kernels zero a pre-norm block leaves its stream alone, so whatever weights are then assigned show in
the difference of output and input. Rows that are already normalised pass the layer norms unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import sparse_mixer

Array = np.ndarray[Any, Any]

_SMALL = {
    "vocab_size": 10,
    "hidden_size": 8,
    "num_layers": 1,
    "moe_layers": (),
    "attention_layers": (),
    "num_attention_heads": 1,
    "max_sequence_length": 6,
    "type_vocab_size": 2,
    "inner_dim": 4,
    "norm_first": True,
    "initializer": "zeros",
}


def encoder_with(weights: Mapping[str, Any], **arguments: Any) -> sparse_mixer.SparseMixer:
    """An encoder whose kernels are zero but for those given; keys are ends of weight names.

    Values are broadcast to the weight's shape. `arguments` replace those of a small pre-norm encoder.
    """
    encoder = sparse_mixer.SparseMixer(**_SMALL | arguments)
    for suffix, value in weights.items():
        # The shortest, because "output/kernel" also ends the names of experts and of the attention's output.
        variable = min((v for v in encoder.weights if ("/" + v.key).endswith("/" + suffix)), key=lambda v: len(v.key))
        variable.assign(np.broadcast_to(np.asarray(value, np.float32), variable.shape))
    return encoder


def normalised_rows(rng: np.random.Generator, batch: int, length: int = 6, width: int = 8) -> Array:
    """Random float32 [batch, length, width] with mean 0 and variance 1 in each row."""
    rows = rng.standard_normal((batch, length, width))
    rows -= rows.mean(axis=-1, keepdims=True)
    return (rows / rows.std(axis=-1, keepdims=True)).astype(np.float32)


def inputs_of(rows: Array, mask: Array | None = None) -> dict[str, Array]:
    """A call's dictionary with `rows` as word embeddings, of type 0, and nothing masked by default."""
    shape = rows.shape[:2]
    return {
        "input_word_embeddings": rows,
        "input_mask": np.ones(shape, np.int32) if mask is None else mask,
        "input_type_ids": np.zeros(shape, np.int32),
    }


def added_by(encoder: sparse_mixer.SparseMixer, rows: Array, mask: Array | None = None, **call: Any) -> Array:
    """What the only block adds to `rows`, [B, S, H]."""
    return encoder(inputs_of(rows, mask), **call)["sequence_output"] - rows
