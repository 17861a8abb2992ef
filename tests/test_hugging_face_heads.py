"""Heads of RoBERTa, ELECTRA and DistilBERT in our models and back, against the `transformers` package where it is."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from sparse_mixer import CheckpointError, SparseMixer
from sparse_mixer.models import BertClassifier, BertPretrainerV2, BertSpanLabeler, BertTokenClassifier

REQUIRED = os.environ.get("SPARSE_MIXER_REQUIRE_HF") == "1"
TOLERANCE = 2e-5
KINDS = {"roberta": "Roberta", "electra": "Electra", "distilbert": "DistilBert"}
ACTIVATIONS = {"roberta": "tanh", "electra": "gelu", "distilbert": "relu"}
LABELS = {"ForSequenceClassification": 3, "ForTokenClassification": 5, "ForQuestionAnswering": 2, "ForMaskedLM": 2}
TASKS = tuple(LABELS)
PADDING = 1


def encoder_of(kind: str, seed: int = 3) -> SparseMixer:
    config: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_layers": 2,
        "num_attention_heads": 2,
        "inner_dim": 24,
        "inner_activation": "gelu",
        "max_sequence_length": 9,
        "type_vocab_size": 2,
        "attention_layers": (0, 1),
        "moe_layers": (),
        "with_pooler": False,
        "shorter_sequences": True,
        "initializer": {"class_name": "RandomNormal", "config": {"stddev": 0.3}},
        "seed": seed,
    }
    config |= {
        "roberta": {"type_vocab_size": 1, "layer_norm_epsilon": 1e-5},
        "electra": {"embedding_width": 6},
        "distilbert": {"type_vocab_size": 1},
    }[kind]
    return SparseMixer(**config)


def model_of(kind: str, task: str, encoder: SparseMixer, seed: int = 1) -> Any:
    if task == "ForSequenceClassification":
        return BertClassifier(encoder, 3, use_encoder_pooler=False, activation=ACTIVATIONS[kind], seed=seed)
    if task == "ForTokenClassification":
        return BertTokenClassifier(encoder, 5, seed=seed)
    if task == "ForQuestionAnswering":
        return BertSpanLabeler(encoder, seed=seed)
    return BertPretrainerV2(encoder, "gelu", seed=seed)


def batch() -> dict[str, Any]:
    """Three rows, one of them padded as that package pads."""
    ids = np.random.default_rng(5).integers(2, 40, (3, 9), np.int32)
    ids[1, 5:] = PADDING
    return {
        "input_word_ids": ids,
        "input_mask": (ids != PADDING).astype(np.int32),
        "input_type_ids": np.zeros_like(ids),
    }


def logits_of(model: Any) -> list[Any]:
    """The model's logits in the order of that package's outputs."""
    given = batch()
    if isinstance(model, BertPretrainerV2):
        return [model({**given, "masked_lm_positions": np.array([range(9)] * 3)})["mlm_logits"]]
    outputs = model(given)
    if isinstance(outputs, dict):
        return [outputs["logits"]]
    return outputs if isinstance(outputs, list) else [outputs]


def theirs(model: Any) -> list[Any]:
    import torch

    given = batch()
    with torch.no_grad():
        results = model(
            input_ids=torch.tensor(given["input_word_ids"].astype(np.int64)),
            attention_mask=torch.tensor(given["input_mask"].astype(np.int64)),
        )
    return [result.numpy() for result in results.to_tuple()]


def assert_same(ours: list[Any], other: list[Any]) -> None:
    """Equal where there are tokens."""
    real = batch()["input_mask"] == 1
    assert len(ours) == len(other)
    for one, two in zip(ours, other, strict=True):
        per_token = one.shape[:2] == real.shape
        np.testing.assert_allclose(one[real] if per_token else one, two[real] if per_token else two, atol=TOLERANCE)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(tmp_path: Path, kind: str, task: str) -> None:
    model = model_of(kind, task, encoder_of(kind))
    model.save(tmp_path, file_format=f"huggingface:{kind}")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == (kind, [KINDS[kind] + task])
    encoder = SparseMixer.load(tmp_path)
    fresh = model_of(kind, task, encoder_of(kind, seed=8), seed=9)
    fresh.load_weights(tmp_path)
    if kind == "distilbert":
        # The one type has become part of the positions.
        assert_same(logits_of(fresh), logits_of(model))
    else:
        for ours, other in zip(logits_of(fresh), logits_of(model), strict=True):
            np.testing.assert_array_equal(ours, other)
    np.testing.assert_array_equal(encoder(batch())["sequence_output"], fresh.encoder(batch())["sequence_output"])


def test_models_without_a_counterpart_are_refused_by_name(tmp_path: Path) -> None:
    encoder = encoder_of("roberta")
    pooled = SparseMixer(**{**encoder.get_config(), "with_pooler": True})
    for model, kind, message in [
        (model_of("electra", "ForSequenceClassification", encoder), "roberta", "no model for this BertClassifier"),
        (model_of("roberta", "ForSequenceClassification", encoder), "bert", "no model for this BertClassifier"),
        (BertClassifier(pooled, 2), "roberta", "no model for this BertClassifier"),
        (BertPretrainerV2(encoder, "relu"), "roberta", "no model for this BertPretrainerV2"),
        (BertTokenClassifier(encoder, 2), "distilbert", "layer_norm_epsilon is not DistilBERT's"),
        (BertTokenClassifier(encoder_of("electra"), 2), "roberta", "its embeddings have another width"),
        (BertTokenClassifier(pooled, 2), "electra", "it has a pooler"),
        (BertTokenClassifier(encoder, 2), "fnet", "its layers attend"),
        (BertTokenClassifier(encoder, 2), "gpt2", "expected 'huggingface' or one of huggingface:bert"),
    ]:
        with pytest.raises(ValueError, match=f"file_format: .*{message}"):
            model.save(tmp_path / "x", file_format=f"huggingface:{kind}")
    with pytest.raises(ValueError, match="file_format: got 'huggingfaces'"):
        encoder.save(tmp_path / "x", file_format="huggingfaces")
    assert not (tmp_path / "x").exists()
    # A head that the file does not have.
    BertTokenClassifier(encoder, 5).save(tmp_path / "tokens", file_format="huggingface:roberta")
    with pytest.raises(CheckpointError, match=r"do not fit this model's heads: qa_outputs\.weight"):
        BertSpanLabeler(encoder).load_weights(tmp_path / "tokens")


def test_activations_of_the_classifiers_own_layer(tmp_path: Path) -> None:
    encoder = encoder_of("roberta")
    outputs = [
        logits_of(BertClassifier(encoder, 3, use_encoder_pooler=False, activation=name, seed=1))[0]
        for name in ("tanh", "relu", "gelu")
    ]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    assert np.abs(outputs[1] - outputs[2]).max() > 1e-3
    model = BertClassifier(encoder, 3, use_encoder_pooler=False, activation="relu", seed=1)
    model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(logits_of(BertClassifier.load(tmp_path / "model.safetensors"))[0], outputs[1])
    with pytest.raises(ValueError, match="activation: "):
        BertClassifier(encoder, 3, use_encoder_pooler=False, activation="nonsense")
    with pytest.raises(TypeError, match="activation: expected one of the named"):
        BertClassifier(encoder, 3, use_encoder_pooler=False, activation=lambda x: x)
    # Its gradient is that of this function: a small step downhill lowers the loss by what it says.
    labels = np.array([0, 1, 2])
    metrics, gradients = model.loss_and_gradients((batch(), labels), seed=3)
    head = model.heads["sentence_prediction"].all_variables
    slope = sum(float((gradients[variable.key].astype(np.float64) ** 2).sum()) for variable in head)
    step = 1e-3
    for variable in head:
        variable.assign(variable.numpy() - step * gradients[variable.key])
    after, _ = model.loss_and_gradients((batch(), labels), seed=3)
    assert metrics.means()["task_loss"] - after.means()["task_loss"] == pytest.approx(step * slope, rel=0.05)


def require() -> Any:
    for package in ("torch", "transformers"):
        importlib.import_module(package) if REQUIRED else pytest.importorskip(package)
    import transformers

    return transformers


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_package_loads_them_with_equal_logits(tmp_path: Path, kind: str, task: str) -> None:
    package = require()
    model = model_of(kind, task, encoder_of(kind))
    model.save(tmp_path, file_format=f"huggingface:{kind}")
    loaded, about = getattr(package, KINDS[kind] + task).from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    assert_same(logits_of(model), theirs(loaded.eval()))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_packages_own_files_give_its_logits(tmp_path: Path, kind: str, task: str) -> None:
    package = require()
    import torch

    torch.manual_seed(0)
    encoder_of(kind).save(tmp_path / "sizes", file_format=f"huggingface:{kind}")
    config = package.AutoConfig.from_pretrained(tmp_path / "sizes", num_labels=LABELS[task])
    model = getattr(package, KINDS[kind] + task)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        if kind == "roberta":
            # Padding has a row of its own, which stays zero in training.
            model.roberta.embeddings.position_embeddings.weight[PADDING] = 0
    model.save_pretrained(tmp_path / "theirs")
    names = safetensors.numpy.load_file(tmp_path / "theirs" / "model.safetensors")
    assert any("embeddings" in name for name in names)
    ours = model_of(kind, task, SparseMixer.load(tmp_path / "theirs"), seed=7)
    ours.load_weights(tmp_path / "theirs")
    assert_same(logits_of(ours), theirs(model))


@pytest.mark.parametrize("kind", ["bert", *KINDS])
def test_encoders_too(tmp_path: Path, kind: str) -> None:
    package = require()
    encoder = encoder_of("roberta" if kind == "bert" else kind)
    encoder.save(tmp_path, file_format=f"huggingface:{kind}")
    loaded = package.AutoModel.from_pretrained(tmp_path).eval()
    real = batch()["input_mask"] == 1
    np.testing.assert_allclose(encoder(batch())["sequence_output"][real], theirs(loaded)[0][real], atol=TOLERANCE)
