"""`python -m benchmarks bert`: every engine reads the same BERT, and the arithmetic under the table."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("tqdm")

from benchmarks import bert, inference
from benchmarks.workload import BERT_BASE, Workload

TINY = Workload(
    vocab_size=100,
    hidden_size=32,
    num_layers=2,
    moe_layers=(),
    attention_layers=(0, 1),
    num_attention_heads=2,
    max_sequence_length=16,
    type_vocab_size=2,
    inner_dim=64,
)


def test_the_closest_engine_of_the_same_precision_is_named() -> None:
    rows = [
        inference.Row(peer, 8, 1.0, turns, 8.0, 1.0, 0.5)
        for peer, turns in {
            "ours-f32": [1.0, 2.0, 1.0],
            "torch-f32": [1.5, 3.0, 1.6],
            "onnx-f32": [1.2, 2.6, 1.2],
            "torch-bf16": [0.1, 0.1, 0.1],
        }.items()
    ]
    assert bert.comparisons(rows) == ["float32, batch 8: ours is 1.20 x ONNX Runtime float32, the closest"]


def test_operations_are_those_of_bert_base() -> None:
    """Per layer 12 H^2 per token in products with weights, and 2 S^2 H with attention; and the pooler."""
    tokens, hidden = 512, 768
    expected = 2 * (12 * (tokens * 12 * hidden**2 + 2 * tokens**2 * hidden) + hidden**2)
    assert BERT_BASE.flops_per_sequence() == expected


def test_an_engine_of_float32_with_another_model_is_refused() -> None:
    far = inference.Agreement(0.5, 0.1)
    inference.require_agreement({"ours-f32": inference.Agreement(1.0, 0.0), "torch-bf16": far}, "ours-f32", 1e-3)
    for difference in (0.1, float("nan")):
        agrees = {"torch-f32": inference.Agreement(1.0, difference)}
        with pytest.raises(RuntimeError, match=r"torch-f32: its outputs differ from those of ours-f32 by .*; expected"):
            inference.require_agreement(agrees, "ours-f32", 1e-3)


@pytest.mark.slow
def test_all_engines_read_the_same_bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, group in (
        ("torch", "TORCH"),
        ("transformers", "TORCH"),
        ("onnxruntime", "ONNX"),
        ("openvino", "ONNX"),
    ):
        if importlib.util.find_spec(package) is None:
            # `make test` has them for certain.
            assert os.environ.get(f"SPARSE_MIXER_REQUIRE_{group}") != "1", package
            pytest.skip(f"needs {package}")
    monkeypatch.setenv("SPARSE_MIXER_BENCH_CACHE", str(tmp_path / "cache"))
    engines = ["ours-f32", "torch-f32", "onnx-f32", "openvino-f32", "ours-int8"]
    table = bert.run(engines, [2], 1, 1, tmp_path, TINY)
    assert (tmp_path / "bert.md").read_text().strip() in table
    saved = json.loads((tmp_path / "bert.json").read_text())
    assert [(row["peer"], row["batch"]) for row in saved["rows"]] == [(name, 2) for name in engines]
    differences = saved["difference_to_baseline"]
    assert all(differences[name] < 1e-5 for name in engines[:4])
    assert 1e-5 < differences["ours-int8"] < 1
    assert saved["cosine_to_baseline"]["ours-int8"] > 0.98
    assert "float32, batch 2: ours is" in table
