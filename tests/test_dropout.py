"""Dropout: where it acts, how much it drops, and that a seed repeats it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from isolated import encoder_with, inputs_of, normalised_rows

Array = np.ndarray[Any, Any]

NONE = {"output_dropout": 0.0, "attention_dropout": 0.0}


def train(encoder: Any, rows: Array, seed: int = 1) -> Array:
    output: Array = encoder(inputs_of(rows), training=True, seed=seed)["sequence_output"]
    return output


def test_embeddings(rng: np.random.Generator) -> None:
    """Kept values are divided by 1 - rate; a quarter of them becomes zero. No other layer does anything here."""
    rows = normalised_rows(rng, 64, 32, 16)
    encoder = encoder_with({}, output_dropout=0.25, max_sequence_length=32, hidden_size=16)
    output = train(encoder, rows)
    kept = output != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(output[kept], rows[kept] / 0.75, rtol=1e-4, atol=1e-5)
    # No pattern along any axis: each slice keeps its share.
    for axes in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(kept.mean(axis=axes) - 0.75).max() < 0.12


def test_same_seed_same_drops(rng: np.random.Generator) -> None:
    rows = normalised_rows(rng, 4)
    encoder = encoder_with({}, output_dropout=0.5)
    np.testing.assert_array_equal(train(encoder, rows, 7), train(encoder, rows, 7))
    assert (train(encoder, rows, 7) != train(encoder, rows, 8)).any()


def test_successive_calls_drop_differently(rng: np.random.Generator) -> None:
    rows = normalised_rows(rng, 4)
    encoder = encoder_with({}, output_dropout=0.5, seed=3)
    first = encoder(inputs_of(rows), training=True)["sequence_output"]
    assert (first != encoder(inputs_of(rows), training=True)["sequence_output"]).any()


@pytest.mark.parametrize("training", [False, None, True])
def test_inactive_without_training_or_rate(rng: np.random.Generator, training: bool | None) -> None:
    rows = normalised_rows(rng, 4)
    encoder = encoder_with({}, **(NONE if training else {"output_dropout": 0.5, "attention_dropout": 0.5}))
    output = encoder(inputs_of(rows), training=training)["sequence_output"]
    np.testing.assert_allclose(output, rows, atol=1e-5)


def test_attention_probabilities(rng: np.random.Generator) -> None:
    """Values are all ones, so each output is the sum of its kept probabilities over 1 - rate."""
    rows = normalised_rows(rng, 64, 16)
    encoder = encoder_with(
        {"self_attention/value/bias": 1.0, "attention_output/kernel": np.eye(8).reshape(1, 8, 8)},
        attention_layers=(0,),
        max_sequence_length=16,
        output_dropout=0.0,
        attention_dropout=0.25,
    )
    added = train(encoder, rows) - rows
    # Uniform probabilities: k of 16 kept gives k / 16 / 0.75, equal in the whole row of one head.
    kept = added * 16 * 0.75
    np.testing.assert_allclose(kept, kept.round(), atol=1e-3)
    np.testing.assert_allclose(kept, np.broadcast_to(kept[..., :1], kept.shape), atol=1e-3)
    assert kept.mean() == pytest.approx(12, abs=0.3)
    assert kept.std() == pytest.approx(np.sqrt(16 * 0.75 * 0.25), rel=0.15)


@pytest.mark.parametrize("semantics", ["keras", "paper"])
def test_attention_heads_share_their_drops_in_the_paper(rng: np.random.Generator, semantics: str) -> None:
    """Each of two heads adds the sum of its kept probabilities to its half of the row."""
    rows = normalised_rows(rng, 8, 16)
    encoder = encoder_with(
        {"self_attention/value/bias": 1.0, "attention_output/kernel": np.eye(8).reshape(2, 4, 8)},
        attention_layers=(0,),
        num_attention_heads=2,
        max_sequence_length=16,
        output_dropout=0.0,
        attention_dropout=0.25,
        semantics=semantics,
        project_embeddings=False,
    )
    kept = np.round((train(encoder, rows) - rows) * 16 * 0.75)
    assert len(np.unique(kept)) > 3
    assert (kept[..., 0] == kept[..., 4]).all() == (semantics == "paper")
    assert (kept[0] == kept[1]).all() == (semantics == "paper")


@pytest.mark.parametrize("semantics", ["keras", "keras_strict"])
def test_block_dropout_depends_on_semantics(rng: np.random.Generator, semantics: str) -> None:
    """TensorFlow drops the blocks' dropout rate; by default we honour it, strictly we drop it, too."""
    rows = normalised_rows(rng, 16)
    # The only non-zero part: a feed-forward layer that adds 1000 to a stream of order 1.
    encoder = encoder_with({"output/bias": 1000.0}, output_dropout=0.5, semantics=semantics)
    output = train(encoder, rows)
    added = (np.abs(output) > 500).mean()
    if semantics == "keras":
        assert added == pytest.approx(0.5, abs=0.1)
        assert output.max() == pytest.approx(2000, abs=20)
    else:
        assert added == 1.0
        assert output.max() == pytest.approx(1000, abs=20)


def test_experts(rng: np.random.Generator) -> None:
    """Dropped after the second bias, before the probability is multiplied in."""
    rows = normalised_rows(rng, 16)
    encoder = encoder_with(
        {"experts/output/bias": 1000.0},
        moe_layers=(0,),
        num_experts=1,
        output_dropout=0.5,
        semantics="keras_strict",
    )
    output = train(encoder, rows)
    added = (np.abs(output) > 500).mean()
    assert added == pytest.approx(0.5, abs=0.1)
    assert output.max() == pytest.approx(2000, abs=20)
