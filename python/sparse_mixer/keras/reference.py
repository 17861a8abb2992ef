"""TensorFlow's own class with an encoder's weights, for what a layer of this package cannot do, such as SavedModels."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np

from sparse_mixer._core.encoder import Encoder
from sparse_mixer.activations import Activation

# Arguments of ours that change neither what is computed nor the weights.
_HARMLESS = frozenset({"dtype", "seed"})


def build(encoder: Encoder, name: str | None = None) -> Any:
    """``tfm.nlp.networks.SparseMixer`` with the arguments and weights of `encoder`.

    Args:
        encoder: The encoder.
        name: The layer's name; None for Keras's choice.

    Raises:
        ImportError: tf-models-official is not installed.
        ValueError: TensorFlow's class lacks something that the encoder uses.
    """
    try:
        import tf_keras
        from official.nlp.modeling import layers, networks
    except ImportError as error:
        raise ImportError(
            "to_tensorflow needs TensorFlow's Model Garden: pip install tf-models-official tf-keras"
        ) from error
    config = encoder.arguments.keras_config()
    known = set(inspect.signature(networks.SparseMixer.__init__).parameters)
    foreign = sorted(set(config) - known - _HARMLESS)
    if encoder.arguments.output_range is not None and encoder.arguments.semantics != "keras_strict":
        foreign.append("output_range")
    if foreign and foreign != ["semantics"]:
        raise ValueError(f"to_tensorflow: TensorFlow's class has nothing like {', '.join(foreign)}")
    if encoder.arguments.semantics == "paper":
        raise ValueError("to_tensorflow: TensorFlow's class does not compute what semantics='paper' does")
    arguments = {key: value for key, value in config.items() if key in known}
    arguments["mixing_mechanism"] = layers.MixingMechanism(config["mixing_mechanism"])
    arguments["initializer"] = tf_keras.initializers.get(config["initializer"])
    arguments["inner_activation"] = _activation(config["inner_activation"], tf_keras)
    if config["embedding_width"] == config["hidden_size"]:
        arguments["embedding_width"] = None
    layer = networks.SparseMixer(**arguments, **({} if name is None else {"name": name}))
    # Its weights appear with its first call.
    layer(_example(encoder))
    layer.set_weights(encoder.get_weights())
    return layer


def _activation(form: Any, tf_keras: Any) -> Any:
    if isinstance(form, Activation):
        raise ValueError("to_tensorflow: inner_activation is a function of numpy arrays, which TensorFlow cannot use")
    if form == "gelu_tanh":
        return lambda x: tf_keras.activations.gelu(x, approximate=True)
    if isinstance(form, str):
        return tf_keras.activations.get(form)
    parameters = {key: value for key, value in form.items() if key != "name"}
    function = getattr(tf_keras.activations, form["name"])
    return lambda x: function(x, **parameters)


def _example(encoder: Encoder) -> dict[str, Any]:
    """The smallest batch that the encoder's groups divide."""
    arguments = encoder.arguments
    length = arguments.max_sequence_length
    group = max(1, int(length * arguments.group_examples()))
    batch = next(
        count for count in itertools.count(1) if count * length % group == 0 and count >= arguments.group_examples()
    )
    zeros = np.zeros((batch, length), np.int32)
    return {"input_word_ids": zeros, "input_mask": zeros + 1, "input_type_ids": zeros}
