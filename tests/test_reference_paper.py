"""Random encoders of paper semantics, block by block, against formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_paper
from hypothesis import given, settings
from hypothesis import strategies as st
from jax_cases import ABSOLUTE, RELATIVE
from sparse_mixer import SparseMixer


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 3))
    layers = draw(st.integers(1, 3))
    experts = draw(st.integers(1, 5))
    layer_sets = st.sets(st.integers(0, layers - 1)).map(sorted)
    router = draw(st.sampled_from(["experts_choose", "tokens_choose"]))
    return {
        "semantics": "paper",
        "vocab_size": 20,
        "hidden_size": heads * draw(st.integers(4, 12)),
        "embedding_width": draw(st.integers(4, 30)),
        "num_layers": layers,
        "moe_layers": draw(layer_sets),
        "attention_layers": draw(layer_sets),
        "num_experts": experts,
        "eval_capacity_factor": draw(st.sampled_from([0.3, 0.5, 1.0, 1.25])),
        "min_expert_capacity": draw(st.integers(0, 1)),
        "max_group_size": draw(st.none() | st.integers(1, 40)),
        "mixing_mechanism": draw(st.sampled_from(["linear", "fourier", "hartley", "circulant", "toeplitz"])),
        "use_fft": draw(st.booleans()),
        "num_attention_heads": heads,
        "max_sequence_length": draw(st.integers(2, 19)),
        "type_vocab_size": 3,
        "inner_dim": draw(st.integers(1, 40)),
        "expert_inner_dim": draw(st.integers(1, 40)),
        "pad_id": draw(st.integers(-1, 3)),
        "router": router,
        "num_selected_experts": draw(st.integers(1, experts)) if router == "tokens_choose" else 1,
        "batch_prioritized_routing": draw(st.booleans()),
        "group_mixup": draw(st.booleans()),
        "initializer": {"class_name": "RandomNormal", "config": {"stddev": 0.3}},
        "seed": draw(st.integers(0, 2**32)),
    }


@pytest.mark.filterwarnings("ignore:the expert capacity rounds to 0")
@settings(max_examples=150, deadline=None)
@given(configurations(), st.integers(1, 4), st.integers(0, 2**32), st.booleans())
def test_blocks(arguments: dict[str, Any], batch: int, seed: int, shorter: bool) -> None:
    length = arguments["max_sequence_length"]
    takes_shorter = arguments["mixing_mechanism"] in ("fourier", "hartley") or len(
        arguments["attention_layers"]
    ) == len(range(arguments["num_layers"]))
    if shorter and takes_shorter:
        length -= 1
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 20, (batch, length))
    # Long runs of padding, and whole examples of it.
    ids[rng.random((batch, length)) < rng.random((batch, 1))] = max(arguments["pad_id"], 0)
    types = rng.integers(0, 3, ids.shape)
    encoder = SparseMixer(**arguments)
    wanted = ("sequence_output", "pooled_output", "encoder_outputs", "routing")
    outputs = encoder({"input_word_ids": ids, "input_type_ids": types}, outputs=wanted)
    reference = reference_paper.PaperEncoder(arguments, {weight.key: weight.numpy() for weight in encoder.weights})

    def assert_close(name: str, ours: Any, expected: Any) -> None:
        peak = np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, atol=ABSOLUTE * max(1, peak), rtol=RELATIVE, err_msg=name)

    routing = dict(zip(arguments["moe_layers"], outputs["routing"], strict=True))
    real = ids != arguments["pad_id"]
    x = reference.embed(ids, types)
    for layer, ours in enumerate(outputs["encoder_outputs"]):
        indices = routing[layer]["indices"] if layer in routing else None
        assert_close(f"block {layer}", ours, reference.block(layer, x, real, indices))
        # From our own result on, so that differences do not add up.
        x = ours.astype(np.float64)
    assert_close("pooled_output", outputs["pooled_output"], reference.pool(x))
