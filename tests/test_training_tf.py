"""Training against TensorFlow: heads and their gradients, and loss curves of AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sparse_mixer
import tensorflow_reference as reference
from closeness import assert_gradients_close
from encoders import ARGUMENTS, LENGTH, VOCAB_SIZE, small_inputs
from sparse_mixer import models, optimizers, schedules, training
from sparse_mixer.masking import mask_tokens

with reference._quiet():
    import tensorflow as tf
    import tf_keras
    from official.modeling.optimization import lr_schedule
    from official.nlp.modeling import layers as official_layers
    from official.nlp.modeling import models as official_models

TF_ARGUMENTS = {key: value for key, value in ARGUMENTS.items() if key != "seed"}
NO_DROPOUT = {"output_dropout": 0.0, "attention_dropout": 0.0}
BATCH = 6


def encoders() -> tuple[Any, sparse_mixer.SparseMixer]:
    """The reference encoder and ours with its weights, without dropout."""
    theirs = reference.TensorFlowEncoder(TF_ARGUMENTS | NO_DROPOUT, small_inputs(BATCH)).layer
    ours = sparse_mixer.SparseMixer(**(ARGUMENTS | NO_DROPOUT))
    ours.set_weights([weight.numpy() for weight in theirs.weights])
    return theirs, ours


def compare(theirs: Any, ours: models.Model, their_head: Any, call: Any, batch: Any, loss: Any) -> None:
    """Compares outputs, loss and every gradient; `their_head` are its weights in the order of ours.

    Args:
        theirs: The reference encoder.
        ours: Our model.
        their_head: Variables of the reference's head.
        call: Computes the reference model's outputs.
        batch: What our model is trained on.
        loss: From the reference's outputs to its loss.
    """
    head_weights = [weight for head in ours.heads.values() for weight in head.weights]
    for mine, their in zip(head_weights, their_head, strict=True):
        mine.assign(their.numpy())
    with reference._quiet(), tf.GradientTape() as tape:
        expected = loss(call())
    sources = [*theirs.weights, *their_head]
    with reference._quiet():
        their_gradients = tape.gradient(expected, sources, unconnected_gradients="zero")
    metrics, gradients = ours.loss_and_gradients(batch, seed=0)
    assert metrics.means()["loss"] == pytest.approx(float(expected), rel=1e-5)
    keys = [weight.key for weight in [*ours.encoder.weights, *head_weights]]
    arrays = [tf.convert_to_tensor(gradient).numpy() for gradient in their_gradients]
    assert_gradients_close(keys, gradients, dict(zip(keys, arrays, strict=True)))


def mean_cross_entropy(labels: Any, logits: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def tensors(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: tf.constant(value) for name, value in inputs.items()}


@pytest.mark.parametrize("pooler", [True, False])
def test_classifier(pooler: bool) -> None:
    theirs, encoder = encoders()
    inputs, labels = small_inputs(BATCH), np.arange(BATCH) % 3
    with reference._quiet():
        model = official_models.BertClassifier(theirs, 3, dropout_rate=0.0, use_encoder_pooler=pooler)
        expected = model(tensors(inputs)).numpy()
    ours = models.BertClassifier(encoder, 3, dropout_rate=0.0, use_encoder_pooler=pooler, seed=0)
    assert [w.name for w in ours.heads["sentence_prediction"].weights] == [w.name for w in model.classifier.weights]
    compare(
        theirs,
        ours,
        model.classifier.weights,
        lambda: model(tensors(inputs), training=True),
        (inputs, labels),
        lambda logits: mean_cross_entropy(labels, logits),
    )
    np.testing.assert_allclose(ours(inputs), expected, atol=2e-5, rtol=1e-4)


def test_token_classifier() -> None:
    theirs, encoder = encoders()
    inputs = small_inputs(BATCH)
    labels = inputs["input_word_ids"].astype(np.int64) % 4
    with reference._quiet():
        model = official_models.BertTokenClassifier(theirs, 4, dropout_rate=0.0)
        expected = model(tensors(inputs))["logits"].numpy()
    ours = models.BertTokenClassifier(encoder, 4, dropout_rate=0.0, seed=0)
    compare(
        theirs,
        ours,
        model.classifier.weights,
        lambda: model(tensors(inputs), training=True),
        (inputs, labels),
        lambda outputs: mean_cross_entropy(labels, outputs["logits"]),
    )
    np.testing.assert_allclose(ours(inputs)["logits"], expected, atol=2e-5, rtol=1e-4)


def test_span_labeler() -> None:
    theirs, encoder = encoders()
    inputs = small_inputs(BATCH)
    starts, ends = np.arange(BATCH) % LENGTH, (np.arange(BATCH) + 2) % LENGTH
    with reference._quiet():
        model = official_models.BertSpanLabeler(theirs)
        expected = [logits.numpy() for logits in model(tensors(inputs))]
    ours = models.BertSpanLabeler(encoder, seed=0)
    compare(
        theirs,
        ours,
        model.span_labeling.weights,
        lambda: model(tensors(inputs), training=True),
        (inputs, (starts, ends)),
        lambda outputs: (mean_cross_entropy(starts, outputs[0]) + mean_cross_entropy(ends, outputs[1])) / 2,
    )
    np.testing.assert_allclose(ours(inputs), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("inner", "position"), [(16, 0), (16, -1), (0, 0), (None, 0)], ids=["first", "last", "all", "all, None"]
)
def test_pretrainer(inner: int | None, position: int) -> None:
    theirs, encoder = encoders()
    labels = np.arange(BATCH) % 2 if inner else small_inputs(BATCH)["input_word_ids"] % 2
    batch = mask_tokens(
        small_inputs(BATCH), seed=1, mask_id=1, vocab_size=VOCAB_SIZE, special_ids=range(4), max_predictions=3, rate=0.5
    )
    batch["masked_lm_weights"][2] = 0  # an example that counts for nothing
    with reference._quiet():
        head = official_layers.ClassificationHead(inner, 2, cls_token_idx=position, name="next_sentence")
        model = official_models.BertPretrainerV2(
            theirs, mlm_activation=tf_keras.activations.gelu, classification_heads=[head]
        )
        expected = {name: np.asarray(x) for name, x in model(tensors(batch)).items() if name != "encoder_outputs"}
    heads = [models.ClassificationHead(inner, 2, position)]
    ours = models.BertPretrainerV2(encoder, "gelu", classification_heads=heads, seed=0)
    lm = [weight for weight in model.masked_lm.weights if "word_embeddings" not in weight.name]

    def loss(outputs: Any) -> Any:
        entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["masked_lm_ids"], outputs["mlm_logits"])
        weights = batch["masked_lm_weights"]
        return tf.reduce_sum(entropies * weights) / weights.sum() + mean_cross_entropy(labels, outputs["next_sentence"])

    names = [weight.name.split("/", 1)[1] if weight.name.startswith("bert/") else weight.name for weight in lm]
    assert [weight.name for weight in ours.masked_lm.weights] == names
    compare(
        theirs,
        ours,
        [*lm, *head.weights],
        lambda: model(tensors(batch), training=True),
        batch | {"next_sentence_labels": labels},
        loss,
    )
    actual = ours(batch)
    for name in ("mlm_logits", "next_sentence", "pooled_output"):
        np.testing.assert_allclose(actual[name], expected[name], atol=2e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("output", ["logits", "predictions"])
def test_styles_of_output(output: str) -> None:
    theirs, encoder = encoders()
    inputs = small_inputs(BATCH)
    with reference._quiet():
        tokens = official_models.BertTokenClassifier(theirs, 3, output=output, output_encoder_outputs=True)
        spans = official_models.BertSpanLabeler(theirs, output=output)
        expected = {name: np.asarray(values) for name, values in tokens(tensors(inputs)).items()}
        expected_spans = [np.asarray(values) for values in spans(tensors(inputs))]
    ours = models.BertTokenClassifier(encoder, 3, output=output, output_encoder_outputs=True, seed=0)
    our_spans = models.BertSpanLabeler(encoder, output=output, seed=0)
    for model, head, weights in (
        (ours, "predictions", tokens.classifier.weights),
        (our_spans, "span_labeling", spans.span_labeling.weights),
    ):
        for mine, their in zip(model.heads[head].weights, weights, strict=True):
            mine.assign(their.numpy())
    actual = ours(inputs)
    assert list(actual) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(our_spans(inputs), expected_spans, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("PolynomialDecay", (0.1, 10)),
        ("PolynomialDecay", (0.1, 1, 0.2)),
        ("PolynomialDecay", (0.1, 10, 0.01, 0.5)),
        ("CosineDecay", (0.1, 10)),
        ("CosineDecay", (0.1, 10, 0.5)),
    ],
)
def test_schedules_at_their_corners(name: str, arguments: tuple[Any, ...]) -> None:
    their, own = getattr(tf_keras.optimizers.schedules, name)(*arguments), getattr(schedules, name)(*arguments)
    for step in (0, 1, 5, 9, 10, 11, 1000):
        assert own(tf.constant(step)) == pytest.approx(float(their(step)), rel=1e-5, abs=1e-8)
    for warmup in (0, 1, 3, 9):
        if warmup >= arguments[1]:
            continue  # draws a warning: the decay would be over
        by_theirs = schedules.LinearWarmup(their, warmup)
        reference_warmup = lr_schedule.LinearWarmup(their, warmup, 0.0)
        for step in (0, 1, 2, 3, 9, 10, 11):
            assert by_theirs(step) == pytest.approx(float(reference_warmup(step)), rel=1e-5, abs=1e-8)
            assert schedules.LinearWarmup(own, warmup)(step) == pytest.approx(by_theirs(step), rel=1e-5, abs=1e-8)


def test_other_schedules() -> None:
    assert schedules.Constant(1e-3)(tf.constant(1.0)) == 1e-3
    decay = tf_keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
    assert schedules.LinearWarmup(decay, 3)(8) == pytest.approx(float(decay(8)), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([3, 2, 1, 1, 1, 1], {}),
        ([3, 2, 1, 1, 1, 1], {"patience": 1}),
        ([3, 2, 1, 1, 1, 1], {"patience": 2}),
        ([1, 2, 3], {}),
        ([float("nan"), 1, 2], {}),
        ([1, float("nan"), float("nan")], {"patience": 2}),
        ([1, 0.95, 0.9], {"min_delta": 0.1}),
        ([1, 0.95, 0.9], {"min_delta": -0.1}),
        ([1, 2, 3], {"monitor": "acc"}),
        ([1, 2, 3], {"monitor": "accuracy"}),
        ([3, 2], {"monitor": "auc"}),
    ],
)
def test_early_stopping_at_its_corners(values: list[float], options: dict[str, Any]) -> None:
    monitor = options.get("monitor", "loss")
    their = tf_keras.callbacks.EarlyStopping(**{"monitor": monitor, **options})
    their.model = type("M", (), {"stop_training": False, "get_weights": list})()
    own = training.EarlyStopping(**{"monitor": monitor, **options})
    run = type("T", (), {"epoch": 0, "stopped": False, "finish": lambda self: setattr(self, "stopped", True)})()
    their.on_train_begin()
    for epoch, value in enumerate(values):
        run.epoch = epoch
        their.on_epoch_end(epoch, {monitor: value})
        own.on_epoch_end(run, {monitor: value})
        assert run.stopped == their.model.stop_training, epoch
        if run.stopped:
            break


def test_200_steps_of_adamw_follow_tensorflow() -> None:
    """The same data without dropout: loss curves within 1e-3 throughout."""
    theirs, encoder = encoders()
    with reference._quiet():
        model = official_models.BertClassifier(theirs, 3, dropout_rate=0.0)
        optimizer = tf_keras.optimizers.AdamW(1e-3, weight_decay=0.01, global_clipnorm=1.0, jit_compile=False)
        optimizer.exclude_from_weight_decay(var_names=list(optimizers.NORMS_AND_BIASES))
        optimizer.build(model.trainable_variables)
    ours = models.BertClassifier(encoder, 3, dropout_rate=0.0, seed=0)
    for mine, their in zip(ours.heads["sentence_prediction"].weights, model.classifier.weights, strict=True):
        mine.assign(their.numpy())

    @tf.function
    def step(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = mean_cross_entropy(labels, model(inputs, training=True))
        variables = model.trainable_variables
        # Dense: in the norm of sparse gradients TensorFlow counts a word once per occurrence, before adding them up.
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    adamw = optimizers.AdamW(1e-3, weight_decay=0.01, global_clipnorm=1.0)
    curves = []
    for number in range(200):
        inputs = small_inputs(BATCH, seed=1000 + number)
        labels = inputs["input_word_ids"].astype(np.int64).sum(1) % 3
        metrics, gradients = ours.loss_and_gradients((inputs, labels), seed=0)
        adamw.apply_gradients(ours, gradients)
        with reference._quiet():
            curves.append((metrics.means()["loss"], float(step(tensors(inputs), tf.constant(labels)))))
    ours_curve, theirs_curve = np.array(curves).T
    np.testing.assert_allclose(ours_curve, theirs_curve, rtol=1e-3)
    assert theirs_curve[-20:].mean() < theirs_curve[:20].mean()


def test_weights_that_the_loss_does_not_reach_do_not_decay() -> None:
    """A pre-trainer without a head on the pooler, every weight subject to decay: 20 updates as TensorFlow's."""
    theirs, encoder = encoders()
    with reference._quiet():
        model = official_models.BertPretrainerV2(theirs, mlm_activation=tf_keras.activations.gelu)
        model(tensors(batch_for_masked_lm(0)))
        optimizer = tf_keras.optimizers.AdamW(1e-3, weight_decay=0.1, jit_compile=False)
    ours = models.BertPretrainerV2(encoder, "gelu", seed=0)
    lm = [weight for weight in model.masked_lm.weights if "word_embeddings" not in weight.name]
    for mine, their in zip(ours.masked_lm.weights, lm, strict=True):
        mine.assign(their.numpy())
    adamw = optimizers.AdamW(1e-3, weight_decay=0.1, exclude_from_weight_decay=())
    start = encoder.get_weights()
    variables = [*theirs.trainable_variables, *lm]

    @tf.function
    def step(batch: Any) -> None:
        with tf.GradientTape() as tape:
            logits = model(batch, training=True)["mlm_logits"]
            entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["masked_lm_ids"], logits)
            loss = tf.reduce_sum(entropies * batch["masked_lm_weights"]) / tf.reduce_sum(batch["masked_lm_weights"])
            loss += sum(theirs.losses)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    for number in range(20):
        batch = batch_for_masked_lm(number)
        _, gradients = ours.loss_and_gradients(batch, seed=0)
        adamw.apply_gradients(ours, gradients)
        with reference._quiet():
            step(tensors(batch))
    unchanged = set()
    for mine, their, before in zip(encoder.weights, theirs.weights, start, strict=True):
        np.testing.assert_allclose(mine.numpy(), their.numpy(), atol=2e-4, err_msg=mine.key)
        if np.array_equal(mine.numpy(), before):
            np.testing.assert_array_equal(their.numpy(), before)
            unchanged.add(mine.key)
    assert unchanged == {"pooler_transform/kernel", "pooler_transform/bias"}


def batch_for_masked_lm(seed: int) -> dict[str, Any]:
    return mask_tokens(
        small_inputs(BATCH, seed), seed=seed, mask_id=1, vocab_size=VOCAB_SIZE, special_ids=range(4), max_predictions=3
    )
