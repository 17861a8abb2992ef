"""Encoders, inputs and gradients for the tests of the module of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
from sparse_mixer import SparseMixer as Encoder
from torch_reference import torch

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 8,
    "num_layers": 3,
    "moe_layers": (1,),
    "attention_layers": (2,),
    "num_experts": 2,
    "num_attention_heads": 2,
    "inner_dim": 16,
    "max_sequence_length": 6,
    "router_z_loss_weight": 0.1,
}
OUTPUTS = ("sequence_output", "pooled_output", "encoder_outputs")


def arrays(encoder: Encoder, batch: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = encoder.arguments
    shape = (batch, a.max_sequence_length)
    return {
        "input_word_ids": rng.integers(0, a.vocab_size, shape),
        "input_mask": rng.integers(0, 2, shape) | (np.arange(shape[1]) == 0),
        "input_type_ids": rng.integers(0, a.type_vocab_size, shape),
    }


def tensors(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def grads(module: Any) -> dict[str, np.ndarray]:
    named = module.named_parameters()
    return {name.replace(".", "/"): p.grad.numpy().copy() for name, p in named if p.grad is not None}
