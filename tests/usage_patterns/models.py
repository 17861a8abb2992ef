"""The encoder inside models: functional, subclassed, and the Model Garden's."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.nlp.modeling import models

from tests.usage_patterns.calls import made, tensors
from tests.usage_patterns.sizes import ARGUMENTS, CLASSES, batch, fill, labels

ARGUMENTS_WITHOUT_MOE: dict[str, Any] = {**ARGUMENTS, "moe_layers": ()}


def compiled(model: Any, optimizer: Any = "sgd", **more: Any) -> Any:
    fill(model.weights)
    model.compile(optimizer, tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), **more)
    return model


def classifier(make: Any, **changes: Any) -> Any:
    return models.BertClassifier(made(make, **changes), num_classes=CLASSES, dropout_rate=0.0)


def functional_model(make: Any) -> Any:
    encoder = made(make)
    model = tf_keras.Model(encoder.inputs, encoder(encoder.inputs))
    return [
        model(batch())["sequence_output"],
        str(model.output["pooled_output"].shape),
    ]


def functional_model_with_head(make: Any) -> Any:
    encoder = made(make)
    logits = tf_keras.layers.Dense(CLASSES)(encoder(encoder.inputs)["pooled_output"])
    model = compiled(tf_keras.Model(encoder.inputs, logits))
    return model.fit(batch(), labels(), epochs=2, batch_size=4, shuffle=False, verbose=0).history["loss"]


def sequence_pooling(make: Any) -> Any:
    encoder = made(make)
    mean = tf_keras.layers.GlobalAveragePooling1D()(encoder(encoder.inputs)["sequence_output"])
    return tf_keras.Model(encoder.inputs, mean).predict(batch(), verbose=0)


def own_input_layers(make: Any) -> Any:
    encoder = made(make)
    inputs = {name: tf_keras.Input((8,), dtype="int32", name=name) for name in batch()}
    return tf_keras.Model(inputs, encoder(inputs)["pooled_output"]).predict(batch(), verbose=0)


def subclassed_model(make: Any) -> Any:
    class Model(tf_keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = made(make)
            self.head = tf_keras.layers.Dense(CLASSES)

        def call(self, inputs: Any, training: Any = None) -> Any:
            return self.head(self.encoder(inputs, training=training)["pooled_output"])

    model = Model()
    model(tensors())
    compiled(model)
    losses = model.fit(batch(), labels(), epochs=2, batch_size=4, shuffle=False, verbose=0).history["loss"]
    return [losses, model.predict(batch(), verbose=0)]


def own_train_step(make: Any) -> Any:
    class Model(tf_keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compiled_loss(y, self(x, training=True), regularization_losses=self.losses)
            self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
            return {"loss": loss}

    encoder = made(make)
    logits = tf_keras.layers.Dense(CLASSES)(encoder(encoder.inputs)["pooled_output"])
    model = compiled(Model(encoder.inputs, logits))
    return model.fit(batch(), labels(), epochs=2, batch_size=8, verbose=0).history["loss"]


def fit_evaluate_predict(make: Any) -> Any:
    model = compiled(classifier(make), tf_keras.optimizers.Adam(1e-3), metrics=["accuracy"])
    history = model.fit(batch(), labels(), epochs=2, batch_size=4, shuffle=False, verbose=0).history
    return [history, model.evaluate(batch(), labels(), verbose=0), model.predict(batch(), batch_size=3, verbose=0)]


def fit_eagerly(make: Any) -> Any:
    model = compiled(classifier(make), run_eagerly=True)
    return model.fit(batch(), labels(), epochs=1, batch_size=4, shuffle=False, verbose=0).history["loss"]


def fit_with_validation(make: Any) -> Any:
    model = compiled(classifier(make))
    history = model.fit(batch(), labels(), epochs=2, batch_size=4, shuffle=False, verbose=0, validation_split=0.25)
    return [history.history["loss"], history.history["val_loss"]]


def fit_a_dataset(make: Any) -> Any:
    dataset = tf.data.Dataset.from_tensor_slices((batch(), labels())).batch(4, drop_remainder=True).repeat()
    return compiled(classifier(make)).fit(dataset, steps_per_epoch=3, verbose=0).history["loss"]


def fit_with_callbacks(make: Any) -> Any:
    schedule = tf_keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
    stop = tf_keras.callbacks.EarlyStopping("loss", patience=1)
    history = compiled(classifier(make)).fit(
        batch(), labels(), epochs=3, batch_size=4, shuffle=False, verbose=0, callbacks=[schedule, stop]
    )
    return history.history["loss"]


def train_on_batch(make: Any) -> Any:
    model = compiled(classifier(make))
    return [model.train_on_batch(batch(), labels()), model.test_on_batch(batch(), labels())]


def class_and_sample_weights(make: Any) -> Any:
    model = compiled(classifier(make))
    options = {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}, "epochs": 2, "batch_size": 4, "shuffle": False, "verbose": 0}
    return model.fit(batch(), labels(), **options).history["loss"]


def weight_decay_and_schedule(make: Any) -> Any:
    schedule = tf_keras.optimizers.schedules.PolynomialDecay(1e-2, 10, 0.0)
    model = compiled(classifier(make), tf_keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0))
    return model.fit(batch(), labels(), epochs=3, batch_size=4, shuffle=False, verbose=0).history["loss"]


def model_garden_optimizer(make: Any) -> Any:
    from official.nlp import optimization

    optimizer = optimization.create_optimizer(1e-2, 10, 2, end_lr=0.0, optimizer_type="adamw")
    model = compiled(classifier(make), optimizer)
    return model.fit(batch(), labels(), epochs=3, batch_size=4, shuffle=False, verbose=0).history["loss"]


def frozen_encoder_with_head(make: Any) -> Any:
    encoder = made(make)
    encoder.trainable = False
    model = compiled(models.BertClassifier(encoder, num_classes=CLASSES, dropout_rate=0.0))
    model.fit(batch(), labels(), epochs=1, batch_size=4, shuffle=False, verbose=0)
    return model.get_weights()


def gradual_unfreezing(make: Any) -> Any:
    encoder = made(make)
    model = models.BertClassifier(encoder, num_classes=CLASSES, dropout_rate=0.0)
    losses = []
    for trainable in (False, True):
        encoder.trainable = trainable
        model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        if not losses:
            fill(model.weights)
        losses.append(model.fit(batch(), labels(), batch_size=8, verbose=0).history["loss"])
    return [losses, model.predict(batch(), verbose=0)]


def classifier_without_pooler(make: Any) -> Any:
    model = models.BertClassifier(made(make), num_classes=CLASSES, dropout_rate=0.0, use_encoder_pooler=False)
    fill(model.weights)
    return model.predict(batch(), verbose=0)


def regression(make: Any) -> Any:
    model = models.BertClassifier(made(make), num_classes=1, dropout_rate=0.0)
    fill(model.weights)
    model.compile("sgd", "mse")
    return model.fit(batch(), labels().astype(np.float32), batch_size=8, epochs=2, verbose=0).history["loss"]


def token_classifier(make: Any) -> Any:
    model = models.BertTokenClassifier(made(make), num_classes=CLASSES, dropout_rate=0.0)
    fill(model.weights)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    history = model.fit(batch(), {"logits": batch()["input_word_ids"] % CLASSES}, epochs=2, batch_size=8, verbose=0)
    return history.history["loss"]


def span_labeler(make: Any) -> Any:
    model = models.BertSpanLabeler(made(make))
    fill(model.weights)
    model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    targets = {"start_positions": labels(), "end_positions": labels() + 2}
    return model.fit(batch(), targets, epochs=2, batch_size=8, verbose=0).history["loss"]


def pretrainer(make: Any) -> Any:
    model = models.BertPretrainerV2(made(make), mlm_activation="tanh")
    inputs = {**tensors(), "masked_lm_positions": tf.constant([[1, 2]] * 8)}
    model(inputs)
    fill(model.weights)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(inputs, training=True)["mlm_logits"] ** 2) + sum(model.losses)
    table = model.encoder_network.get_embedding_table()
    return [loss, tf.convert_to_tensor(tape.gradient(loss, table)), sorted(model.checkpoint_items)]


def pretrainer_with_heads(make: Any) -> Any:
    from official.nlp.modeling import layers

    head = layers.ClassificationHead(16, 2, dropout_rate=0.0, name="next_sentence")
    model = models.BertPretrainerV2(made(make), classification_heads=[head])
    inputs = {**tensors(), "masked_lm_positions": tf.constant([[1, 2]] * 8)}
    model(inputs)
    fill(model.weights)
    return model(inputs)["next_sentence"]


def mixed_bfloat16_policy(make: Any) -> Any:
    """Only the kind of the result is TensorFlow's: our layer computes in float32."""
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        encoder = make(**ARGUMENTS_WITHOUT_MOE)
        pooled = encoder(tensors())["pooled_output"]
        return [pooled.dtype.name, encoder.weights[0].dtype.name]
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


