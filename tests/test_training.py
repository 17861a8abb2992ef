"""Optimisers and models by themselves: learning, gradients, frozen layers, threads, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from encoders import LENGTH, WIDTH, small_encoder, small_inputs
from sparse_mixer import initializers, models, optimizers, schedules
from sparse_mixer.gradients import Gradients
from training_cases import RULES, assert_same_weights, labelled, masking


@pytest.mark.parametrize("rule", RULES)
def test_a_classifier_learns(rule: str) -> None:
    # Weights large enough that words tell apart what the pooler sees.
    encoder = small_encoder(initializer=initializers.TruncatedNormal(stddev=0.3))
    model = models.BertClassifier(encoder, 2, seed=0)
    before = model.evaluate(labelled())["loss"]
    history = model.fit(labelled(), optimizer=RULES[rule](), epochs=25, batch_size=8, progress=False, seed=0).history
    assert model.evaluate(labelled())["loss"] < 0.5 * before
    assert len(history["loss"]) == 25


def test_every_model_learns() -> None:
    inputs, labels = labelled(16)
    tokens = (inputs["input_word_ids"] % 3).astype(np.int64)
    spans = {"start_positions": labels * 2, "end_positions": labels * 2 + 1}
    heads = [models.ClassificationHead(WIDTH, 2)]
    cases: list[tuple[models.Model, Any, Any]] = [
        (models.BertClassifier(small_encoder(), 3, use_encoder_pooler=False, seed=0), (inputs, labels), None),
        (models.BertClassifier(small_encoder(), 1, seed=0), (inputs, labels.astype(np.float32)), None),
        (models.BertTokenClassifier(small_encoder(), 3, seed=0), (inputs, tokens), None),
        (models.BertSpanLabeler(small_encoder(), seed=0), (inputs, spans), None),
        (models.BertPretrainerV2(small_encoder(), seed=0), inputs, masking),
        (
            models.BertPretrainerV2(small_encoder(), "gelu", classification_heads=heads, seed=0),
            inputs | {"next_sentence_labels": labels},
            masking,
        ),
    ]
    for model, data, transform in cases:
        arguments = {"epochs": 15, "batch_size": 8, "transform": transform, "progress": False, "seed": 0}
        history = model.fit(data, optimizer=optimizers.AdamW(3e-3), **arguments).history
        assert history["loss"][-1] < 0.97 * history["loss"][0], type(model).__name__
        assert np.isfinite(history["unscaled_router_z_loss"]).all()


def test_gradients_of_models_are_slopes() -> None:
    """A step against the gradient lowers the loss by the gradient's squared norm."""
    encoder = small_encoder(output_dropout=0.0, attention_dropout=0.0)
    inputs, labels = labelled(4)
    spans = {"start_positions": labels, "end_positions": labels + 2}
    heads = [models.ClassificationHead(WIDTH, 2)]
    batches: list[tuple[models.Model, Any]] = [
        (models.BertClassifier(encoder, 3, dropout_rate=0.0, seed=0), (inputs, labels, np.arange(4))),
        (models.BertClassifier(encoder, 3, use_encoder_pooler=False, dropout_rate=0.0, seed=0), (inputs, labels)),
        (models.BertClassifier(encoder, 1, dropout_rate=0.0, seed=0), (inputs, labels * 0.5)),
        (models.BertTokenClassifier(encoder, 4, dropout_rate=0.0, seed=0), (inputs, inputs["input_word_ids"] % 4 - 1)),
        (models.BertSpanLabeler(encoder, seed=0), (inputs, spans)),
        (
            models.BertPretrainerV2(encoder, "gelu", classification_heads=heads, seed=0),
            masking(inputs | {"next_sentence_labels": labels}, 5),
        ),
    ]
    for model, batch in batches:
        before = model.get_weights()
        _, gradients = model.loss_and_gradients(batch, seed=0)
        norm = gradients.global_norm()
        rate = 1e-3 / norm**2
        for key, own in zip([w.key for w in model.weights], model.weights, strict=True):
            own.assign(own.numpy() - rate * gradients[key])
        low = model.loss_and_gradients(batch, seed=0)[0].means()["loss"]
        model.set_weights([2 * old - new for old, new in zip(before, model.get_weights(), strict=True)])
        high = model.loss_and_gradients(batch, seed=0)[0].means()["loss"]
        model.set_weights(before)
        assert high - low == pytest.approx(2e-3, rel=0.03), type(model).__name__


