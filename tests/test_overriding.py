"""Subclasses: an own `call` is what a call does, as in Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from encoders import ARGUMENTS, WIDTH, small_encoder, small_inputs
from sparse_mixer import SparseMixer, models, optimizers


class Doubled(SparseMixer):
    """As one would write it for Keras."""

    def call(self, inputs: Any, training: Any = None) -> Any:  # type: ignore[override]
        outputs = super().call(inputs, training=training)
        return {**outputs, "pooled_output": 2 * outputs["pooled_output"]}


class Noted(SparseMixer):
    """With all arguments, and a gradient."""

    seen: tuple[Any, ...] = ()

    def call(self, inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        self.seen = (*self.seen, tuple(sorted(options)))
        return super().call(inputs, **options)

    def vjp(self, inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        return super().vjp(inputs, **options)


def test_an_encoders_own_call_is_called() -> None:
    plain, doubled = small_encoder(), Doubled(**ARGUMENTS)
    inputs = small_inputs()
    np.testing.assert_array_equal(doubled(inputs)["pooled_output"], 2 * plain(inputs)["pooled_output"])
    noted = Noted(**ARGUMENTS)
    noted(inputs)
    noted(inputs, training=True, seed=1, outputs=("pooled_output",), check_finite=True)
    assert noted.seen == ((), ("check_finite", "outputs", "seed", "training"))


def test_a_call_that_has_no_gradient_is_not_trained_in_silence() -> None:
    data = (small_inputs(4), np.arange(4) % 2)
    with pytest.raises(TypeError, match="vjp: Doubled overrides call, which cannot be differentiated"):
        models.BertClassifier(Doubled(**ARGUMENTS), 2).fit(data, optimizer=optimizers.SGD(), progress=False)
    models.BertClassifier(Noted(**ARGUMENTS), 2).fit(data, optimizer=optimizers.SGD(), progress=False)


def test_a_models_own_call_is_called() -> None:
    class Probabilities(models.BertClassifier):
        def call(self, inputs: Any) -> Any:  # type: ignore[override]
            logits = super().call(inputs)
            return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    model = Probabilities(small_encoder(), 3)
    np.testing.assert_allclose(model(small_inputs()).sum(-1), 1, rtol=1e-6)


def test_shapes_of_classification_heads() -> None:
    inputs = small_inputs()
    expected = {
        models.ClassificationHead(0, 3): (2, 8, 3),
        models.ClassificationHead(None, 3): (2, 8, 3),
        models.ClassificationHead(5, 3): (2, 3),
        models.ClassificationHead(5, 3, -1): (2, 3),
        models.ClassificationHead(0, 3, use_encoder_pooler=True): (2, 3),
    }
    for head, shape in expected.items():
        model = models.BertPretrainerV2(small_encoder(), classification_heads=[head])
        assert model(inputs)["next_sentence"].shape == shape
    with pytest.raises(ValueError, match="activation: expected 'tanh', got 'relu'"):
        models.ClassificationHead(5, 3, 0, "relu")
    with pytest.raises(ValueError, match="cls_token_idx: got 8, but there are 8 positions"):
        models.BertPretrainerV2(small_encoder(), classification_heads=[models.ClassificationHead(5, 3, 8)])(inputs)


def test_a_head_on_all_positions_has_the_slope_that_its_gradients_say() -> None:
    from sparse_mixer.masking import mask_tokens

    encoder = small_encoder(output_dropout=0.0, attention_dropout=0.0)
    heads = [models.ClassificationHead(0, 3), models.ClassificationHead(WIDTH, 2, -2, name="last")]
    model = models.BertPretrainerV2(encoder, classification_heads=heads, seed=0)
    inputs = small_inputs(4)
    batch = mask_tokens(inputs, seed=0, mask_id=1, vocab_size=50, special_ids=range(4), max_predictions=2) | {
        "next_sentence_labels": inputs["input_word_ids"] % 3,
        "last_labels": inputs["input_word_ids"][:, 0] % 2,
    }
    before = model.get_weights()
    _, gradients = model.loss_and_gradients(batch, seed=0)
    rate = 1e-3 / gradients.global_norm() ** 2
    losses = []
    for sign in (-1, 1):
        for variable in model.weights:
            variable.assign(variable.numpy() + sign * rate * gradients[variable.key])
        losses.append(model.loss_and_gradients(batch, seed=0)[0].means()["loss"])
        model.set_weights(before)
    assert losses[1] - losses[0] == pytest.approx(2e-3, rel=0.03)


def test_the_arguments_of_the_models_are_the_references() -> None:
    inputs = small_inputs()
    model = models.BertTokenClassifier(small_encoder(), 3, "glorot_uniform", "predictions", 0.1, True, seed=0)
    outputs = model(inputs)
    assert list(outputs) == ["predictions", "encoder_outputs"]
    np.testing.assert_allclose(np.exp(outputs["predictions"]).sum(-1), 1, rtol=1e-5)
    start, end = models.BertSpanLabeler(small_encoder(), "glorot_uniform", "predictions", seed=0)(inputs)
    np.testing.assert_allclose(np.exp(start).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(end).sum(-1), 1, rtol=1e-5)
    for call in (
        lambda: models.BertTokenClassifier(small_encoder(), 3, output="rubbish"),
        lambda: models.BertSpanLabeler(small_encoder(), output="rubbish"),
    ):
        with pytest.raises(ValueError, match="output: expected 'logits' or 'predictions', got 'rubbish'"):
            call()
