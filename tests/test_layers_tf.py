"""The encoder's layers called by themselves, beside TensorFlow's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow_reference as reference
from encoders import ARGUMENTS, LENGTH, TYPES, VOCAB_SIZE, WIDTH, small_encoder, small_inputs
from sparse_mixer import SparseMixer

with reference._quiet():
    import tensorflow as tf

SIZES = {key: value for key, value in ARGUMENTS.items() if key != "seed"}
BATCH = 3


def encoders(**changes: Any) -> tuple[Any, SparseMixer]:
    """The reference encoder and ours with its weights."""
    theirs = reference.TensorFlowEncoder(SIZES | changes, small_inputs(BATCH)).layer
    ours = SparseMixer(**(SIZES | changes), seed=1)
    ours.set_weights(theirs.get_weights())
    return theirs, ours


def call(layer: Any, *arguments: Any) -> Any:
    with reference._quiet():
        return layer(*arguments).numpy()


@pytest.mark.parametrize(
    "changes",
    [{}, {"norm_first": True}, {"mixing_mechanism": "fourier"}, {"output_range": 2}],
    ids=["post norm", "pre norm", "fourier", "few rows"],
)
def test_blocks(changes: dict[str, Any], rng: np.random.Generator) -> None:
    if "mixing_mechanism" in changes:
        theirs, _ = encoders(mixing_mechanism=reference.MixingMechanism.FOURIER)
        ours = SparseMixer(**(SIZES | changes), seed=1)
        ours.set_weights(theirs.get_weights())
    else:
        theirs, ours = encoders(**changes)
    x = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    by_query = rng.integers(0, 2, (BATCH, LENGTH, LENGTH)).astype(np.float32)
    for block, reference_block in zip(ours.transformer_layers, theirs.transformer_layers, strict=True):
        expected = call(reference_block, [x, by_query])
        np.testing.assert_allclose(block(x, by_query), expected, atol=1e-5)
        np.testing.assert_array_equal(block([x, by_query]), block(x, by_query))
        np.testing.assert_allclose(block(x), call(reference_block, x), atol=1e-5)


def test_blocks_one_after_the_other_are_the_encoder() -> None:
    encoder, inputs = small_encoder(), small_inputs(BATCH)
    outputs = encoder(inputs)
    for number, block in enumerate(encoder.transformer_layers[1:]):
        found = block(outputs["encoder_outputs"][number], inputs["input_mask"])
        np.testing.assert_array_equal(found, outputs["encoder_outputs"][number + 1])
    np.testing.assert_allclose(
        encoder.pooler_layer(outputs["sequence_output"][:, 0]), outputs["pooled_output"], atol=1e-6
    )


def test_layers_around_the_blocks(rng: np.random.Generator) -> None:
    theirs, ours = encoders(embedding_width=WIDTH // 2)
    ids = rng.integers(0, VOCAB_SIZE, (BATCH, LENGTH))
    types = rng.integers(0, TYPES, (BATCH, LENGTH))
    narrow = rng.normal(size=(BATCH, LENGTH, WIDTH // 2)).astype(np.float32) + 3
    for name, layer, argument in [
        ("word_embeddings", theirs.get_embedding_layer(), ids),
        ("position_embedding", theirs._position_embedding_layer, narrow),
        ("type_embeddings", theirs._type_embedding_layer, types),
        ("embeddings/layer_norm", theirs._embedding_norm_layer, narrow),
        ("embedding_projection", theirs._embedding_projection, narrow),
    ]:
        own = ours.get_layer(name)
        expected = np.broadcast_to(call(layer, tf.constant(argument)), (BATCH, LENGTH, own.weights[-1].shape[-1]))
        np.testing.assert_allclose(own(argument), expected, atol=1e-5, err_msg=name)  # type: ignore[operator]
        assert [weight.name.split("/", 1)[1] for weight in layer.weights] == [
            weight.name.split("/", 1)[1] for weight in own.weights
        ]
    np.testing.assert_allclose(
        ours.pooler_layer(narrow.repeat(2, -1)), call(theirs.pooler_layer, narrow.repeat(2, -1)), atol=1e-5
    )
    parts = [encoder_layer.name for encoder_layer in ours.layers]
    assert parts[:5] == [
        "word_embeddings",
        "position_embedding",
        "type_embeddings",
        "embeddings/layer_norm",
        "embedding_projection",
    ]
    lines: list[str] = []
    ours.summary(lines.append)
    assert all(name in lines[0] for name in parts)


def test_training_calls_of_a_block_draw_their_own_numbers() -> None:
    block = small_encoder(output_dropout=0.5).transformer_layers[0]
    x = np.ones((BATCH, LENGTH, WIDTH), np.float32)
    np.testing.assert_array_equal(block(x, training=True, seed=3), block(x, training=True, seed=3))
    assert (block(x, training=True, seed=3) != block(x, training=True, seed=4)).any()
    assert (block(x, training=True) != block(x)).any()


def test_what_does_not_fit_is_refused() -> None:
    encoder = small_encoder()
    block, x = encoder.transformer_layers[2], np.zeros((BATCH, LENGTH, WIDTH), np.float32)
    for arguments, message in [
        ((x[0],), r"inputs: expected shape \[B, S, hidden_size\]"),
        ((x[..., 1:],), r"x: got shape \[3, 8, 15\], expected \[3, 8, 16\]"),
        ((x[:, 1:],), r"x: got sequence length 7"),
        ((x, np.ones((BATCH, LENGTH, 2))), "attention_mask: got shape"),
        (([x, None], np.ones((BATCH, LENGTH))), "attention_mask: given twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            block(*arguments)
    with pytest.raises(ValueError, match="inputs: expected shape"):
        encoder.pooler_layer(x[..., 1:])
    with pytest.raises(ValueError, match="no layer is called 'pooler'"):
        encoder.get_layer("pooler")
    with pytest.raises(ValueError, match="index: got 99"):
        encoder.get_layer(index=99)
    assert encoder.get_layer(index=-1) is encoder.pooler_layer
