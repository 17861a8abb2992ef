"""Presets: the published configurations, their sizes, and where their weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from sparse_mixer import SparseMixer, _native
from sparse_mixer._core import summary
from sparse_mixer._core.arguments import Arguments
from sparse_mixer.checkpoints import presets

# Parameters of the encoders, without heads, at 32,000 words: section 13 of the paper's checkpoints less the heads
# (transform 512 x 512 + 512, its norm 1024, 32,000 biases, next sentence 2 x 512 + 2; with 768 for BERT).
HEADS = {512: 512 * 512 + 512 + 1024 + 32000 + 2 * 512 + 2, 768: 768 * 768 + 768 + 1536 + 32000 + 2 * 768 + 2}
PUBLISHED = {
    "sparse_mixer_base": 182_356_802 - HEADS[512],
    "fast_sparse_mixer_base": 182_356_802 - HEADS[512],
    "sparse_mixer_small": 166_600_514 - HEADS[512],
    "fast_sparse_mixer_small": 166_600_514 - HEADS[512],
    "bert_base": 111_835_138 - HEADS[768],
}


def arguments(name: str) -> Arguments:
    return Arguments(presets.preset(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    specs = _native.weight_specs(arguments(name).core_config(0))
    assert sum(int(np.prod(shape)) for _, shape in specs) == PUBLISHED[name]


def test_fnet_has_hugging_faces_weights() -> None:
    """One table more than 'google/fnet-base', whose sizes are these: 82 million parameters."""
    a = arguments("fnet_base")
    specs = dict(_native.weight_specs(a.core_config(0)))
    assert specs["embedding_projection/kernel"] == [768, 768]
    assert not any("attention/" in name or "linear_transform" in name for name in specs)
    assert 80e6 < sum(int(np.prod(shape)) for shape in specs.values()) < 85e6


def test_layouts_and_capacities() -> None:
    base, small = arguments("sparse_mixer_base"), arguments("fast_sparse_mixer_small")
    assert (base.moe_layers, base.attention_layers) == ((5, 6, 7, 8), (10, 11, 12, 13))
    assert (small.moe_layers, small.attention_layers) == ((2, 3, 4, 5), (4, 5, 6, 7))
    assert (base.train_capacity_factor, base.eval_capacity_factor) == (1.0, 1.0)
    assert (small.train_capacity_factor, small.eval_capacity_factor) == (0.5, 0.5)
    assert arguments("bert_base").attention_layers == tuple(range(12))


TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "inner_dim": 24,
    "num_attention_heads": 2,
    "max_sequence_length": 8,
}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_with_and_without_weights(name: str, tmp_path: Path) -> None:
    encoder = SparseMixer.from_preset(name, **TINY, seed=1)
    inputs = {"input_word_ids": np.arange(16).reshape(2, 8) % 40, "input_type_ids": np.zeros((2, 8), np.int32)}
    outputs = encoder(inputs)
    encoder.save(tmp_path / "weights.npz")
    sizes = {key: value for key, value in TINY.items() if key != "vocab_size"}
    loaded = SparseMixer.from_preset(name, tmp_path / "weights.npz", **sizes)
    assert loaded.arguments.vocab_size == 40, "that of the file"
    np.testing.assert_array_equal(loaded(inputs)["sequence_output"], outputs["sequence_output"])
    texts: list[str] = []
    encoder.summary(texts.append)
    loaded.summary(texts.append)
    assert "GFLOP per sequence" in texts[0]
    assert f"Parameters: {encoder.count_params():,}" in texts[0]
    assert "pretrained ones come from a file that you have" in texts[0]
    assert "configuration without weights" not in texts[1]


def test_operations_are_those_of_the_slots_that_are_filled() -> None:
    """Experts' products are counted for the tokens that the capacity, its minimum and the router let through."""

    def expert_flops(**changes: Any) -> int:
        rows = {}
        for router_only in (False, True):
            width = {"expert_inner_dim": 1 if router_only else 9}
            encoder = SparseMixer.from_preset("sparse_mixer_small", **TINY, **changes, **width)
            rows[router_only] = sum(row.flops for row in summary.rows(encoder))
        layers, hidden = 4, TINY["hidden_size"]
        return (rows[False] - rows[True]) // (layers * 8 * 4 * hidden)

    length, experts = TINY["max_sequence_length"], 4
    small = {"num_experts": experts, "min_expert_capacity": 0}
    assert expert_flops(**small) == length
    assert expert_flops(**small, eval_capacity_factor=0.5) == length // 2
    assert expert_flops(**small | {"min_expert_capacity": length - 1}) == experts * (length - 1)
    choosing = {"router": "tokens_choose", "eval_capacity_factor": 4.0, **small}
    assert expert_flops(**choosing) == length
    assert expert_flops(**choosing, num_selected_experts=2) == 2 * length
    assert expert_flops(**choosing | {"eval_capacity_factor": 0.5}, num_selected_experts=2) == length // 2


def test_unknown_presets_and_arguments() -> None:
    with pytest.raises(ValueError, match=r"name: got 'base', expected one of 'sparse_mixer_base'"):
        SparseMixer.from_preset("base")
    with pytest.raises(TypeError, match="name: expected"):
        SparseMixer.from_preset(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prefix"):
        SparseMixer.from_preset("bert_base", prefix="encoder")
    with pytest.raises(FileNotFoundError):
        SparseMixer.from_preset("bert_base", "absent.safetensors")


def test_base_takes_as_many_operations_as_the_benchmarks_say() -> None:
    """The convention of every rate on the performance page: 41.9 GFLOP per sequence for the Base model at 512."""
    encoder = sparse_mixer.SparseMixer(100, seed=0, initializer="zeros")
    texts: list[str] = []
    encoder.summary(texts.append)
    assert "Inference: 41.9" in texts[0], texts[0].splitlines()[-2]
