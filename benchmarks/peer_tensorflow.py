"""The reference: `tfm.nlp.networks.SparseMixer`, or its `BertEncoder`, inside a `tf.function`."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from benchmarks.bert_load import Bert, tensorflow_bert
from benchmarks.workload import Workload, make_weights


def import_tensorflow(threads: int) -> Any:
    """Import TensorFlow quietly, on the Keras 2 code base that Model Garden needs, with `threads` threads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def build_encoder(
    workload: Workload, policy: str = "float32", same_weights: bool = True, layer: str = "official"
) -> Any:
    """Return the Keras encoder, built; with the weights that all peers share, or those it draws itself.

    Args:
        workload: Its sizes.
        policy: Keras's policy.
        same_weights: Whether it gets the weights of all peers.
        layer: ``"official"`` for TensorFlow's class, ``"sparse_mixer"`` for our layer.
    """
    import tf_keras

    tf_keras.mixed_precision.set_global_policy(policy)
    if isinstance(workload, Bert):
        return tensorflow_bert(workload)
    arguments = workload.constructor_arguments()
    if layer == "sparse_mixer":
        from sparse_mixer.keras import layer_class

        encoder = layer_class("tf_keras")(**arguments)
    else:
        from official.nlp.modeling import layers, networks

        arguments["mixing_mechanism"] = layers.MixingMechanism(workload.mixing_mechanism)
        encoder = networks.SparseMixer(**arguments)
    encoder(workload.inputs(max(1, math.ceil(workload.examples_per_group))))
    if same_weights:
        encoder.set_weights(make_weights([(w.name, tuple(w.shape)) for w in encoder.weights]))
    return encoder


class Peer:
    """Calls the encoder through a concrete function: graph mode, optionally compiled by XLA."""

    def __init__(
        self,
        workload: Workload,
        threads: int,
        *,
        same_weights: bool = True,
        jit: bool = False,
        policy: str = "float32",
        layer: str = "official",
    ) -> None:
        """Build the encoder and trace it for any batch size (XLA: for each batch size at its first call)."""
        self._tf = tf = import_tensorflow(threads)
        encoder = build_encoder(workload, policy, same_weights, layer)

        def forward(inputs: dict[str, Any]) -> tuple[Any, Any]:
            outputs = encoder(inputs, training=False)
            return outputs["sequence_output"], outputs["pooled_output"]

        self._forward = tf.function(forward, jit_compile=jit, autograph=False, reduce_retracing=False)

    def __call__(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return `sequence_output` and `pooled_output` as float32 arrays."""
        tensors = {name: self._tf.constant(value) for name, value in inputs.items()}
        sequence, pooled = self._forward(tensors)
        return np.asarray(sequence.numpy(), np.float32), np.asarray(pooled.numpy(), np.float32)


def export_saved_model(workload: Workload, directory: str, threads: int) -> None:
    """Write the encoder as a SavedModel of static sequence length and free batch size to `directory`."""
    tf = import_tensorflow(threads)
    encoder = build_encoder(workload)

    names = tuple(workload.inputs(1))
    signature = [tf.TensorSpec([None, workload.max_sequence_length], tf.int32, name=name) for name in names]

    @tf.function(input_signature=signature, autograph=False)
    def forward(*tensors: Any) -> dict[str, Any]:
        outputs = encoder(dict(zip(names, tensors, strict=True)), training=False)
        return {name: outputs[name] for name in ("sequence_output", "pooled_output")}

    module = tf.Module()
    module.encoder = encoder
    module.forward = forward
    tf.saved_model.save(module, directory, signatures=forward)
