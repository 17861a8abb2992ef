"""Stored gradients of the reference encoder."""

from __future__ import annotations

import pytest
import sparse_mixer
from closeness import assert_gradients_close, assert_output_close
from golden_cases import golden_case, golden_names

NAMES = golden_names(gradients=True)


def test_there_are_four_cases() -> None:
    assert len(NAMES) == 4


@pytest.mark.parametrize("isa", sparse_mixer.cpu_info()["available"])
@pytest.mark.parametrize("name", NAMES)
def test_weights(name: str, isa: str) -> None:
    case = golden_case(name)
    assert case.gradients is not None
    encoder = sparse_mixer.SparseMixer(**case.config, isa=isa)
    encoder.set_weights(case.weights)
    outputs, vjp = encoder.vjp(case.inputs, training=case.training)
    for key in ("sequence_output", "pooled_output"):
        assert_output_close(key, outputs[key], case.outputs[key], case.noise[key])
    gradients = vjp({"sequence_output": case.gradients.d_sequence, "pooled_output": case.gradients.d_pooled})
    expected = dict(zip(case.weight_names, case.gradients.weights, strict=True))
    assert list(gradients)[: len(expected)] == list(expected)
    assert_gradients_close(list(expected), gradients, expected)


@pytest.mark.parametrize("name", NAMES)
def test_word_embeddings(name: str) -> None:
    """The rows looked up in the table, given as `input_word_embeddings`: same outputs, and their gradient."""
    case = golden_case(name)
    assert case.gradients is not None
    encoder = sparse_mixer.SparseMixer(**case.config)
    encoder.set_weights(case.weights)
    inputs = dict(case.inputs)
    inputs["input_word_embeddings"] = case.weights[0][inputs.pop("input_word_ids")]
    _, vjp = encoder.vjp(inputs, training=case.training)
    gradients = vjp({"sequence_output": case.gradients.d_sequence, "pooled_output": case.gradients.d_pooled})
    expected = dict(zip(case.weight_names, case.gradients.weights, strict=True))
    # Both are about the same rows; the table has no part in this call.
    del expected["word_embeddings/embeddings"]
    assert not gradients["word_embeddings/embeddings"].any()
    expected["input_word_embeddings"] = case.gradients.word_embeddings
    assert_gradients_close(list(expected), gradients, expected)
