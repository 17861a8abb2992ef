"""Sample weights against Keras: losses, metrics, updates and evaluation of the same models by ``fit`` of either."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sparse_mixer
import tensorflow_reference as reference
from encoders import ARGUMENTS, LENGTH, small_inputs
from sparse_mixer import models, optimizers

with reference._quiet():
    import tf_keras
    from official.nlp.modeling import models as official_models

Array = np.ndarray[Any, Any]

NO_DROPOUT = {"output_dropout": 0.0, "attention_dropout": 0.0}
TF_ARGUMENTS = {key: value for key, value in ARGUMENTS.items() if key != "seed"}
EXAMPLES, BATCH = 20, 8
"""The last batch is smaller than the others."""
RATE = 0.05


def encoders() -> tuple[Any, sparse_mixer.SparseMixer]:
    """The reference encoder and ours with its weights, without dropout."""
    theirs = reference.TensorFlowEncoder(TF_ARGUMENTS | NO_DROPOUT, small_inputs(BATCH)).layer
    ours = sparse_mixer.SparseMixer(**(ARGUMENTS | NO_DROPOUT))
    ours.set_weights([weight.numpy() for weight in theirs.weights])
    return theirs, ours


def compare(theirs: Any, ours: models.Model, loss: Any, metrics: list[Any], data: Any, batch_size: int = BATCH) -> None:
    """Three epochs of plain gradient descent by either, and an evaluation."""
    inputs, labels, weights = data
    for mine, their in zip(next(iter(ours.heads.values())).weights, theirs.classifier.weights, strict=True):
        mine.assign(their.numpy())
    options = {"batch_size": batch_size, "epochs": 3, "shuffle": False}
    with reference._quiet():
        weighted = [type(metric).from_config(metric.get_config()) for metric in metrics]
        theirs.compile(tf_keras.optimizers.SGD(RATE), loss, metrics=metrics, weighted_metrics=weighted)
        expected = theirs.fit(inputs, labels, sample_weight=weights, verbose=0, **options).history
        evaluated = theirs.evaluate(inputs, labels, batch_size, sample_weight=weights, return_dict=True, verbose=0)
    history = ours.fit(data, optimizer=optimizers.SGD(RATE), progress=False, **options).history
    found = ours.evaluate(data, batch_size=batch_size)
    names = {
        name: name.replace("logits_", "")
        for name in expected
        if name in ("loss", "accuracy", "weighted_accuracy", "logits_accuracy", "logits_weighted_accuracy")
    }
    assert len(names) == 1 + 2 * len(metrics)
    for name, own in names.items():
        np.testing.assert_allclose(history[own], expected[name], rtol=2e-5, err_msg=name)
        assert found[own] == pytest.approx(evaluated[name], rel=2e-5), name
    for mine, their in zip(ours.encoder.weights, theirs.bert_network_weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), their.numpy(), rtol=1e-3, atol=2e-6, err_msg=mine.key)


def weights_of_many_sizes(shape: tuple[int, ...]) -> Array:
    """From 0 to 4, mean far from 1, the same in every run."""
    weights = np.random.default_rng(3).random(shape, np.float32) * 4
    weights[1::5] = 0.0
    return weights


def accuracy() -> list[Any]:
    return [tf_keras.metrics.SparseCategoricalAccuracy(name="accuracy")]


def test_classifier() -> None:
    theirs, encoder = encoders()
    labels = np.arange(EXAMPLES) % 3
    with reference._quiet():
        model = official_models.BertClassifier(theirs, 3, dropout_rate=0.0)
        model.bert_network_weights = theirs.weights
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ours = models.BertClassifier(encoder, 3, dropout_rate=0.0)
    data = small_inputs(EXAMPLES), labels, weights_of_many_sizes((EXAMPLES,))
    compare(model, ours, loss, accuracy(), data)


def test_regression() -> None:
    theirs, encoder = encoders()
    labels = np.linspace(-1, 2, EXAMPLES, dtype=np.float32)
    with reference._quiet():
        model = official_models.BertClassifier(theirs, 1, dropout_rate=0.0)
        model.bert_network_weights = theirs.weights
        loss = tf_keras.losses.MeanSquaredError()
    ours = models.BertClassifier(encoder, 1, dropout_rate=0.0)
    compare(model, ours, loss, [], (small_inputs(EXAMPLES), labels, weights_of_many_sizes((EXAMPLES,))))


@pytest.mark.parametrize("per_token", [True, False])
def test_token_classifier(per_token: bool) -> None:
    theirs, encoder = encoders()
    inputs = small_inputs(EXAMPLES)
    with reference._quiet():
        model = official_models.BertTokenClassifier(theirs, 4, dropout_rate=0.0)
        model.bert_network_weights = theirs.weights
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ours = models.BertTokenClassifier(encoder, 4, dropout_rate=0.0)
    weights = weights_of_many_sizes((EXAMPLES, LENGTH) if per_token else (EXAMPLES,))
    compare(model, ours, loss, accuracy(), (inputs, inputs["input_word_ids"].astype(np.int64) % 4, weights))


def test_labels_that_do_not_count() -> None:
    """Keras's ``ignore_class``: the sum of the weighted losses over the number of labels that count."""
    theirs, encoder = encoders()
    inputs = small_inputs(EXAMPLES)
    labels = np.where(np.arange(LENGTH) < np.arange(EXAMPLES)[:, None] % 9, inputs["input_word_ids"] % 4, -1)
    with reference._quiet():
        model = official_models.BertTokenClassifier(theirs, 4, dropout_rate=0.0)
        model.bert_network_weights = theirs.weights
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    ours = models.BertTokenClassifier(encoder, 4, dropout_rate=0.0)
    data = inputs, labels.astype(np.int64), weights_of_many_sizes((EXAMPLES, LENGTH))
    # One batch: Keras's running means count batches by their examples, ours by their labels.
    compare(model, ours, loss, [], data, batch_size=EXAMPLES)
