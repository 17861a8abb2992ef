"""`accumulation_steps`: micro-batches of any sizes count as the one large batch that they make up.

And steps in which nothing has a weight: they are passed over, and seen to be.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import VOCAB_SIZE, WIDTH, small_encoder, small_inputs
from sparse_mixer import models, optimizers, training
from sparse_mixer.gradients import Gradients
from sparse_mixer.masking import mask_tokens

Array = np.ndarray[Any, Any]

SIZES = (7, 1, 4)
"""Examples of the micro-batches."""
COUNT = sum(SIZES)


class Keeper(optimizers.SGD):
    """Keeps the gradients of every update."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.seen: list[dict[str, Array]] = []

    def apply_gradients(self, target: Any, gradients: Any, *, scale: float = 1.0) -> float | None:
        self.seen.append({key: scale * gradients[key] for key in gradients})
        return super().apply_gradients(target, gradients, scale=scale)


def encoder(**arguments: Any) -> Any:
    router = {"router_z_loss_weight": 0.1, "output_dropout": 0.0, "attention_dropout": 0.0}
    return small_encoder(**router | arguments)


def classifier(classes: int = 3, **arguments: Any) -> models.Model:
    return models.BertClassifier(encoder(**arguments), classes, dropout_rate=0.0, seed=0)


def few_tokens(inputs: dict[str, Array]) -> Array:
    """Token labels of which the examples have from none to all."""
    labels = inputs["input_word_ids"].astype(np.int64) % 3
    return np.where(np.arange(labels.shape[1]) < np.arange(COUNT)[:, None] * 8 // 11, labels, -1)


def masked() -> dict[str, Array]:
    batch = mask_tokens(
        small_inputs(COUNT), seed=1, mask_id=1, vocab_size=VOCAB_SIZE, special_ids=range(4), max_predictions=4, rate=0.6
    )
    # The second micro-batch has no prediction at all, the first one weights of many sizes.
    batch["masked_lm_weights"][7] = 0.0
    batch["masked_lm_weights"][:7] *= np.linspace(0.1, 2.0, 7, dtype=np.float32)[:, None]
    return batch


def cases() -> dict[str, tuple[models.Model, Any]]:
    inputs, labels = small_inputs(COUNT), np.arange(COUNT) % 3
    weights = np.array([0.5, 3.0, 0.0, 1.0, 2.0, 0.1, 1.0, 0.0, 5.0, 0.3, 0.3, 1.0], np.float32)
    token_weights = np.random.default_rng(2).random((COUNT, 8), np.float32)
    heads = [models.ClassificationHead(WIDTH, 2), models.ClassificationHead(0, 3, name="kind", use_encoder_pooler=True)]
    sentences = {"next_sentence_labels": labels % 2, "kind_labels": labels}
    token_model, span_model = models.BertTokenClassifier, models.BertSpanLabeler
    return {
        "examples": (classifier(), (inputs, labels)),
        "sample weights": (classifier(), (inputs, labels, weights)),
        "regression": (classifier(1), (inputs, labels.astype(np.float32), weights)),
        "tokens choose": (classifier(router="tokens_choose", train_capacity_factor=0.5), (inputs, labels)),
        "tokens": (token_model(encoder(), 3, dropout_rate=0.0, seed=0), (inputs, few_tokens(inputs))),
        "weighted tokens": (
            token_model(encoder(), 3, dropout_rate=0.0, seed=0),
            (inputs, few_tokens(inputs), token_weights),
        ),
        "spans": (span_model(encoder(), seed=0), (inputs, np.stack([labels, labels + 2]), weights)),
        "masked words": (models.BertPretrainerV2(encoder(), "gelu", seed=0), masked()),
        "pre-training": (
            models.BertPretrainerV2(encoder(), "gelu", classification_heads=heads, seed=0),
            masked() | sentences,
        ),
    }


def cut(data: Any, rows: slice) -> Any:
    if isinstance(data, dict):
        return {name: array[rows] for name, array in data.items()}
    inputs, labels, *weights = data
    # Labels of spans are [2, B].
    return cut(inputs, rows), labels[:, rows] if len(labels) == 2 else labels[rows], *(w[rows] for w in weights)


def micro_batches(data: Any) -> list[Any]:
    ends = np.cumsum(SIZES)
    return [cut(data, slice(end - size, end)) for size, end in zip(SIZES, ends, strict=True)]


@pytest.mark.parametrize("name", cases())
def test_micro_batches_of_unequal_sizes_are_one_batch(name: str) -> None:
    model, data = cases()[name]
    runs = []
    for batches in ([data], micro_batches(data)):
        optimizer = Keeper()
        history = model.fit(
            batches, optimizer=optimizer, accumulation_steps=len(batches), steps_per_epoch=len(batches), progress=False
        )
        runs.append((optimizer.seen[0], history.epochs[0]))
        assert len(optimizer.seen) == len(history.steps) == 1
    (whole, whole_logs), (parts, parts_logs) = runs
    largest = max(float(np.linalg.norm(gradient)) for gradient in whole.values())
    for key, gradient in whole.items():
        # Relative to the weight's own gradient, unless that is all rounding.
        size = max(float(np.linalg.norm(gradient)), 1e-3 * largest)
        assert np.linalg.norm(parts[key] - gradient) <= 1e-6 * size, key
    assert parts_logs.keys() == whole_logs.keys()
    for metric, value in whole_logs.items():
        # The others are shares of what a batch dispatches, and their means over batches are not those of the whole.
        rel = 1e-6 if metric.endswith(("loss", "accuracy")) else 0.05
        assert parts_logs[metric] == pytest.approx(value, rel=rel, abs=1e-7), metric


def test_divisors_make_gradients_of_parts_add_up() -> None:
    """What `fit` does, by hand."""
    model, data = cases()["pre-training"]
    whole_metrics, whole = model.loss_and_gradients(data)
    parts = micro_batches(data)
    divisors = {name: sum(model.loss_divisors(part)[name] for part in parts) for name in model.loss_divisors(data)}
    assert divisors == pytest.approx(model.loss_divisors(data))
    total, gradients = training.Metrics(), Gradients(model)
    for part in parts:
        metrics, _ = model.loss_and_gradients(part, into=gradients, divisors=divisors)
        total.add(metrics)
    assert total.means()["loss"] == pytest.approx(whole_metrics.means()["loss"], rel=1e-6)
    for key in whole:
        np.testing.assert_allclose(gradients[key], whole[key], rtol=1e-3, atol=1e-6)


# Nothing to learn -------------------------------------------------------------------------------------------------


def weightless(name: str) -> tuple[models.Model, Any]:
    """A model, and data in which nothing has a weight."""
    model, data = cases()[name]
    if isinstance(data, dict):
        return model, data | {"masked_lm_weights": np.zeros_like(data["masked_lm_weights"])}
    if name == "tokens":
        return model, (data[0], np.full_like(data[1], -1))
    return model, (*data[:2], np.zeros_like(data[2]))


WEIGHTLESS = ["sample weights", "regression", "tokens", "weighted tokens", "spans", "masked words", "pre-training"]


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_steps_without_a_weight_are_passed_over_and_counted(name: str, tmp_path: Path) -> None:
    model, data = weightless(name)
    _, good = cases()[name]
    path, before = tmp_path / "steps.jsonl", model.get_weights()
    skipped = []

    class Watch(training.Callback):
        def on_step_skipped(self, trainer: training.Trainer) -> None:
            skipped.append((trainer.batches_done, trainer.skipped_steps))

    def fit(batches: list[Any], **arguments: Any) -> tuple[training.History, optimizers.Optimizer]:
        # Decay and momentum would show in an update without gradients.
        optimizer = optimizers.AdamW(1e-2, weight_decay=0.5, exclude_from_weight_decay=())
        loggers = [training.JSONLLogger(path), training.CSVLogger(tmp_path / "epochs.csv"), Watch()]
        with pytest.warns(UserWarning, match="all labels of batch 1 of epoch 1 have weight 0") as caught:
            history = model.fit(batches, optimizer=optimizer, callbacks=loggers, **arguments)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        return history, optimizer

    history, optimizer = fit([data, data], validation_data=[data], progress=False)
    assert optimizer.iterations == 0
    assert skipped == [(1, 1), (2, 2)]
    assert history.steps == []
    assert history.epochs[0]["skipped_steps"] == 2.0
    assert math.isnan(history.epochs[0]["loss"])
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert "NaN" not in path.read_text()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry.get("skipped_batch") for entry in entries] == [1, 2, None]

    # Among others, and with an accumulation of a batch with a weight and one without.
    history, optimizer = fit([data, good, data, good], progress=True, epochs=2)
    assert [epoch["skipped_steps"] for epoch in history.epochs] == [2.0, 2.0]
    assert optimizer.iterations == len(history.steps) == 4
    assert all(math.isfinite(epoch["loss"]) for epoch in history.epochs)


