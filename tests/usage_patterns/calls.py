"""Calling, differentiating and looking at the encoder by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tests.usage_patterns.sizes import ARGUMENTS, LENGTH, VOCABULARY, batch, fill


def made(make: Any, **changes: Any) -> Any:
    """An encoder with weights, the same whatever makes it."""
    encoder = make(**{**ARGUMENTS, **changes})
    encoder(tensors())
    fill(encoder.weights)
    return encoder


def tensors(size: int = 8) -> Any:
    return {name: tf.constant(array) for name, array in batch(size).items()}


def call_eagerly(make: Any) -> Any:
    return made(make)(tensors())


def call_with_training_flag(make: Any) -> Any:
    return made(make, train_capacity_factor=0.5)(tensors(), training=True)


def call_with_numpy_arrays(make: Any) -> Any:
    return made(make)(batch())["sequence_output"]


def call_with_extra_keys(make: Any) -> Any:
    return made(make)({**tensors(), "labels": tf.zeros((8,))})["pooled_output"]


def call_with_word_embeddings(make: Any) -> Any:
    encoder, inputs = made(make), tensors()
    inputs["input_word_embeddings"] = tf.gather(encoder.get_embedding_table(), inputs.pop("input_word_ids"))
    return encoder(inputs)["sequence_output"]


def call_with_dense_inputs(make: Any) -> Any:
    encoder, inputs = made(make, with_dense_inputs=True), tensors()
    short = {name: tensor[:, :6] for name, tensor in inputs.items()}
    dense = {"dense_inputs": tf.ones((8, 2, 16)), "dense_mask": tf.ones((8, 2), tf.int32)}
    dense["dense_type_ids"] = tf.zeros((8, 2), tf.int32)
    return [encoder({**short, **dense})["sequence_output"], sorted(encoder.inputs)]


def gradient_of_dense_inputs(make: Any) -> Any:
    encoder, inputs = made(make), tensors()
    words = tf.gather(encoder.get_embedding_table(), inputs.pop("input_word_ids"))
    with tf.GradientTape() as tape:
        tape.watch(words)
        loss = tf.reduce_sum(encoder({**inputs, "input_word_embeddings": words})["pooled_output"])
    return tape.gradient(loss, words)


def call_in_tf_function(make: Any) -> Any:
    encoder = made(make)
    return tf.function(lambda x: encoder(x)["sequence_output"])(tensors())


def call_with_unknown_batch_size(make: Any) -> Any:
    encoder = made(make)
    spec = {name: tf.TensorSpec((None, LENGTH), tf.int32) for name in batch()}
    encode = tf.function(lambda x: encoder(x)["pooled_output"], input_signature=[spec])
    return [encode(tensors(2)), encode(tensors(5))]


def call_with_flag_as_tensor(make: Any) -> Any:
    encoder = made(make)
    return encoder(tensors(), training=tf.constant(False))["pooled_output"]


def gradient_tape(make: Any) -> Any:
    encoder = made(make)
    with tf.GradientTape() as tape:
        outputs = encoder(tensors(), training=True)
        loss = tf.reduce_sum(outputs["sequence_output"] ** 2) + tf.reduce_sum(outputs["pooled_output"])
    return [tf.convert_to_tensor(g) for g in tape.gradient(loss, encoder.trainable_variables)]


def gradient_at_inference(make: Any) -> Any:
    encoder = made(make)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder(tensors())["pooled_output"] ** 2)
    return tape.gradient(loss, encoder.trainable_variables[3:5])


def gradient_twice_from_persistent_tape(make: Any) -> Any:
    encoder = made(make)
    with tf.GradientTape(persistent=True) as tape:
        outputs = encoder(tensors(), training=True)
        first = tf.reduce_sum(outputs["encoder_outputs"][0] ** 2)
        second = tf.reduce_sum(outputs["pooled_output"] ** 2)
    return [tape.gradient(loss, encoder.trainable_variables[1:4]) for loss in (first, second)]


def unused_pooler_has_no_gradient(make: Any) -> Any:
    encoder = made(make)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder(tensors(), training=True)["sequence_output"])
    return [g is None for g in tape.gradient(loss, encoder.pooler_layer.trainable_variables)]


def gradient_in_tf_function(make: Any) -> Any:
    encoder = made(make)

    @tf.function
    def step(inputs: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(encoder(inputs, training=True)["pooled_output"] ** 2)
        return tape.gradient(loss, encoder.trainable_variables[1:])

    return step(tensors())


def tape_around_tf_function(make: Any) -> Any:
    encoder = made(make)
    encode = tf.function(lambda x: encoder(x, training=True)["pooled_output"])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encode(tensors()) ** 2)
    return tape.gradient(loss, encoder.trainable_variables[1:])


def clipped_gradients(make: Any) -> Any:
    encoder = made(make)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder(tensors(), training=True)["pooled_output"] ** 2)
    clipped, norm = tf.clip_by_global_norm(tape.gradient(loss, encoder.trainable_variables), 0.1)
    return [norm, *(tf.convert_to_tensor(g) for g in clipped)]


def custom_training_loop(make: Any) -> Any:
    encoder, optimizer = made(make), tf_keras.optimizers.Adam(1e-3)
    losses = []
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(encoder(tensors(), training=True)["pooled_output"] ** 2) + sum(encoder.losses)
        gradients = tape.gradient(loss, encoder.trainable_variables)
        optimizer.apply_gradients(zip(gradients, encoder.trainable_variables, strict=True))
        losses.append(loss)
    return losses


def accumulated_gradients(make: Any) -> Any:
    encoder, total = made(make), None
    for size in (2, 4):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(encoder(tensors(size), training=True)["pooled_output"])
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, encoder.trainable_variables)]
        total = gradients if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
    return total


def losses_and_metrics(make: Any) -> Any:
    encoder = made(make)
    for metric in encoder.metrics:
        metric.reset_state()
    encoder(tensors())
    return [encoder.losses, [m.name for m in encoder.metrics], [m.result() for m in encoder.metrics]]


def no_metrics_if_not_exported(make: Any) -> Any:
    encoder = made(make, export_metrics=False)
    return [len(encoder.metrics), len(encoder.losses)]


def weights_in_and_out(make: Any) -> Any:
    encoder = made(make)
    encoder.set_weights([2 * w for w in encoder.get_weights()])
    return [encoder.get_weights(), encoder.count_params(), [w.name.split("/", 1)[1] for w in encoder.weights]]


def assigned_variable_is_used(make: Any) -> Any:
    encoder = made(make)
    before = encoder(tensors())["pooled_output"]
    encoder.weights[5].assign_add(tf.ones_like(encoder.weights[5]))
    return [before, encoder(tensors())["pooled_output"]]


def frozen_encoder(make: Any) -> Any:
    encoder = made(make)
    encoder.trainable = False
    return [len(encoder.trainable_weights), len(encoder.non_trainable_weights), encoder(tensors())["pooled_output"]]


def frozen_block(make: Any) -> Any:
    encoder = made(make)
    encoder.transformer_layers[0].trainable = False
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder(tensors(), training=True)["pooled_output"])
    gradients = tape.gradient(loss, encoder.trainable_weights)
    return [len(encoder.trainable_weights), [tf.convert_to_tensor(g) for g in gradients]]


def tied_table(make: Any) -> Any:
    encoder = made(make)
    with tf.GradientTape() as tape:
        hidden = encoder(tensors(), training=True)["sequence_output"]
        logits = tf.matmul(hidden, encoder.get_embedding_table(), transpose_b=True)
        loss = tf.reduce_mean(logits**2)
    return tf.convert_to_tensor(tape.gradient(loss, encoder.get_embedding_table()))


def embedding_layer_of_another(make: Any) -> Any:
    encoder = made(make)
    return [encoder.get_embedding_layer()(tensors()["input_word_ids"]), encoder.get_embedding_table().shape.as_list()]


def own_embedding_layer(make: Any) -> Any:
    table = tf_keras.layers.Embedding(VOCABULARY, 16, name="own")
    encoder = made(make, embedding_layer=table)
    return [encoder(tensors())["sequence_output"], encoder.weights[0].shape.as_list()]


def narrow_embeddings(make: Any) -> Any:
    return made(make, embedding_width=12)(tensors())["sequence_output"]


def fourier_mixing(make: Any) -> Any:
    from official.nlp.modeling.layers import MixingMechanism

    return made(make, mixing_mechanism=MixingMechanism.FOURIER)(tensors())["sequence_output"]


def pooler_by_itself(make: Any) -> Any:
    encoder = made(make)
    return encoder.pooler_layer(encoder(tensors())["sequence_output"][:, 0, :])


def config_has_the_sizes(make: Any) -> Any:
    config = made(make).get_config()
    return [config[name] for name in ("vocab_size", "hidden_size", "num_layers", "inner_dim", "embedding_width")]


def wrong_length_is_refused(make: Any) -> Any:
    encoder = made(make)
    try:
        tf.function(lambda x: encoder(x)["pooled_output"])({k: v[:, :7] for k, v in tensors().items()})
    except ValueError:
        return "refused"
    return "taken"


def unknown_word_is_refused(make: Any) -> Any:
    encoder, inputs = made(make), tensors()
    inputs["input_word_ids"] += VOCABULARY
    try:
        encoder(inputs)
    except tf.errors.InvalidArgumentError as error:
        return "is not in [0, 40)" in str(error)
    return "taken"


def list_of_inputs_is_refused(make: Any) -> Any:
    try:
        made(make)(list(tensors().values()))
    except ValueError as error:
        return "Unexpected inputs type" in str(error)
    return "taken"


def same_seed_same_dropout(make: Any) -> Any:
    encoder = made(make, output_dropout=0.5)
    results = []
    for _ in range(2):
        tf_keras.utils.set_random_seed(3)
        results.append(np.asarray(encoder(tensors(), training=True)["pooled_output"]))
    other = np.asarray(encoder(tensors(), training=True)["pooled_output"])
    return [bool((results[0] == results[1]).all()), bool((results[0] == other).all())]


def same_seed_same_weights(make: Any) -> Any:
    tables = []
    for _ in range(2):
        tf_keras.utils.set_random_seed(3)
        encoder = make(**ARGUMENTS)
        encoder(tensors())
        tables.append(encoder.get_weights()[0])
    return bool((tables[0] == tables[1]).all())


def checkpoint_of_the_encoder(make: Any, folder: Any) -> Any:
    first, second = made(make), make(**ARGUMENTS)
    second(tensors())
    path = tf.train.Checkpoint(encoder=first).save(str(folder / "ckpt"))
    tf.train.Checkpoint(encoder=second).restore(path).assert_existing_objects_matched()
    return [second.get_weights(), sorted(name for name, _ in tf.train.list_variables(path))]
