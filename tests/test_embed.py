"""Embeddings: the sum of three tables, norm, projection, and the dense inputs behind the words."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder
from isolated import encoder_with, inputs_of, normalised_rows

Array = np.ndarray[Any, Any]


def normalise(rows: Array) -> Array:
    rows = rows.astype(np.float64)
    centred = rows - rows.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)


def tables(rng: np.random.Generator, width: int = 8) -> dict[str, Array]:
    return {
        "word_embeddings/embeddings": rng.standard_normal((10, width)),
        "position_embedding/embeddings": rng.standard_normal((6, width)),
        "type_embeddings/embeddings": rng.standard_normal((2, width)),
    }


def ids_inputs(rng: np.random.Generator) -> dict[str, Array]:
    return {
        "input_word_ids": rng.integers(0, 10, (3, 6)),
        "input_mask": np.ones((3, 6), np.int32),
        "input_type_ids": rng.integers(0, 2, (3, 6)),
    }


def summed(t: dict[str, Array], inputs: dict[str, Array]) -> Array:
    words = t["word_embeddings/embeddings"][inputs["input_word_ids"]]
    types = t["type_embeddings/embeddings"][inputs["input_type_ids"]]
    return words + t["position_embedding/embeddings"] + types


def test_sum_of_three_tables(rng: np.random.Generator) -> None:
    weights, inputs = tables(rng), ids_inputs(rng)
    output = encoder_with(weights)(inputs)["sequence_output"]
    np.testing.assert_allclose(output, normalise(summed(weights, inputs)), atol=1e-5)


def test_positions_of_sequences_longer_than_a_block_of_rows(rng: np.random.Generator) -> None:
    """Rows are computed in blocks; positions count from the start of the sequence, not of the block."""
    positions = rng.standard_normal((700, 8))
    encoder = encoder_with({"position_embedding/embeddings": positions}, max_sequence_length=700)
    rows = normalised_rows(rng, 2, 700)
    output = encoder(inputs_of(rows))["sequence_output"]
    np.testing.assert_allclose(output, normalise(rows + positions), atol=1e-5)


def test_epsilon_is_tiny(rng: np.random.Generator) -> None:
    """With rows of scale 1e-4 an epsilon of 1e-6 would be the larger part of the variance."""
    weights = {name: 1e-4 * table for name, table in tables(rng).items()}
    inputs = ids_inputs(rng)
    output = encoder_with(weights)(inputs)["sequence_output"]
    np.testing.assert_allclose(output, normalise(summed(weights, inputs)), atol=1e-4)


@pytest.mark.parametrize("width", [3, 8, 20])
def test_projection_comes_after_the_norm(rng: np.random.Generator, width: int) -> None:
    weights, inputs = tables(rng, width), ids_inputs(rng)
    expected = normalise(summed(weights, inputs))
    if width != 8:
        weights["embedding_projection/kernel"] = rng.standard_normal((width, 8))
        weights["embedding_projection/bias"] = rng.standard_normal(8)
        expected = expected @ weights["embedding_projection/kernel"] + weights["embedding_projection/bias"]
    encoder = encoder_with(weights, embedding_width=width)
    assert any("projection" in weight.key for weight in encoder.weights) == (width != 8)
    np.testing.assert_allclose(encoder(inputs)["sequence_output"], expected, atol=2e-5)


@pytest.mark.parametrize("dense", [0, 1, 4, 6])
def test_dense_inputs_come_behind_the_words(rng: np.random.Generator, dense: int) -> None:
    rows = normalised_rows(rng, 2)
    inputs = inputs_of(rows)
    split = {
        **{name: value[:, : 6 - dense] for name, value in inputs.items()},
        "dense_inputs": rows[:, 6 - dense :],
        "dense_mask": inputs["input_mask"][:, 6 - dense :],
        "dense_type_ids": inputs["input_type_ids"][:, 6 - dense :],
    }
    encoder = encoder_with({"position_embedding/embeddings": rng.standard_normal((6, 8))})
    np.testing.assert_array_equal(encoder(split)["sequence_output"], encoder(inputs)["sequence_output"])


def test_types_outside_the_vocabulary_add_nothing_in_strict_semantics(rng: np.random.Generator) -> None:
    weights, inputs = tables(rng), ids_inputs(rng)
    inputs["input_type_ids"] = np.full((3, 6), 7)
    inputs["input_type_ids"][0] = -1
    expected = weights["word_embeddings/embeddings"][inputs["input_word_ids"]]
    expected = normalise(expected + weights["position_embedding/embeddings"])
    output = encoder_with(weights, semantics="keras_strict")(inputs)["sequence_output"]
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_word_embeddings_replace_the_ids(rng: np.random.Generator) -> None:
    """The ids are then not even looked at."""
    rows = normalised_rows(rng, 2)
    encoder = encoder_with({})
    wild = inputs_of(rows) | {"input_word_ids": np.full((2, 6), -5)}
    np.testing.assert_array_equal(encoder(wild)["sequence_output"], encoder(inputs_of(rows))["sequence_output"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_a_lookup_gives_rows_of_the_table(dtype: str) -> None:
    layer = small_encoder(dtype=dtype).get_embedding_layer()
    table = layer.embeddings.numpy()
    for ids in (3, [3, 0, 49], [[3, 3], [7, 1]], np.zeros((2, 0), np.uint8), np.array([[[4.0]]])):
        rows = layer(ids)
        np.testing.assert_array_equal(rows, table[np.asarray(ids, int)])
        assert rows.dtype == np.float32
        assert not np.shares_memory(rows, layer(ids))


def test_a_lookup_reads_rows_only() -> None:
    """Not the whole table, which takes far longer to copy."""
    encoder = small_encoder(vocab_size=200_000, num_layers=1, moe_layers=(), attention_layers=())
    layer = encoder.get_embedding_layer()

    def seconds(call: Any) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(lambda: layer([[1, 199_999]])) < seconds(layer.embeddings.numpy) / 10