def test_accumulated_batches_are_one_large_batch() -> None:
    inputs, labels = labelled(8)
    arguments = {"epochs": 1, "shuffle": False, "progress": False}
    changed = []
    for batch_size, steps in ((8, 1), (4, 2)):
        encoder = small_encoder(output_dropout=0.0, attention_dropout=0.0)
        model = models.BertClassifier(encoder, 2, dropout_rate=0.0, seed=0)
        sgd = optimizers.SGD(0.1)
        model.fit((inputs, labels), optimizer=sgd, batch_size=batch_size, accumulation_steps=steps, **arguments)
        assert sgd.iterations == 1
        changed.append(model.get_weights())
    for one, other in zip(*changed, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_frozen_layers_stay() -> None:
    model = models.BertClassifier(small_encoder(), 2, seed=0)
    model.encoder.trainable = False
    model.encoder.layers[-1].trainable = True
    frozen = [variable for variable in model.encoder.weights if not variable.trainable]
    before = [variable.numpy() for variable in frozen]
    free = model.encoder.layers[-1].get_weights()
    optimizer = optimizers.AdamW(1e-2)
    model.fit(labelled(), optimizer=optimizer, epochs=1, progress=False, seed=0)
    for variable, values in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), values)
    assert not np.array_equal(free[0], model.encoder.layers[-1].get_weights()[0])
    moments = optimizer.get_state()[1]
    assert not any(name.startswith("transformer/") for name in moments)
    assert "sentence_prediction/logits/kernel/m" in moments


def test_apply_gradients_takes_mappings() -> None:
    one, other = small_encoder(), small_encoder()
    outputs, vjp = one.vjp(small_inputs(), seed=1)
    grads = vjp({name: np.ones_like(outputs[name]) for name in ("sequence_output", "pooled_output")})
    optimizers.AdamW(1e-2).apply_gradients(one, grads)
    optimizers.AdamW(1e-2).apply_gradients(other, {key: np.asarray(value) for key, value in grads.items()})
    assert_same_weights(one, other)
    before = one.get_weights()
    optimizers.SGD(1e-2).apply_gradients(one, {"pooler_transform/bias": np.ones(WIDTH, np.float32)})
    changed = [not np.array_equal(a, b) for a, b in zip(before, one.get_weights(), strict=True)]
    assert sum(changed) == 1


def test_weights_that_are_not_reached_stay() -> None:
    """Neither decay nor moments touch what nothing that was differentiated depends on."""
    inputs = small_inputs()
    ids = inputs.pop("input_word_ids")

    def changed(d_outputs: Any, given: Any, aux_loss_weight: float = 1.0) -> set[str]:
        encoder = small_encoder()
        before = {weight.key: weight.numpy() for weight in encoder.weights}
        _, vjp = encoder.vjp(inputs | given, seed=1)
        grads = vjp(d_outputs, aux_loss_weight)
        optimizer = optimizers.AdamW(1e-2, exclude_from_weight_decay=())
        optimizer.apply_gradients(encoder, grads)
        names = {weight.key for weight in encoder.weights if not np.array_equal(weight.numpy(), before[weight.key])}
        assert {name.rsplit("/", 1)[0] for name in optimizer.get_state()[1]} >= names
        grads.clear()
        before = {weight.key: weight.numpy() for weight in encoder.weights}
        optimizer.apply_gradients(encoder, grads)
        assert all(np.array_equal(weight.numpy(), before[weight.key]) for weight in encoder.weights)
        return names

    every = {weight.key for weight in small_encoder().weights}
    pooler = {key for key in every if key.startswith("pooler")}
    last = {key for key in every if key.startswith("transformer/layer_2/")}
    experts = {key for key in every if key.startswith("transformer/layer_1/")}
    words, embeddings = {"input_word_ids": ids}, {"input_word_embeddings": np.ones((*ids.shape, WIDTH), np.float32)}
    d_sequence = {"sequence_output": np.ones((*ids.shape, WIDTH), np.float32)}
    d_first = {"encoder_outputs": [d_sequence["sequence_output"]]}
    assert changed(d_sequence, words) == every - pooler
    assert changed(d_sequence | {"pooled_output": np.ones((len(ids), WIDTH))}, words) == every
    assert changed(d_sequence, embeddings) == every - pooler - {"word_embeddings/embeddings"}
    assert changed(d_first, words).isdisjoint(pooler | last)
    assert changed(d_first, words, 0.0) == every - pooler - last - experts
    assert changed({}, words, 0.0) == set()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", RULES)
def test_bits_do_not_depend_on_threads(rule: str, dtype: str) -> None:
    """With batches of 320 rows, which are more than one block of the core, and more than one of the moments."""
    inputs, labels = labelled(80)
    heads = [models.ClassificationHead(WIDTH, 2, dropout_rate=0.1, use_encoder_pooler=True)]
    results = []
    for threads in (1, 2, 3):
        encoder = small_encoder(num_threads=threads, dtype=dtype, jitter_noise=0.1)
        model = models.BertPretrainerV2(encoder, "gelu", classification_heads=heads, seed=0)
        optimizer = RULES[rule]()
        optimizer.global_clipnorm = 1.0
        history = model.fit(
            inputs | {"next_sentence_labels": labels},
            optimizer=optimizer,
            batch_size=40,
            epochs=2,
            transform=masking,
            progress=False,
            seed=0,
        )
        results.append((model, history, optimizer.get_state()[1]))
    (first, history, moments), *others = results
    for model, own, state in others:
        assert own == history
        assert_same_weights(model, first)
        assert state.keys() == moments.keys()
        for name, moment in state.items():
            np.testing.assert_array_equal(moment, moments[name])


