"""Tokens-choose routing, router precision and auxiliary losses, under both semantics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isolated import encoder_with, inputs_of, normalised_rows
from sparse_mixer import SparseMixer

Array = np.ndarray[Any, Any]


def route(rows: Array, kernel: Array, **arguments: Any) -> tuple[SparseMixer, dict[str, Array]]:
    """Encoder with one MoE layer whose router has `kernel`, and the routing of `rows`."""
    _, length, width = rows.shape
    own = {"moe_layers": (0,), "max_sequence_length": length, "hidden_size": width, "num_experts": kernel.shape[1]}
    encoder = encoder_with({"router_weights/kernel": kernel}, **own | {"router": "tokens_choose"} | arguments)
    (routing,) = encoder(inputs_of(rows), outputs=("routing",))["routing"]
    return encoder, routing


def slots_by_definition(p: Array, capacity: int, selected: int, prioritized: bool) -> Array:
    """Slots [E, C] of one group with probabilities [T, E]: each request takes the next free slot of its expert."""
    tokens, experts = p.shape
    choices = np.argsort(-p, axis=1, kind="stable")[:, :selected]
    order = np.argsort(-p.max(axis=1), kind="stable") if prioritized else np.arange(tokens)
    slots = np.full((experts, min(capacity, tokens)), -1)
    used = np.zeros(experts, int)
    for rank in range(selected):
        for token in order:
            expert = choices[token, rank]
            if used[expert] < slots.shape[1]:
                slots[expert, used[expert]] = token
            used[expert] += 1
    return slots


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 4),
    length=st.integers(1, 12),
    experts=st.integers(1, 6),
    selected=st.integers(1, 3),
    prioritized=st.booleans(),
    factor=st.floats(0.3, 3.0),
    group=st.none() | st.integers(1, 30),
    semantics=st.sampled_from(["keras", "paper"]),
    router_dtype=st.sampled_from(["float32", "bfloat16"]),
)
@pytest.mark.filterwarnings("ignore:the expert capacity rounds to 0")
def test_requests_are_served_by_definition(
    seed: int,
    batch: int,
    length: int,
    experts: int,
    selected: int,
    prioritized: bool,
    factor: float,
    group: int | None,
    semantics: str,
    router_dtype: str,
) -> None:
    rng = np.random.default_rng(seed)
    # Few different rows, so that there are ties.
    rows = normalised_rows(rng, 1, 4)[0][rng.integers(0, 4, (batch, length))]
    selected = min(selected, experts)
    encoder, routing = route(
        rows,
        rng.standard_normal((8, experts)),
        num_selected_experts=selected,
        batch_prioritized_routing=prioritized,
        eval_capacity_factor=factor,
        min_expert_capacity=1,
        max_group_size=group,
        semantics=semantics,
        router_dtype=router_dtype,
        norm_first=True,
    )
    p, indices = routing["probabilities"], routing["indices"]
    groups, tokens, _ = p.shape
    capacity = max(1, round(factor * tokens / experts))
    for own, slots in zip(p, indices, strict=True):
        np.testing.assert_array_equal(slots, slots_by_definition(own, capacity, selected, prioritized))
        filled = slots[slots >= 0]
        # No token asks one expert twice, or more than it may in all.
        assert all(len(set(expert[expert >= 0])) == (expert >= 0).sum() for expert in slots)
        assert np.bincount(filled, minlength=tokens).max() <= selected

    aux = {key: float(values[0]) for key, values in encoder.aux_losses.items() if values.ndim == 1}
    filled = indices >= 0
    assert aux["expert_usage"] == pytest.approx(filled.sum() / (experts * capacity * groups), rel=1e-6)
    reached = sum(len(set(slots[slots >= 0])) for slots in indices)
    assert aux["fraction_tokens_left_behind"] == pytest.approx(1 - reached / (groups * tokens), abs=1e-6)
    weights = [p[g, indices[g, e, c], e] for g, e, c in np.argwhere(filled)]
    assert aux["router_confidence"] == pytest.approx(np.mean(weights), rel=1e-5)
    chosen = np.zeros_like(p, np.float64)
    np.put_along_axis(chosen, np.argsort(-p, axis=-1, kind="stable")[..., :selected], 1.0, axis=-1)
    balance = experts**2 * (chosen.mean(axis=1) * p.astype(np.float64).mean(axis=1)).mean()
    assert aux["load_balancing_loss"] == pytest.approx(balance, rel=1e-5)


@pytest.mark.parametrize("selected", [1, 2, 4])
def test_uniform_routing_has_the_number_of_choices_as_balancing_loss(rng: np.random.Generator, selected: int) -> None:
    encoder, routing = route(normalised_rows(rng, 2), np.zeros((8, 4)), num_selected_experts=selected)
    assert encoder.aux_losses["load_balancing_loss"] == pytest.approx([selected])
    # Equal probabilities: the first experts.
    assert (routing["indices"][:, selected:] == -1).all()


def test_balancing_loss_is_weighted_in_losses_and_total(rng: np.random.Generator) -> None:
    rows, kernel = normalised_rows(rng, 2), rng.standard_normal((8, 4))
    encoder, _ = route(rows, kernel, auxiliary_loss_factor=0.5, router_z_loss_weight=0.25)
    aux = encoder.aux_losses
    expected = 0.5 * aux["load_balancing_loss"] + 0.25 * aux["unscaled_router_z_loss"]
    assert expected > 0.5
    np.testing.assert_allclose(encoder.losses, expected, rtol=1e-6)
    assert float(aux["total"]) == pytest.approx(float(expected[0]), rel=1e-6)


def test_capacity_0_draws_a_warning(rng: np.random.Generator) -> None:
    for router in ("experts_choose", "tokens_choose"):
        with pytest.warns(UserWarning, match="capacity rounds to 0"):
            encoder, routing = route(normalised_rows(rng, 1), np.zeros((8, 4)), router=router, eval_capacity_factor=0.1)
        assert routing["indices"].shape == (1, 4, 0)
        assert np.isnan(encoder.aux_losses["router_confidence"]).all()


def test_experts_that_choose_have_no_balancing_loss(rng: np.random.Generator) -> None:
    encoder, _ = route(
        normalised_rows(rng, 2), rng.standard_normal((8, 4)), router="experts_choose", auxiliary_loss_factor=0.5
    )
    assert encoder.aux_losses["load_balancing_loss"] == [0]
    assert encoder.losses == [0]


def test_priority_decides_who_is_left_behind(rng: np.random.Generator) -> None:
    """All tokens ask for expert 0, which has room for two: the first two, or the most decided two."""
    rows = normalised_rows(rng, 1)
    rows = rows[:, np.argsort(rows[0, :, 0])]
    kernel = np.zeros((8, 2))
    kernel[0, 0] = 1
    weights = {"router_weights/kernel": kernel, "router_weights/bias": np.array([4.0, 0.0])}
    picked = []
    for prioritized in (False, True):
        encoder = encoder_with(
            weights, moe_layers=(0,), num_experts=2, eval_capacity_factor=2 / 3, router="tokens_choose",
            batch_prioritized_routing=prioritized,
        )  # fmt: skip
        outputs = encoder(inputs_of(rows), outputs=("routing", "sequence_output"))
        picked.append(outputs["routing"][0]["indices"][0, 0].tolist())
        assert encoder.aux_losses["fraction_tokens_left_behind"] == pytest.approx([4 / 6])
    assert picked == [[0, 1], [5, 4]]


@pytest.mark.parametrize("router", ["experts_choose", "tokens_choose"])
def test_bfloat16_router_rounds_probabilities(rng: np.random.Generator, router: str) -> None:
    rows, kernel = normalised_rows(rng, 2, 40), rng.standard_normal((8, 4))
    _, exact = route(rows, kernel, router=router)
    _, rounded = route(rows, kernel, router=router, router_dtype="bfloat16")
    p = rounded["probabilities"]
    assert not (p.view(np.uint32) & 0xFFFF).any()
    assert (p != exact["probabilities"]).any()
    np.testing.assert_allclose(p, exact["probabilities"], rtol=0.1)


def test_bfloat16_router_differentiates_as_if_nothing_were_rounded(rng: np.random.Generator) -> None:
    """Against the formula: every token goes to both experts, whose answers are constants."""
    rows = normalised_rows(rng, 2, 40)
    answers = np.array([3.0, -1.0])
    arguments = {"moe_layers": (0,), "num_experts": 2, "max_sequence_length": 40, "eval_capacity_factor": 2.0}
    encoder = encoder_with(
        {"router_weights/kernel": 0.5 * rng.standard_normal((8, 2)), "experts/output/bias": answers[:, None, None]},
        **arguments,
        router_dtype="bfloat16",
    )
    outputs, vjp = encoder.vjp(inputs_of(rows), training=False, outputs=("sequence_output", "routing"))
    p = outputs["routing"][0]["probabilities"].astype(np.float64).reshape(2, 40, 2)
    cotangent = rng.standard_normal(rows.shape).astype(np.float32)
    gradients = vjp({"sequence_output": cotangent})
    d_p = cotangent.sum(axis=-1, keepdims=True) * answers
    d_logits = p * (d_p - (p * d_p).sum(axis=-1, keepdims=True))
    layer = "transformer/layer_0/moe/router/router_weights"
    for name, expected in {
        "kernel": np.einsum("bsh,bse->he", rows, d_logits),
        "bias": d_logits.sum(axis=(0, 1)),
    }.items():
        # A bfloat16 number has 8 bits.
        np.testing.assert_allclose(gradients[f"{layer}/{name}"], expected, atol=2**-7 * np.abs(d_logits).sum() / 8)
        assert np.abs(expected).max() > 0.05 * np.abs(d_logits).sum() / 8


def test_jitter_multiplies_what_the_router_sees(rng: np.random.Generator) -> None:
    """By evenly spread numbers in [1 - e, 1 + e), one for each value; at inference by nothing."""
    rows = normalised_rows(rng, 32, 6)
    kernel = np.zeros((8, 2))
    kernel[0, 0] = 1
    encoder, _ = route(rows, kernel, router="experts_choose", jitter_noise=0.25, output_dropout=0.0)

    def factors(training: bool, seed: int) -> Array:
        call = encoder(inputs_of(rows), training=training, seed=seed, outputs=("routing",))
        p = call["routing"][0]["probabilities"].astype(np.float64).reshape(32, 6, 2)
        seen = rows[..., 0]
        # Small values drown in rounding.
        return (np.log(p[..., 0] / p[..., 1]) / seen)[np.abs(seen) > 0.3]

    np.testing.assert_allclose(factors(False, 1), 1, atol=1e-4)
    noisy = factors(True, 1)
    assert noisy.min() >= 0.75 - 1e-4
    assert noisy.max() < 1.25 + 1e-4
    assert noisy.mean() == pytest.approx(1, abs=0.03)
    assert noisy.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.1)
    assert len(np.unique(noisy.round(6))) > 0.9 * len(noisy)
    np.testing.assert_array_equal(noisy, factors(True, 1))
    assert (noisy != factors(True, 2)).any()


def test_jitter_does_not_reach_the_experts(rng: np.random.Generator) -> None:
    """One expert, which all tokens go to with probability 1, gives back what it gets."""
    rows = normalised_rows(rng, 4)
    eye = np.eye(8)[None]
    arguments = {"moe_layers": (0,), "num_experts": 1, "inner_dim": 8, "inner_activation": "linear"}
    weights = {"experts/intermediate/kernel": eye, "experts/output/kernel": eye}
    encoder = encoder_with(weights, **arguments, jitter_noise=0.5, output_dropout=0.0)
    added = encoder(inputs_of(rows), training=True, seed=3)["sequence_output"] - rows
    np.testing.assert_allclose(added, rows, atol=1e-5)


def test_groups_do_not_see_each_other(rng: np.random.Generator) -> None:
    """One example per group: the same bits alone and in a batch."""
    rows, kernel = normalised_rows(rng, 5, 12), rng.standard_normal((8, 3))
    for arguments in ({"router": "tokens_choose", "num_selected_experts": 2}, {"router": "experts_choose"}):
        encoder, _ = route(rows, kernel, **arguments, semantics="paper", max_group_size=12, min_expert_capacity=1)
        whole = encoder(inputs_of(rows))["sequence_output"]
        for example in range(5):
            alone = encoder(inputs_of(rows[example : example + 1]))["sequence_output"]
            np.testing.assert_array_equal(alone[0], whole[example])


def test_experts_are_exchanged_across_groups_only_on_request(rng: np.random.Generator) -> None:
    """With G groups and E experts, slots of group g and expert e are worked on by expert (g * E + e) // G."""
    experts, rows, kernel = 4, normalised_rows(rng, 2, 8), np.zeros((8, 4))
    for mixup in (False, True):
        encoder = encoder_with(
            {
                "router_weights/kernel": kernel,
                "moe/experts/output/bias": np.arange(1, experts + 1)[:, None, None],
            },
            moe_layers=(0,),
            num_experts=experts,
            max_sequence_length=8,
            group_mixup=mixup,
        )
        outputs = encoder(inputs_of(rows), outputs=("sequence_output", "routing"))
        added = (outputs["sequence_output"] - rows)[..., 0]
        (routing,) = outputs["routing"]
        expected = np.zeros((2, 8))
        for group, expert, slot in np.argwhere(routing["indices"] >= 0):
            worker = (group * experts + expert) // 2 if mixup else expert
            expected[group, routing["indices"][group, expert, slot]] += (worker + 1) / experts
        np.testing.assert_allclose(added, expected, atol=1e-5)
