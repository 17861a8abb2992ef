"""Losses of one's own, and what compile and its kin refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from encoders import LENGTH, small_encoder, small_inputs
from sparse_mixer import models, optimizers

Array = np.ndarray[Any, Any]
EXAMPLES = 8
INPUTS = small_inputs(EXAMPLES)
CLASSES = INPUTS["input_word_ids"][:, 0] % 3
SEVERAL = (INPUTS["input_word_ids"][:, :3] % 2).astype(np.float32)


def yes_or_no(labels: Array, logits: Array) -> tuple[Array, Array]:
    """One loss per example."""
    losses = np.logaddexp(0, logits) - logits * labels
    return losses.sum(-1), 1 / (1 + np.exp(-logits)) - labels


def apart(labels: Array, logits: Array) -> tuple[float, Array]:
    """One number for the batch: examples with the same label should be alike."""
    differences = logits[:, None] - logits
    weight = np.where(labels[:, None] == labels, 1.0, -0.1)[..., None]
    return float((weight * differences**2).mean()), 4 * (weight * differences).sum(1) / differences.size


@pytest.mark.parametrize(("loss", "labels"), [(yes_or_no, SEVERAL), (apart, CLASSES)], ids=["per example", "per batch"])
def test_gradients_are_those_of_the_function(loss: Callable[..., Any], labels: Array) -> None:
    """The directional derivative of the whole loss, by differences."""
    encoder = small_encoder(output_dropout=0.0, attention_dropout=0.0, router_z_loss_weight=0.0)
    model = models.BertClassifier(encoder, 3, dropout_rate=0.0, seed=0)
    model.compile("sgd", loss)
    kernel = model.classifier.weights[0]
    _, gradients = model.loss_and_gradients((INPUTS, labels), seed=0)
    direction = np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32)
    values, step, losses = kernel.numpy(), 1e-2, []
    for sign in (1, -1):
        kernel.assign(values + sign * step * direction)
        losses.append(model.test_on_batch(INPUTS, labels))
    expected = (losses[0] - losses[1]) / (2 * step)
    assert float((gradients[kernel.key] * direction).sum()) == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_losses_per_row_can_be_weighted_and_accumulated() -> None:
    results = []
    for options in ({"batch_size": 8}, {"batch_size": 2, "accumulation_steps": 4}):
        encoder = small_encoder(output_dropout=0.0, attention_dropout=0.0)
        model = models.BertClassifier(encoder, 3, seed=0, dropout_rate=0.0)
        model.compile(optimizers.SGD(0.1), yes_or_no)
        weights = np.linspace(0, 2, EXAMPLES).astype(np.float32)
        history = model.fit(INPUTS, SEVERAL, sample_weight=weights, shuffle=False, seed=1, verbose=0, **options)
        results.append(history.history["task_loss"])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
    weighted = models.BertClassifier(small_encoder(), 3, seed=0)
    weighted.compile("sgd", apart)
    with pytest.raises(ValueError, match="sample_weight: the loss gives one number for the whole batch"):
        weighted.evaluate(INPUTS, CLASSES, sample_weight=np.ones(EXAMPLES))


def test_a_loss_of_ones_own_for_tokens_and_spans() -> None:
    """A copy of the model's own loss trains as the model's own does."""

    def cross_entropy(labels: Array, logits: Array) -> tuple[Array, Array]:
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        chosen = np.eye(logits.shape[-1], dtype=np.float32)[labels]
        return -np.log((shares * chosen).sum(-1)), shares - chosen

    tokens = INPUTS["input_word_ids"] % 3
    spans = {"start_positions": CLASSES, "end_positions": CLASSES + 1}
    for make, labels in [
        (lambda: models.BertTokenClassifier(small_encoder(), 3, seed=0), tokens),
        (lambda: models.BertSpanLabeler(small_encoder(), seed=0), spans),
    ]:
        losses = []
        for loss in (None, cross_entropy):
            model = make()
            model.compile(optimizers.SGD(0.1), loss, loss_weights=[0.5, 0.5] if labels is spans else None)
            losses.append(model.fit(INPUTS, labels, epochs=2, seed=0, verbose=0).history["loss"])
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"optimizer": "rmsprop"}, ValueError, r"optimizer: got 'rmsprop'; possible are .*'adam', 'adamw'"),
        ({"optimizer": 3}, TypeError, r"optimizer: got int; possible are"),
        ({"optimizer": optimizers.SGD}, TypeError, r"optimizer: got SGD; possible are"),
        ({"loss": "sparse_categorical_crossentropy"}, ValueError, r"loss: .*probabilities.* from_logits=True"),
        ({"loss": "hinge"}, ValueError, r"loss: 'hinge' has no counterpart here; possible are"),
        ({"loss": 3}, TypeError, r"loss: got 3; possible are"),
        ({"metrics": ["auc"]}, ValueError, r"metrics: 'auc' has no counterpart here; possible are 'accuracy'"),
        ({"metrics": [3]}, TypeError, r"metrics: got 3; possible are"),
        ({"loss_weights": [1, 2]}, ValueError, r"loss_weights: expected one number per output \['logits'\]"),
    ],
)
def test_compile_says_what_is_possible(arguments: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        models.BertClassifier(small_encoder(), 3).compile(**arguments)


def test_what_the_other_methods_refuse() -> None:
    model = models.BertClassifier(small_encoder(), 3, seed=0)
    pretrainer = models.BertPretrainerV2(small_encoder(), seed=0)

    def returning(*result: Any) -> models.BertClassifier:
        own = models.BertClassifier(small_encoder(), 3, seed=0)
        own.compile("sgd", lambda labels, logits: result if len(result) > 1 else result[0])
        return own

    ones = np.ones(EXAMPLES)
    calls: list[tuple[Callable[[], Any], Any, str]] = [
        (lambda: model.fit(INPUTS, CLASSES), ValueError, "optimizer: missing; give one to compile or fit"),
        (lambda: model.train_on_batch(INPUTS, CLASSES), ValueError, "optimizer: missing; give one to compile"),
        (lambda: model.fit(optimizer="sgd"), ValueError, "x: expected inputs or data, got None"),
        (lambda: model.fit([(INPUTS, CLASSES)], CLASSES, optimizer="sgd"), ValueError, "y: labels beside x"),
        (lambda: model.fit(INPUTS, CLASSES, optimizer="sgd", verbose=3), ValueError, "verbose: expected 0, 1, 2"),
        (
            lambda: model.fit(INPUTS, CLASSES, optimizer="sgd", callbacks=[3]),
            TypeError,
            "callbacks: .*got int; ",
        ),
        (lambda: model.fit(INPUTS, CLASSES, optimizer="sgd", validation_split=1.0), ValueError, "validation_split: "),
        (lambda: model.fit(INPUTS, CLASSES, optimizer="sgd", class_weight=[1]), TypeError, "class_weight: expected a"),
        (lambda: model.fit(INPUTS, CLASSES, optimizer="sgd", initial_epoch=-1), ValueError, "initial_epoch: "),
        (lambda: model.evaluate(INPUTS, CLASSES, callbacks=[3]), ValueError, "callbacks: evaluate calls none"),
        (lambda: model.predict(3), TypeError, "x: expected inputs or an iterable"),
        (lambda: pretrainer.compile("sgd", "mse"), ValueError, "loss: a BertPretrainerV2 has its own"),
        (lambda: returning(ones).evaluate(INPUTS, CLASSES), TypeError, r"loss: expected \(loss, gradient"),
        (
            lambda: returning(ones, ones).evaluate(INPUTS, CLASSES),
            ValueError,
            "loss: expected a gradient",
        ),
        (
            lambda: returning(np.ones(3), np.ones((EXAMPLES, 3))).evaluate(INPUTS, CLASSES),
            ValueError,
            r"loss: expected a number or an array \[8\]",
        ),
        (
            lambda: models.BertClassifier(small_encoder(), 1).predict_classes(INPUTS),
            ValueError,
            "predict_classes: a model with one class",
        ),
    ]
    for call, kind, message in calls:
        with pytest.raises(kind, match=message):
            call()


def test_what_a_model_says_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    encoder = small_encoder()
    heads = [models.ClassificationHead(0, 2, name="pairs")]
    for model in [
        models.BertClassifier(encoder, 3, name="mine"),
        models.BertTokenClassifier(encoder, 3, name="mine"),
        models.BertSpanLabeler(encoder, name="mine"),
        models.BertPretrainerV2(encoder, classification_heads=heads, name="mine"),
    ]:
        assert model.name == "mine"
        assert list(model.inputs)[:3] == ["input_word_ids", "input_mask", "input_type_ids"]
        assert model.checkpoint_items["encoder"] is encoder
        head = model.layers[-1]
        assert model.get_layer(head.name) is head
        model.summary()
        text = capsys.readouterr().out
        for part in (type(model).__name__, head.name, "pooler_transform", f"{model.count_params():,}"):
            assert part in text
            assert part in model._repr_html_()


def test_predictions_of_every_model() -> None:
    encoder = small_encoder()
    positions = np.tile(np.arange(2), (EXAMPLES, 1))
    heads = [models.ClassificationHead(4, 2, name="pairs")]
    spans = models.BertSpanLabeler(encoder, seed=0)
    tokens = models.BertTokenClassifier(encoder, 3, seed=0)
    pretrainer = models.BertPretrainerV2(encoder, classification_heads=heads, seed=0)
    with_words = {**INPUTS, "masked_lm_positions": positions}
    for model, inputs in [(spans, INPUTS), (tokens, INPUTS), (pretrainer, with_words)]:
        whole, parts = model(inputs), model.predict(inputs, batch_size=3)
        flat, flat_parts = (list(x.values()) if isinstance(x, dict) else x for x in (whole, parts))
        for one, other in zip(flat, flat_parts, strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert [part.shape for part in spans.predict_classes(INPUTS)] == [(EXAMPLES,)] * 2
    assert tokens.predict_classes(INPUTS).shape == (EXAMPLES, LENGTH)
    classes = pretrainer.predict_classes(with_words, 3)
    assert {name: part.shape for name, part in classes.items()} == {
        "masked_lm_ids": (EXAMPLES, 2),
        "pairs_labels": (EXAMPLES,),
    }


@pytest.mark.parametrize(("verbose", "lines"), [(0, 0), (2, 2)])
def test_lines_per_epoch(verbose: int, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.BertClassifier(small_encoder(), 3, seed=0)
    model.compile("sgd")
    model.fit(INPUTS, CLASSES, epochs=2, verbose=verbose)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == lines
    assert all("loss: " in line and "accuracy: " in line for line in printed)
