"""The mixture of experts: dispatch, combination and the tokens that no expert takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_numpy
from isolated import encoder_with, inputs_of, normalised_rows


def random_experts(rng: np.random.Generator, width: int = 8, inner: int = 4, experts: int = 3) -> dict[str, Any]:
    return {
        "experts/intermediate/kernel": rng.standard_normal((experts, width, inner)),
        "experts/intermediate/bias": rng.standard_normal((experts, 1, inner)),
        "experts/output/kernel": rng.standard_normal((experts, inner, width)),
        "experts/output/bias": rng.standard_normal((experts, 1, width)),
        "router_weights/kernel": rng.standard_normal((width, experts)),
        "router_weights/bias": rng.standard_normal(experts),
    }


def combine(rows: Any, weights: dict[str, Any], routing: dict[str, Any]) -> Any:
    """The experts' outputs, weighted by the probabilities, at the picked tokens."""
    groups, experts, _ = routing["indices"].shape
    tokens = rows.reshape(groups, -1, rows.shape[-1]).astype(np.float64)
    output = np.zeros_like(tokens)
    for group in range(groups):
        for expert in range(experts):
            for token in routing["indices"][group, expert]:
                inner = tokens[group, token] @ weights["experts/intermediate/kernel"][expert]
                inner = reference_numpy.ACTIVATIONS["relu"](inner + weights["experts/intermediate/bias"][expert, 0])
                value = inner @ weights["experts/output/kernel"][expert] + weights["experts/output/bias"][expert, 0]
                output[group, token] += routing["probabilities"][group, token, expert] * value
    return output.reshape(rows.shape)


@pytest.mark.parametrize("examples_per_group", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("factor", [0.4, 1.0, 2.0, 3.0])
def test_formula(rng: np.random.Generator, factor: float, examples_per_group: float) -> None:
    rows, weights = normalised_rows(rng, 4, 10), random_experts(rng)
    encoder = encoder_with(
        weights,
        moe_layers=(0,),
        num_experts=3,
        max_sequence_length=10,
        eval_capacity_factor=factor,
        examples_per_group=examples_per_group,
        inner_activation="relu",
    )
    outputs = encoder(inputs_of(rows), outputs=("sequence_output", "routing"))
    added = outputs["sequence_output"] - rows
    np.testing.assert_allclose(added, combine(rows, weights, outputs["routing"][0]), atol=5e-5)


def left_behind(routing: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """Which tokens no expert took, [B, S]."""
    groups, _, _ = routing["indices"].shape
    taken = np.zeros((groups, routing["probabilities"].shape[1]), bool)
    np.put_along_axis(taken, routing["indices"].reshape(groups, -1), True, axis=1)
    return ~taken.reshape(shape)


def test_tokens_left_behind_become_zero_in_postnorm(rng: np.random.Generator) -> None:
    rows, weights = normalised_rows(rng, 3, 10), random_experts(rng)
    encoder = encoder_with(
        weights, moe_layers=(0,), num_experts=3, max_sequence_length=10, eval_capacity_factor=0.5, norm_first=False
    )
    outputs = encoder(inputs_of(rows), outputs=("sequence_output", "routing"))
    lost = left_behind(outputs["routing"][0], (3, 10))
    assert 0 < lost.sum() < lost.size
    assert (outputs["sequence_output"][lost] == 0).all()
    assert (np.abs(outputs["sequence_output"][~lost]).max(axis=-1) > 0).all()


def test_tokens_left_behind_pass_unchanged_in_prenorm(rng: np.random.Generator) -> None:
    rows, weights = normalised_rows(rng, 3, 10), random_experts(rng)
    encoder = encoder_with(
        weights, num_layers=2, moe_layers=(1,), num_experts=3, max_sequence_length=10, eval_capacity_factor=0.5
    )
    outputs = encoder(inputs_of(rows), outputs=("encoder_outputs", "routing"))
    before, after = outputs["encoder_outputs"]
    lost = left_behind(outputs["routing"][0], (3, 10))
    assert 0 < lost.sum() < lost.size
    np.testing.assert_array_equal(after[lost], before[lost])


@pytest.mark.parametrize("norm_first", [False, True])
def test_capacity_zero(rng: np.random.Generator, norm_first: bool) -> None:
    rows, weights = normalised_rows(rng, 2), random_experts(rng)
    encoder = encoder_with(weights, moe_layers=(0,), num_experts=3, eval_capacity_factor=0.05, norm_first=norm_first)
    with pytest.warns(UserWarning, match="capacity rounds to 0"):
        output = encoder(inputs_of(rows))["sequence_output"]
    np.testing.assert_allclose(output, rows if norm_first else np.zeros_like(rows), atol=1e-6)


def test_capacity_above_the_group_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="eval_capacity_factor"):
        encoder_with({}, moe_layers=(0,), num_experts=2, eval_capacity_factor=2.5)(inputs_of(normalised_rows(rng, 1)))
