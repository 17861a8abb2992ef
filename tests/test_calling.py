"""Calls of the encoder: what goes in, what comes out, seeds of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from encoders import LENGTH, WIDTH, assert_same_outputs, small_encoder, small_inputs


def test_outputs_have_the_references_form() -> None:
    outputs = small_encoder()(small_inputs(batch=3))
    assert list(outputs) == ["sequence_output", "pooled_output", "encoder_outputs"]
    assert outputs["pooled_output"].shape == (3, WIDTH)
    assert [output.shape for output in outputs["encoder_outputs"]] == [(3, LENGTH, WIDTH)] * 3
    np.testing.assert_array_equal(outputs["sequence_output"], outputs["encoder_outputs"][-1])
    assert {outputs["sequence_output"].dtype, outputs["pooled_output"].dtype} == {np.dtype(np.float32)}


def test_selected_outputs_equal_those_of_the_full_call() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    full = encoder(inputs)
    for names in (("pooled_output",), ("sequence_output",), ("encoder_outputs", "pooled_output"), ()):
        chosen = encoder(inputs, outputs=names)
        assert_same_outputs(chosen, {name: full[name] for name in chosen})
        assert set(chosen) == set(names)


def test_routing_can_be_asked_for() -> None:
    (routing,) = small_encoder()(small_inputs(), outputs=("routing",))["routing"]
    assert routing["probabilities"].shape == (2, LENGTH, 4)
    assert routing["indices"].shape == (2, 4, 2)
    assert routing["indices"].dtype == np.int32
    np.testing.assert_allclose(routing["probabilities"].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("convert", [np.int64, np.int8, np.uint8, np.uint16, np.float32, ">i4"])
def test_ids_of_any_integral_type(convert: Any) -> None:
    inputs = small_inputs()
    converted = {key: value.astype(convert) for key, value in inputs.items()}
    encoder = small_encoder()
    assert_same_outputs(encoder(converted), encoder(inputs))


def test_lists_and_strided_arrays_are_accepted() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    expected = encoder(inputs)
    assert_same_outputs(encoder({key: value.tolist() for key, value in inputs.items()}), expected)
    assert_same_outputs(encoder({key: np.repeat(value, 2, 1)[:, ::2] for key, value in inputs.items()}), expected)
    assert_same_outputs(encoder({key: np.asfortranarray(value) for key, value in inputs.items()}), expected)
    assert_same_outputs(encoder(inputs | {"unknown_key": "ignored"}), expected)


def test_word_embeddings_replace_the_ids() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    table = encoder.get_embedding_table().numpy()
    ids = inputs["input_word_ids"]
    given = inputs | {"input_word_embeddings": table[ids], "input_word_ids": ids + 1000}
    assert_same_outputs(encoder(given), encoder(inputs))
    del given["input_word_ids"]
    given["input_word_embeddings"] = table[ids].astype(np.float64)
    assert_same_outputs(encoder(given), encoder(inputs))


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("words", [0, 5, LENGTH])
def test_dense_inputs_come_last(words: int, flag: bool) -> None:
    encoder, inputs = small_encoder(with_dense_inputs=flag), small_inputs()
    dense = encoder.get_embedding_table().numpy()[inputs["input_word_ids"]]
    split = {key: value[:, :words] for key, value in inputs.items()} | {
        "dense_inputs": dense[:, words:],
        "dense_mask": inputs["input_mask"][:, words:],
        "dense_type_ids": inputs["input_type_ids"][:, words:],
    }
    assert_same_outputs(encoder(split), encoder(inputs))
    assert len(encoder.inputs) == (6 if flag else 3)


def test_mask_is_optional_without_attention() -> None:
    encoder, inputs = small_encoder(attention_layers=()), small_inputs()
    expected = encoder(inputs)
    assert_same_outputs(encoder(inputs | {"input_mask": None}), expected)
    del inputs["input_mask"]
    assert_same_outputs(encoder(inputs), expected)


def test_empty_batches_give_empty_outputs() -> None:
    outputs = small_encoder()(small_inputs(batch=0))
    assert outputs["sequence_output"].shape == (0, LENGTH, WIDTH)
    assert outputs["pooled_output"].shape == (0, WIDTH)


def test_inputs_are_described() -> None:
    inputs = small_encoder().inputs
    assert {name: spec.shape for name, spec in inputs.items()} == {
        "input_word_ids": (None, LENGTH),
        "input_mask": (None, LENGTH),
        "input_type_ids": (None, LENGTH),
    }
    dense = small_encoder(with_dense_inputs=True, embedding_width=6).inputs["dense_inputs"]
    assert dense == ("dense_inputs", (None, None, 6), "float32")


# Training


@pytest.mark.parametrize("flag", [True, 1, np.bool_(True), np.ones((), bool)])
def test_training_is_repeatable_by_seed(flag: Any) -> None:
    encoder, inputs = small_encoder(), small_inputs()
    first = encoder(inputs, training=flag, seed=3)
    assert_same_outputs(encoder(inputs, training=True, seed=3), first)
    other = encoder(inputs, training=True, seed=4)
    assert (other["pooled_output"] != first["pooled_output"]).any()


def test_training_calls_without_a_seed_differ_but_repeat_with_the_encoder() -> None:
    def two_calls() -> list[dict[str, Any]]:
        encoder = small_encoder()
        return [encoder(small_inputs(), training=True) for _ in range(2)]

    (one, two), (one_again, two_again) = two_calls(), two_calls()
    assert (one["pooled_output"] != two["pooled_output"]).any()
    assert_same_outputs(one, one_again)
    assert_same_outputs(two, two_again)


@pytest.mark.parametrize("flag", [None, False, 0])
def test_inference_ignores_seed_and_dropout(flag: Any) -> None:
    encoder, inputs = small_encoder(output_dropout=0.5), small_inputs()
    assert_same_outputs(encoder(inputs, training=flag, seed=1), encoder(inputs))
