"""The tf_keras layer gives TensorFlow's numbers inside the Model Garden's models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import keras_cases
import numpy as np
import pytest
import tensorflow_reference as reference
from sparse_mixer import networks
from sparse_mixer.keras import layer_class

tf, tf_keras = reference.tf, reference.tf_keras

CASES = keras_cases.cases(40)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """TensorFlow warns about its own affairs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def twins(number: int, head: str) -> tuple[Any, Any, dict[str, Any]]:
    """A model around TensorFlow's class, the same around our layer with equal weights, and inputs."""
    draw = keras_cases.draw(number, CASES[number])
    theirs = keras_cases.model(head, draw.reference.layer)
    ours = keras_cases.model(head, draw.ours().as_keras_layer("tf_keras"))
    inputs = keras_cases.inputs_of(head, draw.inputs, np.random.default_rng(number))
    theirs(inputs), ours(inputs)
    ours.set_weights(theirs.get_weights())
    return theirs, ours, inputs


def flat(outputs: Any) -> list[Any]:
    return [np.asarray(output) for output in tf.nest.flatten(outputs)]


@pytest.mark.parametrize("number", range(40))
def test_outputs_and_gradients_are_those_of_tensorflow(number: int) -> None:
    head, training = keras_cases.HEADS[number % 4], CASES[number]["training"]
    theirs, ours, inputs = twins(number, head)
    gradients = []
    rng = np.random.default_rng(number)
    cotangents: list[Any] = []
    for model in (theirs, ours):
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=training)
            if not cotangents:
                cotangents = [rng.standard_normal(output.shape).astype(np.float32) for output in flat(outputs)]
            terms = zip(tf.nest.flatten(outputs), cotangents, strict=True)
            loss = tf.add_n([tf.reduce_sum(output * d) for output, d in terms]) + sum(model.losses)
        gradients.append((flat(outputs), tape.gradient(loss, model.trainable_weights)))
    (expected, expected_gradients), (got, got_gradients) = gradients
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * max(1.0, np.abs(a).max()))
    # The key's bias has a gradient of zero, and rounding noise.
    largest = max(np.abs(tf.convert_to_tensor(g)).max() for g in expected_gradients if g is not None)
    for weight, a, b in zip(theirs.trainable_weights, expected_gradients, got_gradients, strict=True):
        assert type(a) is type(b), weight.name
        if a is not None:
            a, b = np.asarray(tf.convert_to_tensor(a)), np.asarray(tf.convert_to_tensor(b))
            np.testing.assert_allclose(
                b, a, rtol=0, atol=1e-4 * max(np.abs(a).max(), 1e-3 * largest), err_msg=weight.name
            )


@pytest.mark.parametrize("head", ["classifier", "token classifier"])
def test_five_epochs_of_adamw_give_the_losses_of_tensorflow(head: str) -> None:
    arguments = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_layers": 3,
        "moe_layers": (1,),
        "attention_layers": (2,),
        "num_experts": 4,
        "num_attention_heads": 2,
        "max_sequence_length": 8,
        "inner_dim": 32,
        "output_dropout": 0.0,
        "attention_dropout": 0.0,
        "type_vocab_size": 2,
    }
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 60, (16, 8)).astype(np.int32)
    inputs = {"input_word_ids": ids, "input_mask": np.ones_like(ids), "input_type_ids": ids % 2}
    labels = ids[:, 0] % 3 if head == "classifier" else ids % 3
    their_network = reference.official_sparse_mixer.SparseMixer(**arguments)
    theirs = keras_cases.model(head, their_network)
    ours = keras_cases.model(head, layer_class("tf_keras")(**arguments))
    # Larger than the default weights, for outputs that depend on the inputs.
    weights = [w + 0.1 * rng.standard_normal(w.shape).astype(np.float32) for w in theirs.get_weights()]
    losses = []
    for model in (theirs, ours):
        model.set_weights(weights)
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf_keras.optimizers.AdamW(1e-3, weight_decay=0.01), loss, metrics=["accuracy"])
        history = model.fit(inputs, labels, batch_size=4, epochs=5, shuffle=False, verbose=0).history
        losses.append(history)
    assert losses[0].keys() == losses[1].keys()
    np.testing.assert_allclose(losses[1]["loss"], losses[0]["loss"], rtol=0, atol=1e-5)
    assert losses[1]["loss"][-1] < losses[1]["loss"][0] - 0.01
    for a, b in zip(theirs.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4)
    assert isinstance(their_network, tf_keras.layers.Layer)


def test_layer_and_encoder_turn_into_each_other() -> None:
    encoder = networks.SparseMixer(
        30, hidden_size=16, num_layers=2, inner_dim=32, max_sequence_length=8, num_attention_heads=2, seed=1
    )
    layer = encoder.as_keras_layer("tf_keras", name="mixer")
    assert layer.name == "mixer"
    assert [w.name for w in layer.weights] == [f"mixer/{v.key}:0" for v in encoder.weights]
    layer.set_weights([2 * w for w in layer.get_weights()])
    back = layer.to_encoder()
    for before, after in zip(encoder.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(after, 2 * before)
    theirs = back.to_tensorflow()
    ids = np.zeros((2, 8), np.int32)
    inputs = {"input_word_ids": ids, "input_mask": ids + 1, "input_type_ids": ids}
    expected = theirs({name: tf.constant(array) for name, array in inputs.items()})["sequence_output"]
    np.testing.assert_allclose(back(inputs)["sequence_output"], expected, atol=1e-5)