def mixed_bfloat16_training(make: Any) -> Any:
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = models.BertPretrainerV2(make(**ARGUMENTS_WITHOUT_MOE), mlm_activation="tanh")
        inputs = {**tensors(), "masked_lm_positions": tf.constant([[1, 2]] * 8)}
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.cast(model(inputs, training=True)["mlm_logits"], tf.float32) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        return [g is not None for g in gradients if g is not None and g.dtype == tf.float32]
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


def two_towers(make: Any) -> Any:
    encoder = made(make)
    left, right = (
        {name: tf_keras.Input((8,), dtype="int32", name=f"{side}_{name}") for name in batch()}
        for side in ("left", "right")
    )
    vectors = [encoder(inputs)["pooled_output"] for inputs in (left, right)]
    scores = tf_keras.layers.Dot(1)(vectors)
    model = tf_keras.Model([left, right], scores)
    model.compile("sgd", "mse")
    reverse = {name: array[::-1] for name, array in batch().items()}
    history = model.fit(
        [batch(), reverse], labels().astype(np.float32), batch_size=4, epochs=2, shuffle=False, verbose=0
    )
    return history.history["loss"]


def added_loss(make: Any) -> Any:
    encoder = made(make)
    outputs = encoder(encoder.inputs)
    model = tf_keras.Model(encoder.inputs, outputs["pooled_output"])
    model.add_loss(tf.reduce_mean(outputs["sequence_output"] ** 2))
    model.compile("sgd")
    return model.fit(batch(), batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"]


def intermediate_outputs(make: Any) -> Any:
    encoder = made(make)
    model = tf_keras.Model(encoder.inputs, encoder(encoder.inputs)["encoder_outputs"])
    return model.predict(batch(), verbose=0)


def weights_of_models(make: Any) -> Any:
    model = classifier(make)
    fill(model.weights)
    return [model.get_weights(), model.count_params(), len(model.layers)]


def legacy_h5_weights(make: Any, folder: Any) -> Any:
    return _saved_and_loaded(make, str(folder / "model.h5"))


def keras_h5_weights(make: Any, folder: Any) -> Any:
    return _saved_and_loaded(make, str(folder / "model.weights.h5"))


def checkpoint_weights(make: Any, folder: Any) -> Any:
    return _saved_and_loaded(make, str(folder / "prefix"))


def _saved_and_loaded(make: Any, path: str) -> Any:
    first, second = classifier(make), classifier(make)
    fill(first.weights, seed=5)
    fill(second.weights, seed=6)
    first.save_weights(path)
    second.load_weights(path)
    return second.get_weights()


def checkpoint_with_optimizer(make: Any, folder: Any) -> Any:
    model = compiled(classifier(make), tf_keras.optimizers.Adam(1e-2))
    model.train_on_batch(batch(), labels())
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(folder / "run"))
    before = model.get_weights()
    model.train_on_batch(batch(), labels())
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).restore(path)
    return [
        all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True)),
        model.train_on_batch(batch(), labels()),
    ]


def model_checkpoint_callback(make: Any, folder: Any) -> Any:
    model = compiled(classifier(make))
    callback = tf_keras.callbacks.ModelCheckpoint(str(folder / "best"), save_weights_only=True, monitor="loss")
    model.fit(batch(), labels(), batch_size=8, verbose=0, callbacks=[callback])
    other = classifier(make)
    other.load_weights(str(folder / "best"))
    return other.get_weights()