def test_gradients_of_a_batch_without_a_weight_are_none() -> None:
    model, data = weightless("pre-training")
    metrics, gradients = model.loss_and_gradients(data)
    assert metrics["loss"][1] == 0.0
    assert all((gradients[key] == 0.0).all() for key in gradients)
    before = model.get_weights()
    optimizers.AdamW(1e-2, exclude_from_weight_decay=()).apply_gradients(model, gradients)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.filterwarnings("ignore:data. all labels of batch")
def test_skipped_steps_survive_a_resumption(tmp_path: Path) -> None:
    """Stopped right after a skipped step; the log has every line once, too."""

    class Stop(training.Callback):
        def on_step_skipped(self, trainer: training.Trainer) -> None:
            trainer.stop = trainer.batches_done == 3

    def trainer(path: Path, *more: training.Callback) -> training.Trainer:
        model, data = weightless("masked words")
        good = cases()["masked words"][1]
        return training.Trainer(
            model,
            [good, data, data, good],
            optimizer=optimizers.AdamW(1e-3),
            epochs=2,
            seed=0,
            state_path=path.with_suffix(".npz"),
            callbacks=[training.JSONLLogger(path), *more],
        )

    whole = trainer(tmp_path / "whole.jsonl")
    whole.run()
    stopped = trainer(tmp_path / "parts.jsonl", Stop())
    stopped.run()
    assert stopped.skipped_steps == 2
    rest = trainer(tmp_path / "parts.jsonl")
    rest.restore(tmp_path / "parts.npz")
    rest.run()
    assert [epoch["skipped_steps"] for epoch in rest.history.epochs] == [2.0, 2.0]
    assert rest.history == whole.history
    assert (tmp_path / "parts.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    for one, other in zip(whole.model.get_weights(), rest.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
