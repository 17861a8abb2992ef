"""`Dense` layers of `sentence-transformers` folders, against the formula, and against that package where it is."""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("tokenizers")
from sparse_mixer import CheckpointError, SparseMixer, TextEncoder
from sparse_mixer.text.fingerprint import fingerprint
from text_models import folder_of

REQUIRED = os.environ.get("SPARSE_MIXER_REQUIRE_HF") == "1"
TEXTS = ["a b c", "k", "l k j i", "", "b. b", "a b c d e"]
ACTIVATIONS: dict[str, Any] = {
    "activation.Tanh": np.tanh,
    "linear.Identity": lambda x: x,
    "activation.ReLU": lambda x: np.maximum(x, 0),
    "activation.GELU": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "activation.Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "activation.SiLU": lambda x: x / (1 + np.exp(-x)),
}


def with_layers(path: Path, layers: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> Path:
    """A folder whose pooled vectors go through `layers`: class, configuration, weights."""
    folder_of(path, normalize=False)
    parts = json.loads((path / "modules.json").read_text())
    for number, (kind, config, weights) in enumerate(layers, 2):
        place = f"{number}_{kind}"
        parts.append(
            {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"}
        )
        (path / place).mkdir(exist_ok=True)
        if kind == "Dense":
            (path / place / "config.json").write_text(json.dumps(config))
            safetensors.numpy.save_file(weights, path / place / "model.safetensors")
    (path / "modules.json").write_text(json.dumps(parts))
    return path


def dense(
    inputs: int, outputs: int, activation: str, seed: int = 0, **config: Any
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    random = np.random.default_rng(seed)
    weights = {"linear.weight": random.normal(0, 0.5, (outputs, inputs)).astype(np.float32)}
    if config.get("bias", True):
        weights["linear.bias"] = random.normal(0, 0.5, outputs).astype(np.float32)
    if config.get("use_residual") and inputs != outputs:
        weights["residual.weight"] = random.normal(0, 0.5, (outputs, inputs)).astype(np.float32)
    about = {"in_features": inputs, "out_features": outputs, "bias": True}
    return "Dense", about | {"activation_function": f"torch.nn.modules.{activation}", **config}, weights


NORMALIZE: tuple[str, dict[str, Any], dict[str, Any]] = ("Normalize", {}, {})


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_formula(tmp_path: Path, activation: str) -> None:
    layer = dense(16, 10, activation)
    pooled = TextEncoder(folder_of(tmp_path / "plain", normalize=False)).encode(TEXTS).astype(np.float64)
    model = TextEncoder(with_layers(tmp_path / "dense", [layer, NORMALIZE]))
    weights = layer[2]
    expected = ACTIVATIONS[activation](pooled @ weights["linear.weight"].T + weights["linear.bias"])
    np.testing.assert_allclose(model.encode(TEXTS), unit(expected), atol=2e-6)
    assert (model.get_embedding_dimension(), model.normalize) == (10, True)
    model.normalize = False
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=5e-6)
    cut = model.encode(TEXTS, truncate_dim=4, normalize_embeddings=True)
    np.testing.assert_allclose(cut, unit(expected[:, :4]), atol=5e-6)
    with pytest.raises(ValueError, match="truncate_dim: got 11, expected at most 10"):
        model.encode(TEXTS, truncate_dim=11)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).encode(TEXTS), model.encode(TEXTS))


def test_several_layers_and_sums(tmp_path: Path) -> None:
    pooled = TextEncoder(folder_of(tmp_path / "plain", normalize=False)).encode(TEXTS).astype(np.float64)
    first = dense(16, 16, "activation.Tanh", use_residual=True)
    second = dense(16, 5, "activation.ReLU", seed=1, bias=False, use_residual=True)
    model = TextEncoder(with_layers(tmp_path / "dense", [first, NORMALIZE, second]))
    x = unit(np.tanh(pooled @ first[2]["linear.weight"].T + first[2]["linear.bias"]) + pooled)
    y = np.maximum(x @ second[2]["linear.weight"].T, 0) + x @ second[2]["residual.weight"].T
    np.testing.assert_allclose(model.encode(TEXTS), y, atol=5e-6)
    assert not model.normalize
    other = TextEncoder(with_layers(tmp_path / "other", [first, NORMALIZE, dense(16, 5, "activation.ReLU", seed=2)]))
    assert fingerprint(model)["layers"][:2] == fingerprint(other)["layers"][:2]
    assert fingerprint(model)["layers"] != fingerprint(other)["layers"]


def test_a_text_has_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    model = TextEncoder(with_layers(tmp_path / "dense", [dense(16, 77, "activation.Tanh"), NORMALIZE]))
    texts = TEXTS * 9
    alone = np.stack([model.encode(text) for text in texts])
    for rows in (1, 5, 32, 54):
        np.testing.assert_array_equal(model.encode(texts, batch_size=rows), alone)


