"""Copies of encoders: pickle, deepcopy, other processes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import assert_same_outputs, small_encoder, small_inputs


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_pickle_round_trip(protocol: int, dtype: str) -> None:
    encoder = small_encoder(dtype=dtype, name="kept", inner_activation="relu", norm_first=True)
    encoder.transformer_layers[0].trainable = False
    loaded = pickle.loads(pickle.dumps(encoder, protocol))
    assert loaded.name == "kept"
    assert loaded.get_config() == encoder.get_config()
    assert [w.name for w in loaded.weights] == [w.name for w in encoder.weights]
    assert_same_outputs(loaded(small_inputs()), encoder(small_inputs()))
    # The sequence of dropout seeds starts afresh, as in a new encoder.
    fresh = small_encoder(dtype=dtype, inner_activation="relu", norm_first=True)
    assert_same_outputs(loaded(small_inputs(), training=True), fresh(small_inputs(), training=True))


def test_weights_travel_out_of_band() -> None:
    encoder = small_encoder()
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(encoder, 5, buffer_callback=buffers.append)
    assert len(data) < 20_000
    assert sum(buffer.raw().nbytes for buffer in buffers) == 4 * encoder.count_params()
    assert_same_outputs(pickle.loads(data, buffers=buffers)(small_inputs()), encoder(small_inputs()))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_are_independent(duplicate: Any) -> None:
    encoder = small_encoder()
    before = encoder(small_inputs())
    twin = duplicate(encoder)
    assert_same_outputs(twin(small_inputs()), before)
    twin.set_weights([weight * 0 for weight in twin.get_weights()])
    twin.trainable = False
    assert encoder.trainable
    assert_same_outputs(encoder(small_inputs()), before)


@pytest.mark.parametrize(
    "value",
    [
        sparse_mixer.MixingMechanism.HARTLEY,
        sparse_mixer.Activation(np.tanh, name="tanh of numpy"),
        sparse_mixer.initializers.VarianceScaling(2.0, mode="fan_out", seed=3),
    ],
)
def test_arguments_can_be_pickled(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value


def test_exceptions_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(sparse_mixer.InternalError("text")))
    assert isinstance(error, sparse_mixer.InternalError)
    assert error.args == ("text",)
