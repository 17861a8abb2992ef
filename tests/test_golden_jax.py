"""Stored calls of the paper's JAX encoder: outputs, routing, metrics and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sparse_mixer
from jax_cases import Array, JaxCase, assert_close, assert_gradients_close, jax_case, jax_names

NAMES = jax_names("encoder", "pretraining", "classification")
GRADIENTS = [name for name in jax_names("encoder") if jax_case(name).config["grads"]]
REGULARISED = [name for name in NAMES if jax_case(name).config["reg_grads"]]
SEVERAL_GROUPS = [name for name in NAMES if jax_case(name).several_groups]


def test_counts() -> None:
    assert (len(NAMES), len(GRADIENTS), len(REGULARISED), len(SEVERAL_GROUPS)) == (26, 7, 2, 2)


def assert_outputs(case: JaxCase, outputs: dict[str, Any], prefix: str = "outputs/") -> None:
    for name in ("sequence_output", "pooled_output"):
        assert_close(name, outputs[name], case.data[prefix + name])


def assert_metrics(case: JaxCase, encoder: sparse_mixer.SparseMixer, prefix: str = "metrics/") -> None:
    aux = encoder.aux_losses
    assert list(aux["moe_layers"]) == case.moe_layers
    names = {
        "auxiliary_loss": "load_balancing_loss",
        "router_z_loss": "unscaled_router_z_loss",
        "fraction_tokens_left_behind": "fraction_tokens_left_behind",
        "expert_usage": "expert_usage",
        "router_confidence": "router_confidence",
    }
    for position, layer in enumerate(case.moe_layers):
        for theirs, ours in names.items():
            assert_close(f"{ours} of layer {layer}", aux[ours][position], case.data[f"{prefix}moe_{layer}/{theirs}"])
    # Over the layers: losses are summed and weighted, the others averaged.
    if summary := case.part(f"{prefix}summary/"):
        assert_close("total", aux["total"], summary["auxiliary_loss"] + summary["router_z_loss"])
        assert_close("losses", np.sum(encoder.losses), summary["auxiliary_loss"] + summary["router_z_loss"])
        for name in ("fraction_tokens_left_behind", "expert_usage", "router_confidence"):
            assert_close(name, np.mean(aux[name]), summary[name])
    factors = (case.config["auxiliary_loss_factor"], case.config["router_z_loss_factor"])
    raw = [
        [float(case.data[f"{prefix}moe_{layer}/{name}"]) for layer in case.moe_layers]
        for name in ("auxiliary_loss", "router_z_loss")
    ]
    weighted = [factor * np.sum(values) for factor, values in zip(factors, raw, strict=True)]
    assert float(aux["total"]) == pytest.approx(sum(weighted), rel=1e-4, abs=1e-8)
    assert float(np.sum(encoder.losses)) == pytest.approx(sum(weighted), rel=1e-4, abs=1e-8)


def dispatched(routing: dict[str, Array]) -> Array:
    """1 where a token reached an expert, [G, T, E]."""
    mask = np.zeros(routing["probabilities"].shape, np.uint8)
    for group, expert, slot in np.argwhere(routing["indices"] >= 0):
        mask[group, routing["indices"][group, expert, slot], expert] = 1
    return mask


@pytest.mark.parametrize("name", NAMES)
def test_faithful(name: str) -> None:
    """All numbers of the JAX code; with several groups that needs its mix-up of expert parameters."""
    case = jax_case(name)
    encoder = case.encoder(group_mixup=True)
    wanted = ("sequence_output", "pooled_output", "encoder_outputs", "routing")
    outputs = encoder(case.inputs, training=case.training, outputs=wanted)
    for layer, output in enumerate(outputs["encoder_outputs"]):
        expected = case.data.get(f"blocks/encoder_{layer}")
        if expected is not None:
            assert_close(f"block {layer}", output, expected)
    assert_outputs(case, outputs)
    assert_metrics(case, encoder)
    for layer, routing in zip(case.moe_layers, outputs["routing"], strict=True):
        mask = dispatched(routing)
        np.testing.assert_array_equal(mask, case.data[f"routing/moe_{layer}/dispatch"])
        assert_close("combine", mask * routing["probabilities"], case.data[f"routing/moe_{layer}/combine"])


@pytest.mark.parametrize("isa", sparse_mixer.cpu_info()["available"])
@pytest.mark.parametrize("name", NAMES)
def test_instruction_set(name: str, isa: str) -> None:
    case = jax_case(name)
    assert_outputs(case, case.encoder(group_mixup=True, isa=isa)(case.inputs, training=case.training))


@pytest.mark.parametrize("name", SEVERAL_GROUPS)
def test_every_expert_serves_its_own_slots_by_default(name: str) -> None:
    case = jax_case(name)
    encoder = case.encoder()
    outputs = encoder(case.inputs, training=case.training)
    assert_outputs(case, outputs, "alt_no_group_mixup/")
    assert_metrics(case, encoder, "alt_no_group_mixup/metrics/")
    assert np.abs(outputs["sequence_output"] - case.data["outputs/sequence_output"]).max() > 1e-2


def cotangents(case: JaxCase) -> dict[str, Array]:
    return {
        "sequence_output": case.data["inputs/loss_seq_weights"],
        "pooled_output": case.data["inputs/loss_pooled_weights"],
    }


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str, recompute: bool) -> None:
    case = jax_case(name)
    variants = {True: "grads/", False: "alt_no_group_mixup/grads/"} if case.several_groups else {True: "grads/"}
    for mixup, prefix in variants.items():
        encoder = case.encoder(group_mixup=mixup)
        outputs, vjp = encoder.vjp(case.inputs, training=case.training, recompute=recompute)
        loss = sum(float(np.sum(outputs[key] * weight, dtype=np.float64)) for key, weight in cotangents(case).items())
        expected_loss = float(case.data[prefix.replace("grads/", "losses/total")])
        assert loss + float(encoder.aux_losses["total"]) == pytest.approx(expected_loss, rel=1e-4, abs=1e-3)
        assert_gradients_close(vjp(cotangents(case)), case.expected_gradients(encoder, prefix))


@pytest.mark.parametrize("name", REGULARISED)
def test_gradients_of_the_auxiliary_losses_alone(name: str) -> None:
    case = jax_case(name)
    encoder = case.encoder()
    _, vjp = encoder.vjp(case.inputs, training=case.training)
    expected = case.expected_gradients(encoder, "reg_grads/")
    # These are small: the absolute tolerance of the other gradients would hide a missing term.
    scale = 1e3
    ours = vjp({}, aux_loss_weight=scale)
    assert_gradients_close(ours, {key: np.float32(scale) * value for key, value in expected.items()})


@pytest.mark.parametrize("name", NAMES)
def test_one_thread_gives_the_same_bits(name: str) -> None:
    case = jax_case(name)
    calls = [case.encoder(num_threads=threads)(case.inputs, training=case.training) for threads in (1, 3)]
    for key in ("sequence_output", "pooled_output"):
        np.testing.assert_array_equal(calls[0][key], calls[1][key])
