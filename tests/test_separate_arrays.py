"""What is handed out is the caller's: writing to it changes nothing else, and what was handed in may change, too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from encoders import WIDTH, small_encoder, small_inputs
from sparse_mixer import models, optimizers, training


def arrays_in(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [array for entry in value for array in arrays_in(entry)]
    return []


def assert_separate(*values: Any) -> None:
    arrays = arrays_in(values)
    assert len(arrays) > 1
    for one, other in itertools.combinations(arrays, 2):
        assert not np.shares_memory(one, other)
    assert all(array.flags.writeable for array in arrays)


@pytest.mark.parametrize("changes", [{}, {"output_range": 3}, {"num_layers": 1, "moe_layers": ()}])
def test_outputs_are_separate_arrays(changes: dict[str, Any]) -> None:
    encoder = small_encoder(**{"attention_layers": (0,)} | changes)
    inputs = small_inputs()
    for outputs in (
        encoder(inputs, outputs=("sequence_output", "pooled_output", "encoder_outputs", "routing")),
        encoder.vjp(inputs)[0],
        models.BertPretrainerV2(encoder)(inputs),
        models.BertSpanLabeler(encoder)(inputs),
    ):
        assert_separate(outputs)
    outputs = encoder(inputs)
    np.testing.assert_array_equal(outputs["sequence_output"], outputs["encoder_outputs"][-1])
    outputs["sequence_output"][:] = 0
    assert outputs["encoder_outputs"][-1].any()


def test_auxiliary_values_are_copies() -> None:
    encoder = small_encoder()
    encoder(small_inputs())
    assert_separate(encoder.aux_losses, encoder.aux_losses)
    expected = encoder.aux_losses["router_z_loss"].copy()
    encoder.aux_losses["router_z_loss"][:] = 7
    np.testing.assert_array_equal(encoder.aux_losses["router_z_loss"], expected)


def test_arguments_may_change_after_the_call() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    expected = encoder.vjp(inputs, seed=1)[1]({"pooled_output": np.ones((2, WIDTH))})
    _, vjp = encoder.vjp(inputs, seed=1)
    for array in inputs.values():
        array[:] = 0
    gradients = vjp({"pooled_output": np.ones((2, WIDTH))})
    for key in expected:
        np.testing.assert_array_equal(gradients[key], expected[key])


def test_states_are_copies() -> None:
    model = models.BertClassifier(small_encoder(), 2)
    optimizer = optimizers.AdamW()
    stopping = training.EarlyStopping("loss", restore_best_weights=True)
    model.fit((small_inputs(4), np.arange(4) % 2), optimizer=optimizer, callbacks=[stopping], progress=False)
    state = optimizer.get_state()
    assert_separate(state[1], optimizer.get_state()[1])
    for fresh in (optimizers.AdamW(), optimizer):
        given = {name: array.copy() for name, array in state[1].items()}
        fresh.set_state(state[0], given)
        for array in given.values():
            array[:] = 7
        for name, array in fresh.get_state()[1].items():
            np.testing.assert_array_equal(array, state[1][name])
        assert_separate(fresh.get_state()[1], fresh.get_state()[1])
    assert_separate(stopping.get_arrays(), stopping.get_arrays())


def test_configurations_are_copies() -> None:
    heads = [models.ClassificationHead(WIDTH, 2)]
    model = models.BertPretrainerV2(small_encoder(), classification_heads=heads)
    model.get_config()["classification_heads"][0]["num_classes"] = 99
    assert model.get_config()["classification_heads"][0]["num_classes"] == 2
    encoder = small_encoder()
    encoder.get_config()["initializer"]["config"]["stddev"] = 99
    assert encoder.get_config()["initializer"]["config"]["stddev"] != 99
