"""MPNet: attention with relative position biases, beside the `transformers` package itself."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder, small_inputs
from sparse_mixer import SparseMixer

REQUIRED = os.environ.get("SPARSE_MIXER_REQUIRE_TF") == "1"
LENGTHS = [20, 20, 13, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A small MPNet with random weights, in a folder and as a model of PyTorch."""
    for package in ("torch", "transformers"):
        importlib.import_module(package) if REQUIRED else pytest.importorskip(package)
    import torch
    from transformers import MPNetConfig, MPNetModel

    torch.manual_seed(0)
    config = MPNetConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=202,
        layer_norm_eps=1e-5,
    )
    model = MPNetModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    path = tmp_path_factory.mktemp("mpnet")
    model.save_pretrained(path)
    return path, model


def batch(lengths: list[int], vocab: int = 50) -> dict[str, Any]:
    random = np.random.default_rng(1)
    ids = random.integers(4, vocab, (len(lengths), max(lengths))).astype(np.int32)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
    ids[mask == 0] = 1
    return {"input_word_ids": ids, "input_mask": mask, "input_type_ids": np.zeros_like(ids)}


def theirs(model: Any, inputs: dict[str, Any]) -> Any:
    import torch

    ids, mask = (torch.tensor(inputs[name], dtype=torch.int64) for name in ("input_word_ids", "input_mask"))
    return model(input_ids=ids, attention_mask=mask, output_hidden_states=True)


@pytest.mark.parametrize("lengths", [LENGTHS, [200, 150], [1]])
def test_hidden_states_are_those_of_the_package(folder: tuple[Path, Any], lengths: list[int]) -> None:
    path, model = folder
    encoder, inputs = SparseMixer.load(path, num_threads=2), batch(lengths)
    outputs, expected = encoder(inputs), theirs(model, inputs)
    real = inputs["input_mask"] == 1
    for ours, state in zip(outputs["encoder_outputs"], expected.hidden_states[1:], strict=True):
        np.testing.assert_allclose(ours[real], state.detach().numpy()[real], atol=2e-5)
    np.testing.assert_allclose(outputs["pooled_output"], expected.pooler_output.detach().numpy(), atol=2e-5)


def test_gradients_are_those_of_the_package(folder: tuple[Path, Any]) -> None:
    import torch

    path, model = folder
    encoder, inputs = SparseMixer.load(path), batch(LENGTHS)
    outputs, vjp = encoder.vjp(inputs, training=False)
    cotangent = np.sin(np.arange(outputs["sequence_output"].size, dtype=np.float32))
    cotangent = cotangent.reshape(outputs["sequence_output"].shape) * inputs["input_mask"][..., None]
    gradients = vjp({"sequence_output": cotangent})
    model.zero_grad()
    (theirs(model, inputs).last_hidden_state * torch.tensor(cotangent)).sum().backward()
    expected = {
        "relative_attention_bias/embeddings": model.encoder.relative_attention_bias.weight.grad,
        "transformer/layer_0/intermediate/kernel": model.encoder.layer[0].intermediate.dense.weight.grad.T,
    }
    for key, gradient in expected.items():
        array = gradient.numpy()
        np.testing.assert_allclose(gradients[key], array, atol=2e-5 * np.abs(array).max())


def test_a_batch_has_the_bits_of_its_examples(folder: tuple[Path, Any]) -> None:
    encoder = SparseMixer.load(folder[0], num_threads=2)
    inputs = batch(LENGTHS)
    whole = encoder(inputs)["sequence_output"]
    for row, length in enumerate(LENGTHS):
        alone = encoder({name: array[row : row + 1, :length] for name, array in inputs.items()})["sequence_output"]
        np.testing.assert_array_equal(alone[0], whole[row, :length])


def test_saved_and_loaded_again(folder: tuple[Path, Any], tmp_path: Path) -> None:
    encoder, inputs = SparseMixer.load(folder[0]), batch(LENGTHS)
    encoder.save(tmp_path / "own.safetensors")
    again = SparseMixer.load(tmp_path / "own.safetensors")
    assert again.arguments.relative_attention_num_buckets == 32
    np.testing.assert_array_equal(again(inputs)["sequence_output"], encoder(inputs)["sequence_output"])


def test_written_for_the_package(folder: tuple[Path, Any], tmp_path: Path) -> None:
    from transformers import MPNetModel

    encoder, inputs = SparseMixer.load(folder[0]), batch(LENGTHS)
    types = next(variable for variable in encoder.weights if variable.key == "type_embeddings/embeddings")
    types.assign(np.linspace(-1, 1, types.numpy().size, dtype=np.float32).reshape(types.shape))
    encoder.save(tmp_path, file_format="huggingface")
    model, about = MPNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    real = inputs["input_mask"] == 1
    expected = theirs(model.eval(), inputs).last_hidden_state.detach().numpy()[real]
    np.testing.assert_allclose(encoder(inputs)["sequence_output"][real], expected, atol=2e-5)
    again = SparseMixer.load(tmp_path)
    np.testing.assert_allclose(again(inputs)["sequence_output"][real], expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "fnet"])
def test_models_without_biases_are_not_written(folder: tuple[Path, Any], tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=f"'huggingface:{kind}' has no model for this encoder"):
        SparseMixer.load(folder[0]).save(tmp_path / "bert", file_format=f"huggingface:{kind}")
    assert not (tmp_path / "bert").exists()


@pytest.mark.parametrize("buckets", [0, 3, 5, 258])
def test_numbers_of_buckets_that_cannot_be_are_refused(buckets: int) -> None:
    with pytest.raises(ValueError, match="relative_attention_num_buckets: got"):
        small_encoder(relative_attention_num_buckets=buckets)


def test_a_sparse_mixer_takes_biases_too() -> None:
    encoder = small_encoder(relative_attention_num_buckets=8)
    table = next(variable for variable in encoder.weights if variable.key.startswith("relative_attention_bias"))
    assert table.shape == (8, encoder.arguments.num_attention_heads)
    before = encoder(small_inputs())["sequence_output"]
    table.assign(table.numpy() + np.linspace(-2, 2, table.numpy().size, dtype=np.float32).reshape(table.shape))
    assert np.abs(encoder(small_inputs())["sequence_output"] - before).max() > 1e-4
