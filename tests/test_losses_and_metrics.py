"""Losses and metrics of the encoder: of the last call, and running means."""

from __future__ import annotations

import numpy as np
import pytest
from encoders import small_encoder, small_inputs

METRICS = [
    "unscaled_router_z_loss",
    "router_z_loss",
    "load_balancing_loss",
    "fraction_tokens_left_behind",
    "router_confidence",
    "expert_usage",
]


def test_losses_are_those_of_the_last_call() -> None:
    encoder = small_encoder(moe_layers=(0, 1), router_z_loss_weight=0.5)
    assert encoder.losses == []
    assert encoder.aux_losses == {}
    for seed in (1, 2):
        encoder(small_inputs(seed=seed))
    aux = encoder.aux_losses
    assert len(encoder.losses) == 2
    np.testing.assert_allclose(encoder.losses, 0.5 * aux["unscaled_router_z_loss"], rtol=1e-6)
    np.testing.assert_allclose(aux["total"], sum(encoder.losses), rtol=1e-6)
    np.testing.assert_array_equal(aux["moe_layers"], [0, 1])
    assert set(aux) == {*METRICS, "total", "expert_load", "moe_layers"}


def test_loads_are_fractions_of_the_expert_outputs() -> None:
    encoder = small_encoder(moe_layers=(1,), num_experts=4)
    outputs = encoder(small_inputs(3), outputs=("sequence_output", "routing"))
    (routing,) = outputs["routing"]
    group = np.arange(3)[:, None]
    picked = [routing["probabilities"][group, routing["indices"][:, e], e].sum() for e in range(4)]
    np.testing.assert_allclose(encoder.aux_losses["expert_load"], [picked / np.sum(picked)], rtol=1e-5)


def test_metrics_are_running_means() -> None:
    encoder = small_encoder(moe_layers=(0, 1))
    assert [metric.name for metric in encoder.metrics] == METRICS * 2
    values = []
    for seed in (1, 2, 3):
        encoder(small_inputs(seed=seed), training=seed == 2)
        values.append(encoder.aux_losses["router_confidence"])
    means = [metric.result() for metric in encoder.metrics if metric.name == "router_confidence"]
    np.testing.assert_allclose(means, np.mean(values, axis=0), rtol=1e-6)
    for metric in encoder.metrics:
        metric.reset_state()
        assert metric.result() == 0


def test_metrics_can_be_left_out() -> None:
    encoder = small_encoder(export_metrics=False)
    encoder(small_inputs())
    assert encoder.metrics == []
    assert len(encoder.losses) == 1


def test_zero_capacity_warns_and_keeps_the_references_metrics() -> None:
    encoder = small_encoder(eval_capacity_factor=0.05)
    with pytest.warns(UserWarning, match="capacity rounds to 0"):
        encoder(small_inputs())
    assert np.isinf(encoder.aux_losses["fraction_tokens_left_behind"]).all()
    assert np.isnan(encoder.aux_losses["router_confidence"]).all()