def test_layers_that_are_not_computed_are_refused_by_name(tmp_path: Path) -> None:
    good = dense(16, 10, "activation.Tanh")
    for number, (changes, weights, message) in enumerate(
        [
            ({"activation_function": "torch.nn.modules.activation.Softmax2d"}, {}, "activation_function .*Softmax2d"),
            ({"activation_function": "os.system"}, {}, "activation_function 'os.system' is not computed"),
            ({"module_input_name": "token_embeddings"}, {}, "module_input_name 'token_embeddings' is not supported"),
            (
                {"out_features": 11},
                {},
                r"linear\.weight: expected shape \[11, 16\] as in config\.json, found \[10, 16\]",
            ),
            ({}, {"linear.bias": np.zeros(3, np.float32)}, "bias and residual do not fit"),
            ({"use_residual": True}, {}, "bias and residual do not fit"),
            ({}, {"linear.weight": np.zeros(3, np.float32)}, r"linear\.weight: expected shape \[10, 16\]"),
        ]
    ):
        kind, config, tensors = good
        path = with_layers(tmp_path / str(number), [(kind, config | changes, tensors | weights)])
        with pytest.raises(CheckpointError, match=message):
            TextEncoder(path)
    path = with_layers(tmp_path / "width", [dense(8, 10, "activation.Tanh")])
    with pytest.raises(CheckpointError, match="in_features: got 8, but vectors have 16 numbers"):
        TextEncoder(path)
    (path / "2_Dense" / "model.safetensors").rename(path / "2_Dense" / "pytorch_model.bin")
    (path / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match="pickle"):
        TextEncoder(path)
    (path / "2_Dense" / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="with the weights of the Dense layer"):
        TextEncoder(path)


def test_memory_estimates_follow_the_length(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "inner_dim": 128, "num_attention_heads": 2}
    layers: dict[str, Any] = {"attention_layers": (0, 1), "moe_layers": (), "shorter_sequences": True}
    encoder = SparseMixer(30, **sizes, **layers, max_sequence_length=512, seed=0)
    whole, short = encoder.memory_estimate(64), encoder.memory_estimate(64, sequence_length=32)
    assert encoder.memory_estimate(64, sequence_length=512) == whole
    # Four of its buffers of [64, 512, 64] floats, and more, are sixteen times smaller.
    assert whole - short > 4 * 64 * 480 * 64 * 4
    built = SparseMixer(30, **sizes, **layers, max_sequence_length=32, seed=0)
    table = (512 - 32) * 64 * 4
    assert abs(short - built.memory_estimate(64) - table) < 1 << 16
    for length, message in [(513, "got 513, expected 1 to max_sequence_length"), (0, "sequence_length")]:
        with pytest.raises(ValueError, match=message):
            encoder.memory_estimate(1, sequence_length=length)
    linear = SparseMixer(30, 64, 1, (), (), num_attention_heads=1, inner_dim=64, max_sequence_length=16, seed=0)
    with pytest.raises(ValueError, match="sequence_length: got 8, expected max_sequence_length"):
        linear.memory_estimate(1, sequence_length=8)
    tokenizer = folder_of(tmp_path / "vocabulary") / "vocab.txt"
    model = TextEncoder(encoder, tokenizer)
    assert model.memory_estimate(32, 16) == encoder.memory_estimate(32, outputs=["sequence_output"], sequence_length=16)
    assert model.memory_estimate(32) > model.memory_estimate(32, 16)
    with pytest.raises(ValueError, match="tokens: got 600, expected at most max_seq_length, 512"):
        model.memory_estimate(32, 600)
    # A linear encoder always sees the length that it was built for.
    mixing = TextEncoder(linear, tokenizer)
    assert mixing.memory_estimate(4, 3) == mixing.memory_estimate(4)


@pytest.mark.parametrize("activation", ["Tanh", "ReLU", "Identity", "GELU"])
def test_the_package_itself_gives_the_same(tmp_path: Path, activation: str) -> None:
    for package in ("torch", "sentence_transformers"):
        importlib.import_module(package) if REQUIRED else pytest.importorskip(package)
    import sentence_transformers
    import torch
    from sentence_transformers.sentence_transformer import modules as parts

    path = folder_of(tmp_path / "plain", normalize=False)
    base = parts.Transformer(str(path), max_seq_length=8)
    torch.manual_seed(1)
    layers = [
        base,
        parts.Pooling(16, pooling_mode="mean"),
        parts.Dense(16, 12, activation_function=getattr(torch.nn, activation)()),
        parts.Normalize(),
    ]
    theirs = sentence_transformers.SentenceTransformer(modules=layers, device="cpu")
    theirs.save(str(tmp_path / "saved"))
    model = TextEncoder(tmp_path / "saved")
    np.testing.assert_allclose(model.encode(TEXTS), theirs.encode(TEXTS), atol=2e-6)
    assert model.get_embedding_dimension() == 12
