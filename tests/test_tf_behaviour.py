"""What TensorFlow's own tests assert of this network (sparse_mixer_test.py, moe_test.py), asserted of ours.

Their tests of single layers become tests of encoders whose other parts are switched off by zero weights: in
pre-norm, the MoE sublayer is then the difference of two blocks' outputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from sparse_mixer import MixingMechanism

Array = np.ndarray[Any, Any]


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


def moe_alone(width: int, length: int, weights: dict[str, Array], **arguments: Any) -> sparse_mixer.SparseMixer:
    """A pre-norm encoder of two layers in which nothing but the MoE of the second changes the stream."""
    encoder = sparse_mixer.SparseMixer(
        vocab_size=10,
        hidden_size=width,
        num_layers=2,
        moe_layers=(1,),
        attention_layers=(),
        num_attention_heads=1,
        max_sequence_length=length,
        type_vocab_size=1,
        norm_first=True,
        initializer="zeros",
        **arguments,
    )
    for variable in encoder.weights:
        name = variable.key.partition("layer_1/")[2]
        if name in weights:
            variable.assign(np.broadcast_to(weights[name], variable.shape))
    return encoder


def test_router_z_loss_of_known_logits() -> None:
    # Logits 10 and 5 for every token, from the router's bias.
    encoder = moe_alone(4, 6, {"moe/router/router_weights/bias": np.array([10.0, 5.0])}, num_experts=2, inner_dim=4)
    encoder(example(2, 6, vocab=10))
    expected = (5 + math.log(math.exp(5) + 1)) ** 2
    assert encoder.aux_losses["unscaled_router_z_loss"][0] == pytest.approx(expected, rel=1e-6)
    assert encoder.aux_losses["unscaled_router_z_loss"].dtype == np.float32
    assert encoder.aux_losses["router_z_loss"][0] == 0.0


def test_router_z_loss_of_equal_logits() -> None:
    encoder = moe_alone(4, 5, {"moe/router/router_weights/bias": np.ones(7)}, num_experts=7, inner_dim=4)
    encoder(example(2, 5, vocab=10))
    expected = (math.log(7) + 1) ** 2
    assert encoder.aux_losses["unscaled_router_z_loss"][0] == pytest.approx(expected, rel=1e-6)


def test_experts_choose_by_probability() -> None:
    """Every expert takes its `capacity` most probable tokens; `combine` is the probability itself."""
    length = width = 3
    kernel = {"moe/router/router_weights/kernel": np.eye(width), "moe/router/router_weights/bias": np.ones(width)}
    encoder = moe_alone(width, length, kernel, num_experts=width, eval_capacity_factor=2.0, inner_dim=4)
    rows = np.random.default_rng(2).standard_normal((2, length, width)).astype(np.float32)
    inputs = example(2, length) | {"input_word_embeddings": rows}
    (routing,) = encoder(inputs, outputs=("routing",))["routing"]
    indices, probabilities = routing["indices"], routing["probabilities"]
    assert indices.shape == (2, width, 2)  # groups, experts, capacity
    assert indices.dtype == np.int32
    assert probabilities.shape == (2, length, width)
    assert probabilities.dtype == np.float32

    stream = encoder(inputs)["encoder_outputs"][0]
    centred = stream - stream.mean(axis=-1, keepdims=True)
    logits = 1 + centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True))
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    for group in range(2):
        for expert in range(width):
            best = np.argsort(-expected[group, :, expert])[:2]
            assert set(indices[group, expert]) == set(best)


def test_experts_by_hand() -> None:
    """One expert that takes all tokens: y = relu(x Wi + bi) Wo + bo with ones everywhere."""
    weights = {
        "moe/experts/intermediate/kernel": np.ones(()),
        "moe/experts/intermediate/bias": np.ones(()),
        "moe/experts/output/kernel": np.ones(()),
        "moe/experts/output/bias": np.ones(()),
        # The layer norm gives ones whatever comes in, as in TensorFlow's test.
        "output_layer_norm/gamma": np.zeros(()),
        "output_layer_norm/beta": np.ones(()),
    }
    encoder = moe_alone(7, 2, weights, num_experts=1, inner_dim=33, inner_activation="relu")
    before, after = encoder(example(1, 2, vocab=10))["encoder_outputs"]
    np.testing.assert_allclose(after - before, np.full((1, 2, 7), 33 * (7 + 1) + 1.0), rtol=1e-6)


def test_feed_forward_by_hand() -> None:
    encoder = sparse_mixer.SparseMixer(
        vocab_size=10,
        hidden_size=3,
        num_layers=1,
        moe_layers=(),
        attention_layers=(),
        num_attention_heads=1,
        max_sequence_length=2,
        type_vocab_size=1,
        inner_dim=32,
        inner_activation="relu",
        norm_first=True,
        initializer="zeros",
    )
    for variable in encoder.transformer_layers[0].weights:
        part = variable.key.partition("layer_0/")[2]
        if part.startswith(("intermediate/", "output/")) or part == "output_layer_norm/beta":
            variable.assign(np.ones(variable.shape))
        elif part == "output_layer_norm/gamma":
            variable.assign(np.zeros(variable.shape))
    # The stream is zero (zero tables, beta 0), so the output is what the feed-forward layer adds.
    output = encoder(example(1, 2, vocab=10))["sequence_output"]
    np.testing.assert_allclose(output, np.full((1, 2, 3), 32 * (3 + 1) + 1.0), rtol=1e-6)


def test_moe_layer_losses_and_metrics() -> None:
    encoder = moe_alone(8, 10, {}, num_experts=2, examples_per_group=2.0, inner_dim=33)
    encoder(example(4, 10, vocab=10), training=True)
    names = [weight.key for weight in encoder.transformer_layers[1].weights]
    assert [name for name in names if "/moe/" in name] == [
        "transformer/layer_1/moe/experts/intermediate/kernel",
        "transformer/layer_1/moe/experts/intermediate/bias",
        "transformer/layer_1/moe/experts/output/kernel",
        "transformer/layer_1/moe/experts/output/bias",
        "transformer/layer_1/moe/router/router_weights/kernel",
        "transformer/layer_1/moe/router/router_weights/bias",
    ]
    assert len(encoder.losses) == 1
    assert {metric.name for metric in encoder.metrics} == {
        "router_z_loss",
        "unscaled_router_z_loss",
        "load_balancing_loss",
        "fraction_tokens_left_behind",
        "router_confidence",
        "expert_usage",
    }


def test_groups_larger_than_the_batch_are_refused() -> None:
    encoder = moe_alone(8, 10, {}, num_experts=2, examples_per_group=4.0, inner_dim=8)
    with pytest.raises(ValueError, match=r"examples_per_group.*4.*2"):
        encoder(example(2, 10, vocab=10))
