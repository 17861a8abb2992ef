"""TensorFlow's and Keras's own objects as arguments, against what they compute there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow_reference as reference
from encoders import small_encoder, small_inputs
from sparse_mixer import Activation, SparseMixer, activations, initializers

tf, tf_keras = reference.tf, reference.tf_keras


def official(name: str) -> Any:
    from official.modeling import tf_utils

    return tf_utils.get_activation(name)


OBJECTS = {
    "tf_keras gelu": lambda: tf_keras.activations.gelu,
    "tf_keras mish": lambda: tf_keras.activations.mish,
    "tf_keras hard_sigmoid": lambda: tf_keras.activations.hard_sigmoid,
    "tf_keras softmax": lambda: tf_keras.activations.softmax,
    "tf.nn.gelu": lambda: tf.nn.gelu,
    "tf.nn.relu": lambda: tf.nn.relu,
    "tf.nn.relu6": lambda: tf.nn.relu6,
    "tf.nn.silu": lambda: tf.nn.silu,
    "tf.nn.leaky_relu": lambda: tf.nn.leaky_relu,
    "tf.nn.elu": lambda: tf.nn.elu,
    "tf.nn.selu": lambda: tf.nn.selu,
    "tf.tanh": lambda: tf.tanh,
    "tf.identity": lambda: tf.identity,
    "tf.math.exp": lambda: tf.math.exp,
    "LeakyReLU": lambda: tf_keras.layers.LeakyReLU(0.1),
    "ReLU": lambda: tf_keras.layers.ReLU(2.0, 0.1, 0.5),
    "ELU": lambda: tf_keras.layers.ELU(0.7),
    "ThresholdedReLU": lambda: tf_keras.layers.ThresholdedReLU(0.5),
    "Softmax": lambda: tf_keras.layers.Softmax(),
    "Activation": lambda: tf_keras.layers.Activation("softsign"),
    "official gelu": lambda: official("gelu"),
    "official hard_swish": lambda: official("hard_swish"),
    "official simple_swish": lambda: official("simple_swish"),
    "official identity": lambda: official("identity"),
    "official mish": lambda: official("mish"),
    "default lambda": lambda: reference.official_sparse_mixer._approx_gelu,
}


@pytest.mark.parametrize("name", OBJECTS)
def test_activations_are_recognised_and_equal(name: str) -> None:
    function = OBJECTS[name]()
    resolved = activations.resolve(function)
    assert not isinstance(resolved, Activation)
    called = Activation(lambda x: function(tf.constant(x)).numpy())
    # With this seed no token leaves the mixture with values so small that the next norm enlarges their rounding.
    changes: dict[str, Any] = {"initializer": initializers.RandomNormal(stddev=0.7), "seed": 9}
    ours = small_encoder(inner_activation=function, **changes)(small_inputs())
    theirs = small_encoder(inner_activation=called, **changes)(small_inputs())
    np.testing.assert_allclose(ours["sequence_output"], theirs["sequence_output"], rtol=1e-4, atol=2e-5)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"inner_activation": "relu", "mixing_mechanism": "hartley", "initializer": "he_normal", "dtype": "float32"},
        {"embedding_width": 4, "norm_first": True, "moe_layers": []},
    ],
)
def test_their_configs_build_our_encoders(arguments: dict[str, Any]) -> None:
    arguments = {"vocab_size": 20, "num_layers": 2, "max_sequence_length": 8, "hidden_size": 16} | arguments
    if "mixing_mechanism" in arguments:
        arguments["mixing_mechanism"] = reference.mixing_mechanism(arguments["mixing_mechanism"])
    theirs = reference.official_sparse_mixer.SparseMixer(**arguments)
    config = theirs.get_config()
    ours = SparseMixer.from_config(config).get_config()
    own_forms = {"mixing_mechanism", "inner_activation", "moe_layers", "attention_layers"}
    assert list(ours) == list(config)
    assert {k: v for k, v in ours.items() if k not in own_forms} == {
        k: v for k, v in config.items() if k not in own_forms
    }
    assert ours["inner_activation"] == arguments.get("inner_activation", "gelu_tanh")
    assert SparseMixer.from_config(ours).get_config() == ours


@pytest.mark.parametrize(
    "initializer",
    ["truncated_normal", "glorot_uniform", "he_normal", "lecun_uniform", "random_uniform", "random_normal", "ones"],
)
def test_initializer_objects_are_recognised(initializer: str) -> None:
    theirs = tf_keras.initializers.get(initializer)
    ours = initializers.resolve(theirs)
    assert isinstance(ours, initializers.Initializer)
    assert initializers.serialize(ours) == tf_keras.initializers.serialize(theirs)


def test_keras_policies() -> None:
    assert small_encoder(dtype=tf_keras.mixed_precision.Policy("mixed_bfloat16")).dtype == "bfloat16"
    assert small_encoder(dtype=tf.float32).dtype == "float32"


def test_tensors_are_inputs() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    given = {key: tf.constant(value) for key, value in inputs.items()}
    np.testing.assert_array_equal(encoder(given)["pooled_output"], encoder(inputs)["pooled_output"])
    encoder(given, training=tf.constant(True))


def test_keras_embedding_layer_lends_its_variables() -> None:
    layer = reference.embedding_layer(50, 16)
    layer(np.zeros((1, 8), np.int32))
    encoder = small_encoder(embedding_layer=layer)
    assert encoder.weights[0] is layer.weights[0]
    table = np.full((50, 16), 0.5, np.float32)
    encoder.set_weights([table, *encoder.get_weights()[1:]])
    np.testing.assert_array_equal(layer.embeddings.numpy(), table)
    assert encoder(small_inputs())["pooled_output"].shape == (2, 16)
