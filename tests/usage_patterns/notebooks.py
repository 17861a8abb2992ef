"""What tutorials and notebooks do around a model: pipelines, folds, averages of weights, copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.nlp.modeling import models

from tests.usage_patterns.calls import made, tensors
from tests.usage_patterns.models import classifier, compiled
from tests.usage_patterns.sizes import ARGUMENTS, CLASSES, batch, fill, labels

QUIETLY: dict[str, Any] = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}


def summary_of_the_model(make: Any) -> Any:
    lines: list[str] = []
    classifier(make).summary(print_fn=lines.append)
    return [line.split("(")[0] for line in lines if "params" in line]


def layers_by_name(make: Any) -> Any:
    model = classifier(make)
    encoder = model.get_layer("sparse_mixer")
    return [encoder.count_params(), [layer.count_params() for layer in model.layers], len(encoder.trainable_weights)]


def dataset_with_sample_weights(make: Any) -> Any:
    weights = np.linspace(0.5, 2.0, 8).astype(np.float32)
    dataset = tf.data.Dataset.from_tensor_slices((batch(), labels(), weights)).batch(4).prefetch(1)
    model = compiled(classifier(make), weighted_metrics=["accuracy"])
    return [model.fit(dataset, epochs=2, verbose=0).history["loss"], model.evaluate(dataset, verbose=0)[:2]]


def dataset_without_labels(make: Any) -> Any:
    model = classifier(make)
    fill(model.weights)
    return model.predict(tf.data.Dataset.from_tensor_slices(batch()).batch(3), verbose=0)


def padded_batches(make: Any) -> Any:
    encoder = made(make)
    words = [[3, 4, 5], [6, 7, 8, 9, 10], [11]]
    ids = tf.ragged.constant(words, dtype=tf.int32).to_tensor(shape=(3, 8))
    inputs = {"input_word_ids": ids, "input_mask": tf.cast(ids > 0, tf.int32), "input_type_ids": tf.zeros_like(ids)}
    return encoder(inputs)["sequence_output"]


def scope_of_a_strategy(make: Any) -> Any:
    with tf.distribute.get_strategy().scope():
        model = compiled(classifier(make), tf_keras.optimizers.Adam(1e-3))
    return model.fit(batch(), labels(), **QUIETLY).history["loss"]


def mean_over_the_mask(make: Any) -> Any:
    encoder = made(make)
    inputs = encoder.inputs
    weights = tf.cast(inputs["input_mask"], tf.float32)[:, :, None]
    mean = tf.reduce_sum(encoder(inputs)["sequence_output"] * weights, 1) / tf.reduce_sum(weights, 1)
    return tf_keras.Model(inputs, tf.nn.l2_normalize(mean, -1)).predict(batch(), verbose=0)


def numbers_beside_the_text(make: Any) -> Any:
    encoder = made(make)
    numbers = tf_keras.Input((2,), name="numbers")
    features = tf_keras.layers.Concatenate()([encoder(encoder.inputs)["pooled_output"], numbers])
    model = compiled(tf_keras.Model({**encoder.inputs, "numbers": numbers}, tf_keras.layers.Dense(CLASSES)(features)))
    return model.fit({**batch(), "numbers": np.eye(8, 2, dtype=np.float32)}, labels(), **QUIETLY).history["loss"]


def two_heads(make: Any) -> Any:
    encoder = made(make)
    pooled = encoder(encoder.inputs)["pooled_output"]
    outputs = {"kind": tf_keras.layers.Dense(CLASSES)(pooled), "score": tf_keras.layers.Dense(1)(pooled)}
    model = tf_keras.Model(encoder.inputs, outputs)
    fill(model.weights)
    losses = {"kind": tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), "score": "mse"}
    model.compile("sgd", losses, loss_weights={"kind": 1.0, "score": 0.1})
    targets = {"kind": labels(), "score": labels().astype(np.float32)}
    return model.fit(batch(), targets, **QUIETLY).history["loss"]


def folds_from_the_same_weights(make: Any) -> Any:
    model = compiled(classifier(make))
    start, losses = model.get_weights(), []
    for fold in (slice(0, 4), slice(4, 8)):
        model.set_weights(start)
        part = {name: array[fold] for name, array in batch().items()}
        losses.append(model.fit(part, labels()[fold], **QUIETLY).history["loss"])
    return losses


def smoothed_labels_and_other_metrics(make: Any) -> Any:
    model = classifier(make)
    fill(model.weights)
    loss = tf_keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model.compile("sgd", loss, [tf_keras.metrics.AUC(from_logits=True), tf_keras.metrics.CategoricalAccuracy()])
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels()]
    history = model.fit(batch(), one_hot, **QUIETLY).history
    return [history["loss"], history["auc"], model.evaluate(batch(), one_hot, verbose=0, return_dict=True)["loss"]]


def several_steps_per_execution(make: Any) -> Any:
    model = compiled(classifier(make), steps_per_execution=2)
    return model.fit(batch(), labels(), **QUIETLY).history["loss"]


def averages_of_the_weights(make: Any) -> Any:
    optimizer = tf_keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    model = compiled(classifier(make), optimizer)
    model.fit(batch(), labels(), **QUIETLY)
    optimizer.finalize_variable_values(model.trainable_variables)
    return model.predict(batch(), verbose=0)


def rates_that_differ_by_layer(make: Any) -> Any:
    model, optimizer = classifier(make), tf_keras.optimizers.SGD(0.1)
    fill(model.weights)
    encoder = {id(variable) for variable in model.get_layer("sparse_mixer").trainable_variables}
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(tensors(), training=True) ** 2)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, model.trainable_variables)]
        scaled = [
            g * (0.1 if id(v) in encoder else 1.0) for g, v in zip(gradients, model.trainable_variables, strict=True)
        ]
        optimizer.apply_gradients(zip(scaled, model.trainable_variables, strict=True))
    return model.get_weights()


def penalty_of_the_weights(make: Any) -> Any:
    encoder = made(make)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder(tensors(), training=True)["pooled_output"])
        loss += 0.01 * tf.add_n([tf.nn.l2_loss(weight) for weight in encoder.trainable_weights])
    return [tf.convert_to_tensor(g) for g in tape.gradient(loss, encoder.trainable_weights)]


def attack_on_the_embeddings(make: Any) -> Any:
    """Training against the worst small change of the word table, of which the gradient is taken first."""
    encoder, rate = made(make), 0.1
    table = encoder.get_embedding_table()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder(tensors(), training=True)["pooled_output"] ** 2)
    gradient = tf.convert_to_tensor(tape.gradient(loss, table))
    change = rate * gradient / tf.norm(gradient)
    table.assign_add(change)
    attacked = encoder(tensors())["pooled_output"]
    table.assign_sub(change)
    return [attacked, encoder(tensors())["pooled_output"]]


def teacher_and_student(make: Any) -> Any:
    teacher, student = made(make), made(make, num_layers=1, moe_layers=(), attention_layers=())
    teacher.trainable = False
    targets = teacher(tensors())["pooled_output"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((student(tensors(), training=True)["pooled_output"] - targets) ** 2)
    return [loss, *(tf.convert_to_tensor(g) for g in tape.gradient(loss, student.trainable_variables))]


def backbone_of_one_model_in_another(make: Any) -> Any:
    pretrained = models.BertPretrainerV2(make(**ARGUMENTS), mlm_activation="tanh")
    pretrained({**tensors(), "masked_lm_positions": tf.constant([[1, 2]] * 8)})
    fill(pretrained.weights)
    model = models.BertClassifier(pretrained.encoder_network, num_classes=CLASSES, dropout_rate=0.0)
    fill(model.weights[-2:])
    return model.predict(batch(), verbose=0)
