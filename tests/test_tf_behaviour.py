"""What TensorFlow's own tests assert of this network (sparse_mixer_test.py, moe_test.py), asserted of ours.

Their tests of single layers become tests of encoders whose other parts are switched off by zero weights.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference_numpy
import sparse_mixer
from isolated import added_by, encoder_with, inputs_of, normalised_rows
from sparse_mixer import MixingMechanism

Array = np.ndarray[Any, Any]

# The norm in front of the sublayer then gives ones whatever comes in, as TensorFlow's tests feed it.
ONES_INTO_THE_FEED_FORWARD = {"output_layer_norm/gamma": 0.0, "output_layer_norm/beta": 1.0}


def example(batch: int, length: int, vocab: int = 100) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "input_word_ids": rng.integers(0, vocab, (batch, length)),
        "input_mask": np.ones((batch, length), np.int32),
        "input_type_ids": np.zeros((batch, length), np.int32),
    }


# --- sparse_mixer_test.py ---


@pytest.mark.parametrize(
    ("mixing_mechanism", "moe_layers", "attention_layers"),
    [
        pytest.param(MixingMechanism.LINEAR, (1,), (2,), id="sparse_mixer"),
        pytest.param(MixingMechanism.FOURIER, (), (), id="fnet"),
        pytest.param(MixingMechanism.HARTLEY, (0, 1, 2), (1, 2), id="sparse_hnet"),
        pytest.param(MixingMechanism.LINEAR, (0, 1, 2), (0, 1, 2), id="sparse_bert"),
    ],
)
def test_network(
    mixing_mechanism: MixingMechanism, moe_layers: tuple[int, ...], attention_layers: tuple[int, ...]
) -> None:
    encoder = sparse_mixer.SparseMixer(
        vocab_size=100,
        hidden_size=16,
        num_attention_heads=2,
        max_sequence_length=32,
        num_layers=3,
        moe_layers=moe_layers,
        num_experts=8,
        mixing_mechanism=mixing_mechanism,
        attention_layers=attention_layers,
    )
    outputs = encoder(example(4, 32))
    assert isinstance(encoder.transformer_layers, list)
    assert len(encoder.transformer_layers) == 3
    assert [weight.shape for weight in encoder.pooler_layer.weights] == [(16, 16), (16,)]
    assert outputs["sequence_output"].shape == (4, 32, 16)
    assert outputs["pooled_output"].shape == (4, 16)
    assert outputs["sequence_output"].dtype == outputs["pooled_output"].dtype == np.float32


def test_embeddings_as_inputs() -> None:
    encoder = sparse_mixer.SparseMixer(
        vocab_size=100,
        hidden_size=32,
        num_attention_heads=2,
        max_sequence_length=8,
        num_layers=3,
        moe_layers=(1,),
        num_experts=4,
        attention_layers=(2,),
    )
    inputs = example(2, 8)
    by_ids = encoder(inputs)
    ids = inputs.pop("input_word_ids")
    outputs = encoder(inputs | {"input_word_embeddings": encoder.get_embedding_layer()(ids)})
    assert len(outputs["encoder_outputs"]) == 3
    for output, same in zip(outputs["encoder_outputs"], by_ids["encoder_outputs"], strict=True):
        assert output.shape == (2, 8, 32)
        assert output.dtype == np.float32
        np.testing.assert_array_equal(output, same)
    assert outputs["pooled_output"].shape == (2, 32)
    assert outputs["pooled_output"].dtype == np.float32


# --- moe_test.py ---


def test_router_z_loss_of_known_logits(rng: np.random.Generator) -> None:
    encoder = encoder_with({"router_weights/bias": [10.0, 5.0]}, moe_layers=(0,), num_experts=2)
    encoder(inputs_of(normalised_rows(rng, 2)))
    expected = (5 + math.log(math.exp(5) + 1)) ** 2
    assert encoder.aux_losses["unscaled_router_z_loss"][0] == pytest.approx(expected, rel=1e-6)
    assert encoder.aux_losses["unscaled_router_z_loss"].dtype == np.float32
    assert encoder.aux_losses["router_z_loss"][0] == 0.0


def test_router_z_loss_of_equal_logits(rng: np.random.Generator) -> None:
    encoder = encoder_with({"router_weights/bias": 1.0}, moe_layers=(0,), num_experts=7)
    encoder(inputs_of(normalised_rows(rng, 2)))
    expected = (math.log(7) + 1) ** 2
    assert encoder.aux_losses["unscaled_router_z_loss"][0] == pytest.approx(expected, rel=1e-6)


def test_experts_choose_by_probability(rng: np.random.Generator) -> None:
    """With an identity kernel the logits are the tokens; every expert takes its most probable ones."""
    rows = normalised_rows(rng, 2, 3, 3)
    encoder = encoder_with(
        {"router_weights/kernel": np.eye(3), "router_weights/bias": 1.0},
        hidden_size=3,
        max_sequence_length=3,
        moe_layers=(0,),
        num_experts=3,
        eval_capacity_factor=2.0,
    )
    (routing,) = encoder(inputs_of(rows), outputs=("routing",))["routing"]
    indices, probabilities = routing["indices"], routing["probabilities"]
    assert indices.shape == (2, 3, 2)  # groups, experts, capacity
    assert indices.dtype == np.int32
    assert probabilities.shape == (2, 3, 3)  # groups, tokens, experts
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, reference_numpy.softmax(rows + 1), rtol=1e-5)
    for group in range(2):
        for expert in range(3):
            best = np.argsort(-rows[group, :, expert] + np.log(np.exp(rows[group]).sum(axis=-1)))[:2]
            assert set(indices[group, expert]) == set(best)


def test_experts_by_hand(rng: np.random.Generator) -> None:
    """One expert that takes all tokens, everything one: 33 inner units of relu(7 + 1), plus the bias."""
    encoder = encoder_with(
        {
            "experts/intermediate/kernel": 1.0,
            "experts/intermediate/bias": 1.0,
            "experts/output/kernel": 1.0,
            "experts/output/bias": 1.0,
            **ONES_INTO_THE_FEED_FORWARD,
        },
        hidden_size=7,
        moe_layers=(0,),
        num_experts=1,
        inner_dim=33,
        inner_activation="relu",
    )
    added = added_by(encoder, normalised_rows(rng, 1, width=7))
    np.testing.assert_allclose(added, 33 * (7 + 1) + 1, rtol=1e-6)


def test_feed_forward_by_hand(rng: np.random.Generator) -> None:
    encoder = encoder_with(
        {
            "intermediate/kernel": 1.0,
            "intermediate/bias": 1.0,
            "output/kernel": 1.0,
            "output/bias": 1.0,
            **ONES_INTO_THE_FEED_FORWARD,
        },
        hidden_size=3,
        inner_dim=32,
        inner_activation="relu",
    )
    added = added_by(encoder, normalised_rows(rng, 1, width=3))
    np.testing.assert_allclose(added, 32 * (3 + 1) + 1, rtol=1e-6)


def test_moe_layer_weights_losses_and_metrics(rng: np.random.Generator) -> None:
    encoder = encoder_with({}, moe_layers=(0,), num_experts=2, examples_per_group=2.0)
    encoder(inputs_of(normalised_rows(rng, 4)), training=True)
    (layer,) = encoder.transformer_layers
    assert [weight.key for weight in layer.weights if "/moe/" in weight.key] == [
        "transformer/layer_0/moe/experts/intermediate/kernel",
        "transformer/layer_0/moe/experts/intermediate/bias",
        "transformer/layer_0/moe/experts/output/kernel",
        "transformer/layer_0/moe/experts/output/bias",
        "transformer/layer_0/moe/router/router_weights/kernel",
        "transformer/layer_0/moe/router/router_weights/bias",
    ]
    assert len(encoder.losses) == 1
    assert [metric.name for metric in encoder.metrics] == list(reference_numpy.METRIC_NAMES)


def test_groups_larger_than_the_batch_are_refused(rng: np.random.Generator) -> None:
    encoder = encoder_with({}, moe_layers=(0,), num_experts=2, examples_per_group=4.0)
    with pytest.raises(ValueError, match=r"examples_per_group.*4.*2"):
        encoder(inputs_of(normalised_rows(rng, 2)))
