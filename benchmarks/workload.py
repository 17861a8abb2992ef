"""What is measured: model configurations, weights and inputs that every peer rebuilds from the same seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

WeightSpecs = Sequence[tuple[str, tuple[int, ...]]]

MASKED_SHARE = 8
"""One position in this many, at the end of every sequence, is padding."""

CALIBRATION_BATCHES = 8
"""Batches that post-training quantisation sees."""

LEARNING_RATE = 1e-4
"""Of all training steps."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """An encoder configuration; the defaults are the Base model of `tfm.nlp.networks.SparseMixer`."""

    vocab_size: int = 30522
    hidden_size: int = 512
    num_layers: int = 14
    moe_layers: tuple[int, ...] = (5, 6, 7, 8)
    attention_layers: tuple[int, ...] = (10, 11, 12, 13)
    num_experts: int = 16
    examples_per_group: float = 1.0
    mixing_mechanism: str = "linear"
    use_fft: bool = False
    num_attention_heads: int = 8
    max_sequence_length: int = 512
    type_vocab_size: int = 16
    inner_dim: int = 2048
    train_capacity_factor: float = 1.0
    eval_capacity_factor: float = 1.0

    def constructor_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the encoder's constructor."""
        return dataclasses.asdict(self)

    def flops_per_sequence(self) -> float:
        """Return the floating-point operations of the matrix products of one sequence.

        A multiplication and an addition count as two. Counted are feed-forward (an expert layer at capacity factor
        1 handles each token once on average), router, attention, linear mixing and pooler; a spectral layer
        counts as the two complex DFT products that `use_fft=False` stands for, kept real where the input is.
        """
        seq, hidden, inner = self.max_sequence_length, self.hidden_size, self.inner_dim
        attention = 4 * 2.0 * seq * hidden * hidden + 2 * 2.0 * seq * seq * hidden
        linear = 2.0 * seq * hidden * hidden + 2.0 * seq * seq * hidden
        spectral = 2 * 2.0 * seq * hidden * hidden + 2 * 2.0 * seq * seq * hidden
        total = 2.0 * hidden * hidden
        for layer in range(self.num_layers):
            if layer in self.attention_layers:
                total += attention
            else:
                total += linear if self.mixing_mechanism == "linear" else spectral
            total += 2 * 2.0 * seq * hidden * inner
            if layer in self.moe_layers:
                total += 2.0 * seq * hidden * self.num_experts
        return total

    def inputs(self, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Return int32 `input_word_ids`, `input_mask` and `input_type_ids`, each of shape [batch, sequence]."""
        rng = np.random.default_rng(seed)
        seq = self.max_sequence_length
        mask = np.ones((batch, seq), np.int32)
        mask[:, seq - seq // MASKED_SHARE :] = 0
        types = np.zeros((batch, seq), np.int32)
        types[:, seq // 2 :] = 1
        ids = rng.integers(0, self.vocab_size, (batch, seq), dtype=np.int32)
        return {"input_word_ids": ids, "input_mask": mask, "input_type_ids": types}

    def calibration(self, batch: int = 1) -> list[dict[str, np.ndarray]]:
        """Return the inputs that post-training quantisation sees, none of which is measured."""
        return [self.inputs(batch, seed=1000 + seed) for seed in range(CALIBRATION_BATCHES)]

    def target(self) -> np.ndarray:
        """Return what training draws every sequence's output to, float32 [sequence, hidden]."""
        rng = np.random.default_rng(1)
        return rng.standard_normal((self.max_sequence_length, self.hidden_size), dtype=np.float32)


BERT_BASE = Workload(
    hidden_size=768,
    num_layers=12,
    moe_layers=(),
    attention_layers=tuple(range(12)),
    num_attention_heads=12,
    type_vocab_size=2,
    inner_dim=3072,
)
"""BERT Base: attention everywhere, no experts."""


def make_weights(specs: WeightSpecs, seed: int = 0, scale: float = 0.02) -> list[np.ndarray]:
    """Return float32 weights for `specs`, the same in every process.

    Kernels and tables are normal with standard deviation `scale`; gains are one, biases zero.

    Args:
        specs: name and shape of each weight, in Keras order; the last part of the name says what it is.
        seed: seed of the whole list.
        scale: standard deviation of kernels and embedding tables.
    """
    weights = []
    for index, (name, shape) in enumerate(specs):
        leaf = name.split(":")[0].rsplit("/", 1)[-1]
        if leaf == "gamma":
            weights.append(np.ones(shape, np.float32))
        elif leaf in ("bias", "beta"):
            weights.append(np.zeros(shape, np.float32))
        else:
            rng = np.random.default_rng((seed, index))
            weights.append(rng.standard_normal(shape, dtype=np.float32) * np.float32(scale))
    return weights
