"""Every input that is given is used, checked or refused: a slip must not pass in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from encoders import LENGTH, VOCAB_SIZE, WIDTH, small_encoder, small_inputs
from sparse_mixer import models, plots, training
from sparse_mixer.masking import mask_tokens

Array = np.ndarray[Any, Any]
EMBEDDINGS = np.ones((2, LENGTH, WIDTH), np.float32)


@pytest.mark.parametrize("attention", [(), (2,)])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dense_mask": "rubbish"}, "dense_mask: given without dense_inputs"),
        ({"dense_mask": np.ones((2, 3))}, "dense_mask: given without dense_inputs"),
        ({"dense_type_ids": np.ones((2, 3), int)}, "dense_type_ids: given without dense_inputs"),
        ({"input_mask": "rubbish"}, "input_mask: expected"),
        ({"input_mask": np.ones((2, LENGTH - 1))}, "input_mask"),
        ({"input_mask": np.full((2, LENGTH), np.nan)}, "input_mask"),
        ({"input_word_embeddings": EMBEDDINGS, "input_word_ids": "rubbish"}, "input_word_ids: expected integers"),
        ({"input_word_embeddings": EMBEDDINGS, "input_word_ids": [[1, 2]]}, "the positions of input_word_ids"),
        ({"input_word_embeddings": EMBEDDINGS, "input_masks": [[1]]}, "inputs: unknown key 'input_masks'|input_mask"),
        ({"dense_input": EMBEDDINGS}, r"inputs: unknown key 'dense_input' \(is 'dense_inputs' meant\?\)"),
    ],
)
def test_encoders_check_what_they_do_not_need(attention: Any, more: dict[str, Any], message: str) -> None:
    encoder = small_encoder(attention_layers=attention)
    inputs = small_inputs() | more
    if "input_masks" in more:
        del inputs["input_mask"]
    for call in (encoder, encoder.vjp, models.BertClassifier(encoder, 2)):
        with pytest.raises((ValueError, TypeError), match=message):
            call(inputs)


def test_a_misspelt_mask_is_not_ignored() -> None:
    inputs = small_inputs()
    inputs["input_masks"] = inputs.pop("input_mask")
    with pytest.raises(ValueError, match=r"unknown key 'input_masks' \(is 'input_mask' meant\?\)"):
        small_encoder(attention_layers=())(inputs)


def test_other_keys_are_nobodys_business() -> None:
    encoder = small_encoder()
    more = {"labels": 3, "example_id": None, "masked_lm_positions": "x", "attention_mask": 1, "input_ids": [1]}
    expected = encoder(small_inputs())["pooled_output"]
    np.testing.assert_array_equal(encoder(small_inputs() | more)["pooled_output"], expected)


def pretraining() -> dict[str, Any]:
    return mask_tokens(small_inputs(), seed=0, mask_id=1, vocab_size=VOCAB_SIZE, special_ids=[0], max_predictions=2)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda b: (b, [0, 1]), "labels: BertPretrainerV2 finds its labels among the inputs"),
        (lambda b: (b, None, [0.5, 1.0]), "sample_weight: BertPretrainerV2 weighs predictions by masked_lm_weights"),
        (lambda b: b | {"next_sentence_labels": "x"}, "next_sentence_labels: expected integers"),
        (lambda b: b | {"next_sentence_labels": [0, 1, 2]}, "next_sentence_labels: "),
        (lambda b: b | {"next_sentence_label": [0, 1]}, None),
    ],
)
def test_pretrainers_check_what_they_do_not_need(batch: Any, message: str | None) -> None:
    model = models.BertPretrainerV2(small_encoder())
    given = batch(pretraining())
    if message is None:
        model.test_step(given)
        return
    for call in (model.test_step, lambda b: model.loss_and_gradients(b, seed=0)):
        with pytest.raises((ValueError, TypeError), match=message):
            call(given)


def test_other_calls_check_what_they_do_not_need() -> None:
    encoder = small_encoder()
    routing = encoder(small_inputs(), outputs=("routing",))["routing"]
    model = models.BertClassifier(encoder, 2)
    for call, message in [
        (lambda: encoder(small_inputs(), seed="x"), "seed: expected an integer"),
        (lambda: model(small_inputs(), seed="x"), "seed: expected an integer"),
        (lambda: plots.routing_figure(routing, [1], mask=np.ones(3)), r"mask: expected shape \[8\]"),
        (lambda: training.EarlyStopping(patience=0.5), "patience: expected an integer"),
        (lambda: training.EarlyStopping(min_delta="x"), "min_delta: expected a number"),
        (lambda: encoder.vjp(small_inputs())[1]({"encoder_outputs": [None] * 9}), "encoder_outputs"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            call()
