"""Training steps of the reference, `tfm.nlp.networks.SparseMixer`, inside a `tf.function`."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peer_tensorflow import build_encoder, import_tensorflow
from benchmarks.workload import LEARNING_RATE, Workload


class Peer:
    """The same update as `trainer_ours.Peer`: forward, backward, AdamW in one graph."""

    def __init__(
        self,
        workload: Workload,
        threads: int,
        *,
        same_weights: bool = True,
        policy: str = "float32",
        layer: str = "official",
    ) -> None:
        """Build encoder and optimiser; the graph is traced at the first call."""
        self._tf = tf = import_tensorflow(threads)
        import tf_keras

        encoder = build_encoder(workload, policy, same_weights, layer)
        optimizer = tf_keras.optimizers.AdamW(LEARNING_RATE)
        optimizer.build(encoder.trainable_variables)
        target = tf.constant(workload.target())

        def step(inputs: dict[str, Any]) -> Any:
            with tf.GradientTape() as tape:
                sequence = tf.cast(encoder(inputs, training=True)["sequence_output"], tf.float32)
                loss = tf.reduce_mean(tf.square(sequence - target))
                total = tf.add_n([loss, *encoder.losses])
            gradients = tape.gradient(total, encoder.trainable_variables)
            optimizer.apply_gradients(zip(gradients, encoder.trainable_variables, strict=True))
            return loss

        self._step = tf.function(step, autograph=False)

    def __call__(self, inputs: dict[str, np.ndarray]) -> float:
        """Make one update; return the loss before it."""
        return float(self._step({name: self._tf.constant(value) for name, value in inputs.items()}))
