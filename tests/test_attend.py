"""Attention: scale, mask arithmetic, and which stream keys and values come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_numpy
from isolated import added_by, encoder_with, inputs_of, normalised_rows

Array = np.ndarray[Any, Any]
HEADS, SIZE = 2, 4


def identity_heads() -> Array:
    return np.eye(8).reshape(8, HEADS, SIZE)


def attention_weights(scale: float = 1.0) -> dict[str, Array]:
    """Queries, keys and values are the stream itself, times `scale` for the queries; so is the output."""
    return {
        "self_attention/query/kernel": scale * identity_heads(),
        "self_attention/key/kernel": identity_heads(),
        "self_attention/value/kernel": identity_heads(),
        "attention_output/kernel": np.eye(8).reshape(HEADS, SIZE, 8),
    }


def attended(rows: Array, adder: Array | None = None) -> Array:
    """The formula, with `adder` [B, S] on the scores, added in float32."""
    heads = rows.reshape(*rows.shape[:2], HEADS, SIZE).transpose(0, 2, 1, 3).astype(np.float64)
    scores = heads @ heads.transpose(0, 1, 3, 2) / np.sqrt(SIZE)
    if adder is not None:
        scores = scores.astype(np.float32) + adder[:, None, None, :].astype(np.float32)
    scores = scores.astype(np.float64)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = weights / weights.sum(axis=-1, keepdims=True) @ heads
    return mixed.transpose(0, 2, 1, 3).reshape(rows.shape)


def build(**arguments: Any) -> Any:
    return encoder_with(attention_weights(), attention_layers=(0,), num_attention_heads=HEADS, **arguments)


def test_formula(rng: np.random.Generator) -> None:
    rows = normalised_rows(rng, 3)
    np.testing.assert_allclose(added_by(build(), rows), attended(rows), atol=2e-5)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param([1, 1, 1, 1, 0, 0], id="padding"),
        pytest.param([0, 0, 0, 0, 0, 0], id="nothing visible: uniform"),
        pytest.param([2, 2, 2, 2, 2, 2], id="all two: uniform"),
        pytest.param([2, 1, 1, 1, 1, 1], id="a two takes all"),
        pytest.param([1, 0.999999, 0.9999999, 1, 1, 1], id="almost one"),
        pytest.param([-1, 0, 0, -1, 0, 0], id="negative below zero"),
        pytest.param([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], id="halves: scores rounded to multiples of 32"),
    ],
)
def test_mask_is_a_number_not_a_truth_value(rng: np.random.Generator, row: list[float]) -> None:
    rows = normalised_rows(rng, 2)
    mask = np.array([row, [1] * 6], np.float32)
    expected = attended(rows, (1 - mask) * np.float32(-1e9))
    np.testing.assert_allclose(added_by(build(), rows, mask), expected, atol=2e-5)


def test_nothing_visible_is_uniform_over_all_positions(rng: np.random.Generator) -> None:
    rows = normalised_rows(rng, 1)
    added = added_by(build(), rows, np.zeros((1, 6), np.int32))
    np.testing.assert_allclose(added, np.broadcast_to(rows.mean(axis=1, keepdims=True), rows.shape), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_mask_types(rng: np.random.Generator, dtype: type[Any]) -> None:
    rows = normalised_rows(rng, 1)
    mask = np.array([[1, 1, 0, 1, 0, 0]])
    np.testing.assert_array_equal(added_by(build(), rows, mask.astype(dtype)), added_by(build(), rows, mask))


def test_prenorm_keys_and_values_come_from_the_unnormalised_stream(rng: np.random.Generator) -> None:
    rows = normalised_rows(rng, 2)
    # gamma = 3 before the block: the stream is 3 * rows, the normalised stream rows.
    encoder = encoder_with(
        attention_weights() | {"embeddings/layer_norm/gamma": 3.0},
        attention_layers=(0,),
        num_attention_heads=HEADS,
    )
    added = encoder(inputs_of(rows))["sequence_output"] - 3 * rows
    heads = rows.reshape(2, 6, HEADS, SIZE).transpose(0, 2, 1, 3)
    weights = reference_numpy.softmax(heads @ (3 * heads).transpose(0, 1, 3, 2) / np.sqrt(SIZE))
    expected = (weights @ (3 * heads)).transpose(0, 2, 1, 3).reshape(rows.shape)
    np.testing.assert_allclose(added, expected, atol=5e-5)


def test_large_scores_do_not_overflow(rng: np.random.Generator) -> None:
    rows = normalised_rows(rng, 1)
    encoder = encoder_with(attention_weights(scale=1e4), attention_layers=(0,), num_attention_heads=HEADS)
    assert np.isfinite(added_by(encoder, rows)).all()


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 130])
def test_sequence_lengths_around_block_sizes(rng: np.random.Generator, length: int) -> None:
    rows = normalised_rows(rng, 2, length)
    mask = (np.arange(length) < max(1, length - 3)).astype(np.float32)[None].repeat(2, axis=0)
    expected = attended(rows, (1 - mask) * np.float32(-1e9))
    np.testing.assert_allclose(added_by(build(max_sequence_length=length), rows, mask), expected, atol=2e-5)
