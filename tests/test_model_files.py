"""Models in files: written, read, and refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import WIDTH, small_encoder, small_inputs
from sparse_mixer import checkpoints, models
from sparse_mixer.checkpoints import encoder_files


def every_model() -> list[models.Model]:
    heads = [
        models.ClassificationHead(WIDTH, 2, dropout_rate=0.2, name="order"),
        models.ClassificationHead(0, 3, use_encoder_pooler=True, name="topic"),
    ]
    return [
        models.BertClassifier(small_encoder(), 3, dropout_rate=0.25, head_name="intent", seed=3),
        models.BertClassifier(small_encoder(semantics="paper", pad_id=0), 1, use_encoder_pooler=False, seed=3),
        models.BertTokenClassifier(small_encoder(dtype="bfloat16"), 4, dropout_rate=0.5, seed=3),
        models.BertSpanLabeler(small_encoder(), seed=3),
        models.BertPretrainerV2(small_encoder(), "gelu_tanh", classification_heads=heads, name="mine", seed=3),
        models.BertPretrainerV2(small_encoder(), seed=3),
    ]


def outputs_of(model: models.Model, **arguments: Any) -> Any:
    given: dict[str, Any] = small_inputs()
    if isinstance(model, models.BertPretrainerV2):
        given["masked_lm_positions"] = np.array([[0, 2], [1, 5]])
    return model(given, **arguments)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("number", range(6))
def test_models_come_back_from_files(number: int, tmp_path: Path) -> None:
    model = every_model()[number]
    path = tmp_path / "model.safetensors"
    model.save(path)
    for kind in (type(model), models.Model):
        loaded = kind.load(path)
        assert type(loaded) is type(model)
        assert (loaded.name, loaded.encoder.name) == (model.name, model.encoder.name)
        assert loaded.get_config() == model.get_config()
        assert loaded.encoder.get_config() == model.encoder.get_config()
        assert [weight.name for weight in loaded.weights] == [weight.name for weight in model.weights]
        assert_same(outputs_of(loaded), outputs_of(model))
        assert_same(outputs_of(loaded, training=True, seed=4), outputs_of(model, training=True, seed=4))
    encoder = sparse_mixer.SparseMixer.load(path)
    assert_same(encoder(small_inputs()), model.encoder(small_inputs()))
    assert models.Model.load(path, dtype="bfloat16", num_threads=1).encoder.dtype == "bfloat16"


@pytest.mark.parametrize("name", ["model.safetensors", "model.npz"])
def test_weights_are_read_into_models(name: str, tmp_path: Path) -> None:
    for model in every_model():
        model.save(tmp_path / name)
        other = type(model).from_config(small_encoder(**model.encoder.get_config() | {"seed": 1}), model.get_config())
        other.load_weights(tmp_path / name)
        assert_same(outputs_of(other), outputs_of(model))
        other.set_weights([weight + 1 for weight in model.get_weights()])
        of_encoder = {f"encoder/{weight.key}": weight.numpy() for weight in model.encoder.weights}
        other.load_weights(of_encoder | {w.key: w.numpy() for head in model.heads.values() for w in head.weights})
        assert_same(outputs_of(other), outputs_of(model))


def test_files_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    models.BertClassifier(small_encoder(), 3, seed=0).save(path)
    cases: list[models.Model] = [
        models.BertClassifier(small_encoder(), 4, seed=0),
        models.BertSpanLabeler(small_encoder(), seed=0),
        models.BertClassifier(small_encoder(inner_dim=16), 3, seed=0),
    ]
    for model in cases:
        before = model.get_weights()
        with pytest.raises(checkpoints.CheckpointError, match=r"model\.safetensors: the weights do not fit"):
            model.load_weights(path)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="holds a BertClassifier, not a BertSpanLabeler"):
        models.BertSpanLabeler.load(path)
    with pytest.raises(ValueError, match=r"path: .*x\.keras.*use \.safetensors, \.npz or \.weights\.h5"):
        cases[0].save(tmp_path / "x.keras")
    with pytest.raises(ValueError, match=r"file_format: models are written as .*, got 'keras'"):
        cases[0].save(tmp_path / "x", file_format="keras")
    pytest.importorskip("h5py")
    with pytest.raises(ValueError, match="TensorFlow's encoder has no "):
        models.BertClassifier(small_encoder(semantics="paper", pad_id=0), 3).save(tmp_path / "x.weights.h5")
    small_encoder().save(tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match="does not say which model it holds"):
        models.BertClassifier.load(tmp_path / "encoder.safetensors")


@pytest.mark.parametrize(
    "about",
    [
        "{",
        "[" * 100000,
        "[]",
        json.dumps({"class": "Model", "config": {}}),
        json.dumps({"class": "BertClassifier", "config": {"num_classes": "3"}}),
        json.dumps({"class": "BertClassifier", "config": {"num_classes": 3, "initializer_": 1}}),
        json.dumps({"class": "BertClassifier", "config": {"num_classes": 4}}),
        json.dumps({"class": "BertPretrainerV2", "config": {}}),
    ],
)
def test_damaged_configurations_are_refused(about: str, tmp_path: Path) -> None:
    model, path = models.BertClassifier(small_encoder(), 3, seed=0), tmp_path / "model.safetensors"
    metadata = encoder_files.metadata(model.encoder) | {"model": about}
    sparse_mixer._native.save([("encoder/", model.encoder.core), ("", model._head.core)], path, "safetensors", metadata)
    with pytest.raises(checkpoints.CheckpointError, match=r"model\.safetensors: "):
        models.Model.load(path)
