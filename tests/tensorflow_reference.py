"""The real `SparseMixer` of the TensorFlow Model Garden, as the parity tests call it.

Without TensorFlow the tests that import this module are skipped, except when SPARSE_MIXER_REQUIRE_TF=1 (as in
`make test`): there a missing TensorFlow is an error.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

Array = np.ndarray[Any, Any]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow warns about its own affairs; our suite turns warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


try:
    with _quiet():
        import tensorflow as tf
        import tf_keras
        from official.nlp.modeling.layers import MixingMechanism
        from official.nlp.modeling.networks import sparse_mixer as official_sparse_mixer
except ImportError as error:
    if os.environ.get("SPARSE_MIXER_REQUIRE_TF") == "1":
        raise
    pytest.skip(f"needs TensorFlow and tf-models-official: {error}", allow_module_level=True)

# The models are tiny: a second thread costs more than it brings.
with contextlib.suppress(RuntimeError):  # raised when something has computed with TensorFlow before
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


class TensorFlowEncoder:
    """The reference encoder with its weights created, NumPy in and out."""

    def __init__(self, arguments: Mapping[str, Any], inputs: Mapping[str, Array]) -> None:
        """Builds the encoder; the reference creates its weights at the first call, hence `inputs`."""
        with _quiet():
            self.layer = official_sparse_mixer.SparseMixer(**arguments)
            self.layer(_tensors(inputs))

    @property
    def weight_names(self) -> list[str]:
        """Names without the encoder's own and without `:0`, Keras order."""
        return [weight.name.split("/", 1)[1].removesuffix(":0") for weight in self.layer.weights]

    @property
    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Shapes in Keras order."""
        return [tuple(weight.shape) for weight in self.layer.weights]

    def __call__(self, inputs: Mapping[str, Array], *, training: bool = False) -> dict[str, Array]:
        """All outputs under the names of the golden files; metrics are those of this call alone."""
        for metric in self.layer.metrics:
            metric.reset_state()
        with _quiet():
            outputs = self.layer(_tensors(inputs), training=training)
        return named_outputs(outputs)

    def gradients(
        self, inputs: Mapping[str, Array], d_outputs: Mapping[str, Array], *, training: bool = False
    ) -> dict[str, Array]:
        """Gradients of `sum(output * d_output)`, by weight name and by name of a float input.

        Outputs go by the names of the golden files. The losses are constant zero here and have no part in it.
        """
        tensors = _tensors(inputs)
        sources = {name: x for name, x in tensors.items() if name in ("input_word_embeddings", "dense_inputs")}
        with _quiet(), tf.GradientTape() as tape:
            for tensor in sources.values():
                tape.watch(tensor)
            outputs = self.layer(tensors, training=training)
            outputs |= {f"encoder_output_{i:02d}": output for i, output in enumerate(outputs["encoder_outputs"])}
            loss = sum((tf.reduce_sum(outputs[name] * d) for name, d in d_outputs.items()), 0.0)
        sources = dict(zip(self.weight_names, self.layer.weights, strict=True)) | sources
        with _quiet():
            gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
        return {name: tf.convert_to_tensor(gradient).numpy() for name, gradient in gradients.items()}

    def metrics(self) -> tuple[list[str], Array]:
        """Names and values of the metrics since the last call."""
        metrics = self.layer.metrics
        return [m.name for m in metrics], np.array([float(m.result()) for m in metrics])

    def losses(self) -> Array:
        """One value per MoE layer."""
        return np.array([float(loss) for loss in self.layer.losses])


def named_outputs(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Flattens an output dictionary to the names that golden files use."""
    named = {key: np.asarray(outputs[key]) for key in ("sequence_output", "pooled_output")}
    for layer, output in enumerate(outputs["encoder_outputs"]):
        named[f"encoder_output_{layer:02d}"] = np.asarray(output)
    return named


def mixing_mechanism(name: str) -> Any:
    """TensorFlow's enum member."""
    return MixingMechanism(name)


def activation(name: str) -> Any:
    """The Keras function of that name."""
    return tf_keras.activations.get(name)


def initializer(identifier: Any) -> Any:
    """The Keras initialiser object."""
    return tf_keras.initializers.get(identifier)


def embedding_layer(vocab_size: int, width: int) -> Any:
    """A Keras layer to be used as `embedding_layer`."""
    return tf_keras.layers.Embedding(vocab_size, width, name="own_embeddings")


def _tensors(inputs: Mapping[str, Array]) -> dict[str, Any]:
    return {name: tf.constant(value) for name, value in inputs.items()}
