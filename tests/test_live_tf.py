"""Random small encoders against the real TensorFlow class; every pair of argument values at least once."""

from __future__ import annotations

import inspect
import os

import live_cases
import numpy as np
import pytest
import sparse_mixer
import tensorflow_reference as reference
from closeness import assert_metrics_close, assert_output_close
from live_draws import LARGEST_NOISE, Draw

COUNT = int(os.environ.get("SPARSE_MIXER_LIVE_CASES", "240"))
SEED = int(os.environ.get("SPARSE_MIXER_LIVE_SEED", "0"))
CASES = live_cases.cases(COUNT, SEED)


def test_arguments_are_those_of_the_reference() -> None:
    theirs = list(inspect.signature(reference.official_sparse_mixer.SparseMixer).parameters)
    ours = list(inspect.signature(sparse_mixer.SparseMixer).parameters)
    assert theirs[-1] == "kwargs"
    assert ours[: len(theirs) - 1] == theirs[:-1]
    assert set(theirs[:-1]) <= set(live_cases.PARAMETERS)


def test_all_pairs_of_values_are_covered() -> None:
    assert len(CASES) >= 200
    assert all(live_cases.is_valid(case) for case in CASES)
    assert live_cases.all_pairs() <= {pair for case in CASES for pair in live_cases.pairs_of(case)}


@pytest.mark.filterwarnings("ignore:the expert capacity rounds to 0")
@pytest.mark.parametrize("number", range(len(CASES)))
def test_case(number: int) -> None:
    case = CASES[number]
    draw = Draw(case, [SEED, number])
    expected = draw.reference(draw.inputs, training=case["training"])
    noise = draw.noise(expected)
    # Otherwise TensorFlow does not compute what the formulas say, and the comparison would mean nothing.
    assert max(noise.values()) <= LARGEST_NOISE, noise

    encoder = draw.ours()
    actual = reference.named_outputs(encoder(draw.inputs, training=case["training"]))
    if case["output_range"] is not None and case["semantics"] != "keras_strict":
        for name in ("sequence_output", f"encoder_output_{case['num_layers'] - 1:02d}"):
            expected[name] = expected[name][:, : case["output_range"]]
    assert list(actual) == list(expected)
    for name in expected:
        scale = max(1.0, float(np.abs(expected[name]).max(initial=0)))
        assert_output_close(name, actual[name], expected[name], noise[name] * scale)

    losses = np.array([float(loss) for loss in encoder.losses])
    assert_metrics_close(losses, draw.reference.losses())
    names, values = draw.reference.metrics()
    assert [metric.name for metric in encoder.metrics] == names
    if names:
        exact = draw.exact.metrics.ravel()
        metric_noise = np.where(np.isfinite(exact), np.abs(values - np.nan_to_num(exact)), 0)
        ours = np.array([float(metric.result()) for metric in encoder.metrics])
        assert_metrics_close(ours, values, metric_noise)
