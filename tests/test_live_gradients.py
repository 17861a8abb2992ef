"""Gradients of random small encoders against TensorFlow's, over every pair of argument values."""

from __future__ import annotations

import os

import live_cases
import numpy as np
import pytest
from closeness import assert_gradients_close
from live_draws import Draw

SEED = int(os.environ.get("SPARSE_MIXER_LIVE_SEED", "1"))


def is_well_conditioned(case: live_cases.Assignment) -> bool:
    """Whether rows differ: where a post-norm layer leaves all tokens behind, spectra of equal rows cancel to noise."""
    factor = case["train_capacity_factor" if case["training"] else "eval_capacity_factor"]
    return case["norm_first"] or factor != 0.05 or case["mixing_mechanism"] not in ("fourier", "hartley")


# An own embedding layer has no gradient through us, and functions without a derivative cannot be trained.
CASES = [
    case | {"embedding_layer": None, "objects": "strings"}
    for case in live_cases.cases(0, SEED)
    if is_well_conditioned(case)
]
# Where rounding moves the outputs further than this, it moves the gradients beyond their tolerance as well.
LARGEST_NOISE = 5e-6

pytestmark = pytest.mark.filterwarnings("ignore:the expert capacity rounds to 0")


def test_there_are_100_cases() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("number", range(len(CASES)))
def test_case(number: int) -> None:
    case = CASES[number]
    draw = Draw(case, [SEED, number], LARGEST_NOISE)
    rng = np.random.default_rng([SEED, number, 0, 0])
    d_outputs = {
        name: rng.standard_normal(output.shape).astype(np.float32)
        for name, output in draw.exact.named().items()
        if name in ("sequence_output", "pooled_output", "encoder_output_00")
    }
    ours = {name: d_outputs[name] for name in ("sequence_output", "pooled_output")}
    ours["encoder_outputs"] = [d_outputs["encoder_output_00"], *[None] * (case["num_layers"] - 1)]
    if case["output_range"] is not None and case["semantics"] != "keras_strict":
        # The reference has all positions; those that we do not return take no gradient.
        for name in ("sequence_output", *(["encoder_output_00"] if case["num_layers"] == 1 else [])):
            d_outputs[name][:, case["output_range"] :] = 0
        ours["sequence_output"] = ours["sequence_output"][:, : case["output_range"]]
        if case["num_layers"] == 1:
            ours["encoder_outputs"][0] = ours["encoder_outputs"][0][:, : case["output_range"]]

    expected = draw.reference.gradients(draw.inputs, d_outputs, training=case["training"])
    _, vjp = draw.ours().vjp(draw.inputs, training=case["training"])
    assert_gradients_close(list(expected), vjp(ours), expected)
