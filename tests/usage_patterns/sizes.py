"""Sizes, data and helpers that all patterns share."""

from __future__ import annotations

from typing import Any

import numpy as np

LENGTH, VOCABULARY, CLASSES = 8, 40, 3

ARGUMENTS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_layers": 2,
    "moe_layers": (0,),
    "attention_layers": (1,),
    "num_experts": 4,
    "num_attention_heads": 2,
    "max_sequence_length": LENGTH,
    "type_vocab_size": 2,
    "inner_dim": 32,
    "output_dropout": 0.0,
    "attention_dropout": 0.0,
}


def batch(size: int = 8) -> dict[str, Any]:
    """Inputs of `size` examples."""
    ids = np.random.default_rng(7).integers(0, VOCABULARY, (size, LENGTH)).astype(np.int32)
    mask = (np.arange(LENGTH) < LENGTH - np.arange(size)[:, None] % 3).astype(np.int32)
    return {"input_word_ids": ids, "input_mask": mask, "input_type_ids": (ids % 2).astype(np.int32)}


def labels(size: int = 8) -> Any:
    """A class per example."""
    return np.arange(size) % CLASSES


def fill(variables: Any, seed: int = 11) -> None:
    """Give all variables values that depend on their place and shape alone, so that twins are equal."""
    rng = np.random.default_rng(seed)
    for variable in variables:
        noise = rng.standard_normal(tuple(variable.shape)).astype(np.float32)
        is_gamma = "gamma" in variable.name
        variable.assign(1 + 0.1 * noise if is_gamma else 0.2 * noise)
