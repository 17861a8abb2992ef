"""Weights of the encoder as Keras has them: names, order, reading, assigning, freezing."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from encoders import WIDTH, assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import SparseMixer

MANIFESTS = pathlib.Path(__file__).parent / "golden" / "manifests"


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.json")), ids=lambda path: path.stem)
def test_weight_names_shapes_and_order(path: pathlib.Path) -> None:
    manifest = json.loads(path.read_text())
    config = dict(manifest["config"])
    config.pop("inner_activation", None)
    encoder = SparseMixer(**config, initializer="zeros")
    expected = [(weight["name"], tuple(weight["shape"])) for weight in manifest["weights"]]
    if "word_embeddings" in path.stem:  # TensorFlow has no word table before ids are used once.
        expected.insert(0, ("word_embeddings/embeddings", (config["vocab_size"], config["hidden_size"])))
    else:
        assert encoder.count_params() == manifest["num_parameters"]
    assert [(weight.key, weight.shape) for weight in encoder.weights] == expected
    assert [weight.name for weight in encoder.weights] == [f"{encoder.name}/{key}:0" for key, _ in expected]


def test_default_names_count_up() -> None:
    first, second = small_encoder().name, small_encoder().name
    assert first.startswith("sparse_mixer")
    assert second.startswith("sparse_mixer_")
    assert first != second
    assert small_encoder(name="mine").weights[0].name == "mine/word_embeddings/embeddings:0"


def test_weights_carry_over() -> None:
    source, target = small_encoder(seed=1), small_encoder(seed=2)
    target.set_weights([weight.astype(np.float64) for weight in source.get_weights()])
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)
    assert_same_outputs(source(small_inputs()), target(small_inputs()))


def test_get_weights_returns_copies() -> None:
    encoder = small_encoder()
    before = encoder(small_inputs())
    for weight in encoder.get_weights():
        weight[...] = 9
    np.asarray(encoder.weights[0])[...] = 9
    assert_same_outputs(encoder(small_inputs()), before)


def test_one_variable_can_be_assigned() -> None:
    encoder = small_encoder()
    table = encoder.get_embedding_table()
    table.assign(np.ones(table.shape))
    assert (encoder.get_weights()[0] == 1).all()
    assert (table.numpy() == 1).all()
    assert encoder.get_embedding_layer()([[3, 4]]).shape == (1, 2, WIDTH)


def test_frozen_layers_move_to_the_end() -> None:
    encoder = small_encoder()
    names = [weight.name for weight in encoder.weights]
    encoder.transformer_layers[1].trainable = False
    frozen = [weight.name for weight in encoder.transformer_layers[1].weights]
    assert [w.name for w in encoder.weights] == [n for n in names if n not in frozen] + frozen
    assert [w.name for w in encoder.non_trainable_weights] == frozen
    encoder.set_weights(encoder.get_weights())
    encoder.trainable = False
    assert encoder.trainable_weights == []
    assert [w.name for w in encoder.weights] == names


def test_layers_read_and_write_their_own_weights() -> None:
    encoder = small_encoder()
    pooler = encoder.pooler_layer
    assert pooler.name == "pooler_transform"
    pooler.set_weights([np.zeros((WIDTH, WIDTH)), np.full(WIDTH, 0.5)])
    np.testing.assert_allclose(encoder(small_inputs())["pooled_output"], np.tanh(0.5), rtol=1e-6)
    kinds = [(layer.name, layer.mixing, layer.is_moe) for layer in encoder.transformer_layers]
    assert kinds == [
        ("transformer/layer_0", "linear", False),
        ("transformer/layer_1", "linear", True),
        ("transformer/layer_2", "attention", False),
    ]
    assert sum(layer.count_params() for layer in encoder.layers) == encoder.count_params()


def test_own_embedding_layer() -> None:
    plain = small_encoder()
    table = plain.get_embedding_table().numpy()
    called_with = []

    def lookup(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        called_with.append(ids)
        return table[ids]

    encoder = small_encoder(embedding_layer=lookup)
    assert len(encoder.weights) == len(plain.weights) - 1
    encoder.set_weights(plain.get_weights()[1:])
    assert_same_outputs(encoder(small_inputs()), plain(small_inputs()))
    np.testing.assert_array_equal(called_with[0], small_inputs()["input_word_ids"])
    assert encoder.get_embedding_layer() is lookup


def test_shared_embedding_layer_lends_its_weights() -> None:
    first = small_encoder(seed=1)
    second = small_encoder(seed=2, embedding_layer=first.get_embedding_layer())
    assert second.weights[0] is first.weights[0]
    assert second.get_embedding_table() is first.get_embedding_table()
    second.set_weights(first.get_weights())
    assert_same_outputs(first(small_inputs()), second(small_inputs()))