def test_a_call_that_runs_during_an_update_keeps_its_weights() -> None:
    encoder = small_encoder()
    outputs, vjp = encoder.vjp(small_inputs(), seed=1, persistent=True)
    d_outputs = {"pooled_output": outputs["pooled_output"]}
    before = vjp(d_outputs).copy()
    optimizers.SGD(1.0).apply_gradients(encoder, before)
    after = vjp(d_outputs)
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])


class Subjects:
    """What the calls of `test_errors_name_the_argument` are made on."""

    def __init__(self) -> None:
        self.encoder = small_encoder()
        self.model = models.BertClassifier(self.encoder, 2, seed=0)
        self.inputs, self.labels = labelled(4)
        self.optimizer = optimizers.AdamW()
        self.gradients = Gradients(self.encoder)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda s: optimizers.AdamW(beta_1=1.0), ValueError, "beta_1: got 1"),
        (lambda s: optimizers.SGD(momentum=-0.5), ValueError, "momentum: got -0.5"),
        (lambda s: optimizers.AdamW(epsilon_rule="x"), ValueError, "rule: "),
        (lambda s: optimizers.AdamW(exclude_from_weight_decay="bias"), TypeError, "exclude_from_weight_decay: "),
        (lambda s: schedules.PaperSchedule(1.0, 3, 3), ValueError, "total_steps: got 3"),
        (lambda s: schedules.CosineDecay(1.0, 0), ValueError, "decay_steps: got 0"),
        (lambda s: schedules.CosineDecay(1.0, 10.5), TypeError, "decay_steps: expected an integer, got 10.5"),
        (lambda s: schedules.LinearWarmup(1.0, 2.5), TypeError, "warmup_steps: expected an integer"),
        (lambda s: optimizers.LAMB(global_clipnorm=-1.0), ValueError, "global_clipnorm: expected a number above 0"),
        (
            lambda s: s.optimizer.apply_gradients(s.encoder, {"x": 1}),
            ValueError,
            r"gradients: no weights are called \['x'\]",
        ),
        (
            lambda s: s.optimizer.apply_gradients(s.encoder, {"pooler_transform/bias": np.ones(3)}),
            ValueError,
            "pooler_transform/bias: got shape",
        ),
        (lambda s: s.optimizer.apply_gradients(3, s.gradients), TypeError, "expected a SparseMixer or a model"),
        (
            lambda s: optimizers.AdamW(-1.0).apply_gradients(s.encoder, s.gradients),
            ValueError,
            "learning_rate: expected at least 0, got -1",
        ),
        (lambda s: s.model.loss_and_gradients((s.inputs, s.labels + 5), seed=0), ValueError, "labels: got "),
        (lambda s: s.model.loss_and_gradients((s.inputs, s.labels[:2]), seed=0), ValueError, "labels: expected shape"),
        (lambda s: s.model.loss_and_gradients(s.inputs, seed=0), ValueError, "labels: missing"),
        (lambda s: s.model.loss_and_gradients(s.inputs, seed=0, into=s.gradients), ValueError, "labels: missing"),
        (
            lambda s: s.model.loss_and_gradients((s.inputs, s.labels), seed=0, into=s.gradients),
            ValueError,
            "gradients: they",
        ),
        (
            lambda s: s.model.fit(iter([]), optimizer=s.optimizer, seed=0),
            TypeError,
            "data: an iterator cannot start again",
        ),
        (
            lambda s: s.model.fit([], optimizer=s.optimizer, progress=False, seed=0),
            ValueError,
            "data: an epoch has no batch",
        ),
        (
            lambda s: s.model.fit((s.inputs, s.labels[:2]), optimizer=s.optimizer, seed=0),
            ValueError,
            "data: expected arrays of one",
        ),
        (lambda s: models.BertClassifier(s.encoder, 0, seed=0), ValueError, "num_classes: got 0"),
        (
            lambda s: models.BertClassifier(s.encoder, 2, dropout_rate=1.0, seed=0),
            ValueError,
            "got 1, expected at least 0",
        ),
        (
            lambda s: models.BertPretrainerV2(s.encoder, seed=0)(s.inputs | {"masked_lm_positions": [[LENGTH]] * 4}),
            ValueError,
            "got",
        ),
    ],
)
def test_errors_name_the_argument(call: Callable[[Subjects], Any], kind: type[Exception], message: str) -> None:
    subjects = Subjects()
    with pytest.raises(kind, match=message):
        call(subjects)
    assert subjects.optimizer.iterations == 0


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    model = models.BertClassifier(small_encoder(), 1, seed=0)
    inputs, _ = labelled(4)
    before = model.get_weights()
    with pytest.raises(FloatingPointError, match="update 1 was not made: the loss is nan"):
        model.fit((inputs, np.full(4, np.nan)), optimizer=optimizers.AdamW(), progress=False, seed=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
