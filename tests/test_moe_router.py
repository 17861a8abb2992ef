"""Groups, capacity, ties and metrics of the experts-choose router."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from isolated import encoder_with, inputs_of, normalised_rows


def route(rows: Any, weights: dict[str, Any] | None = None, **arguments: Any) -> tuple[Any, Any]:
    """Encoder with one MoE layer, and that layer's routing of `rows`."""
    _, length, width = rows.shape
    encoder = encoder_with(
        weights or {},
        **{"moe_layers": (0,), "max_sequence_length": length, "hidden_size": width} | arguments,
    )
    (routing,) = encoder(inputs_of(rows), outputs=("routing",))["routing"]
    return encoder, routing


@pytest.mark.parametrize(
    ("factor", "tokens", "experts", "capacity"),
    [
        pytest.param(1.0, 20, 8, 2, id="2.5 to even"),
        pytest.param(1.0, 28, 8, 4, id="3.5 to even"),
        pytest.param(1.25, 8, 4, 2, id="2.5 to even, factor"),
        pytest.param(0.75, 8, 4, 2, id="1.5 to even"),
        pytest.param(0.05, 8, 4, 0, id="no minimum of 1"),
        pytest.param(0.54, 25, 3, 4, id="4.5 in doubles from left to right"),
        pytest.param(2.3, 25, 5, 11, id="11.499999999999998"),
        pytest.param(1.1, 25, 5, 6, id="5.500000000000001"),
        pytest.param(3.0, 9, 3, 9, id="all tokens"),
    ],
)
@pytest.mark.filterwarnings("ignore:the expert capacity rounds to 0")
def test_capacity(rng: np.random.Generator, factor: float, tokens: int, experts: int, capacity: int) -> None:
    _, routing = route(
        normalised_rows(rng, 1, tokens), num_experts=experts, eval_capacity_factor=factor, train_capacity_factor=1.0
    )
    assert routing["indices"].shape == (1, experts, capacity)


def test_training_has_its_own_capacity(rng: np.random.Generator) -> None:
    encoder, routing = route(
        normalised_rows(rng, 1, 12), num_experts=3, eval_capacity_factor=0.5, train_capacity_factor=1.5
    )
    assert routing["indices"].shape == (1, 3, 2)
    inputs = inputs_of(normalised_rows(rng, 1, 12))
    (routing,) = encoder(inputs, training=True, outputs=("routing",))["routing"]
    assert routing["indices"].shape == (1, 3, 6)


@pytest.mark.parametrize(
    ("batch", "length", "examples", "shape"),
    [
        (2, 50, 0.5, (4, 25)),
        (14, 50, 0.58, (25, 28)),  # 50 * 0.58 is just below 29
        (7, 100, 0.29, (25, 28)),
        (3, 16, 1.5, (2, 24)),
        (4, 16, 4.0, (1, 64)),
        (3, 8, 0.3, (12, 2)),
    ],
)
def test_groups(rng: np.random.Generator, batch: int, length: int, examples: float, shape: tuple[int, int]) -> None:
    rows = normalised_rows(rng, batch, length)
    _, routing = route(rows, num_experts=2, examples_per_group=examples)
    assert routing["probabilities"].shape == (*shape, 2)


@pytest.mark.parametrize(
    ("batch", "length", "size", "groups"),
    [(2, 16, 16, 2), (2, 16, 32, 1), (2, 16, 100, 1), (3, 22, 16, 6), (2, 16, 5, 8), (2, 16, 1, 32), (1, 7, 3, 7)],
)
def test_max_group_size(rng: np.random.Generator, batch: int, length: int, size: int, groups: int) -> None:
    """The number of groups is the smallest divisor of the tokens that is at least tokens div size."""
    _, routing = route(normalised_rows(rng, batch, length), num_experts=1, max_group_size=size)
    assert routing["probabilities"].shape == (groups, batch * length // groups, 1)


@pytest.mark.parametrize(("tokens", "capacity"), [(4, 1), (6, 2), (16, 5), (33, 16), (40, 40)])
def test_equal_tokens_lowest_index_wins(tokens: int, capacity: int) -> None:
    rows = np.tile(np.array([1, -1] * 4, np.float32), (2, tokens, 1))
    kernel = np.random.default_rng(3).standard_normal((8, 2))
    _, routing = route(
        rows,
        {"router_weights/kernel": kernel},
        num_experts=2,
        eval_capacity_factor=2 * capacity / tokens,
        train_capacity_factor=1.0,
    )
    picked = np.sort(routing["indices"], axis=-1)
    np.testing.assert_array_equal(picked, np.broadcast_to(np.arange(capacity), (2, 2, capacity)))


def test_duplicates_among_others_lowest_index_wins(rng: np.random.Generator) -> None:
    """Equal rows at random places, so that ties lie at the edge of the capacity."""
    for _ in range(50):
        distinct = normalised_rows(rng, 1, 5)[0]
        rows = distinct[rng.integers(0, 5, (3, 24))]
        kernel = rng.standard_normal((8, 4))
        _, routing = route(rows, {"router_weights/kernel": kernel}, num_experts=4, eval_capacity_factor=1.3)
        probabilities = routing["probabilities"].transpose(0, 2, 1)
        capacity = routing["indices"].shape[-1]
        expected = np.argsort(-probabilities, axis=-1, kind="stable")[..., :capacity]
        np.testing.assert_array_equal(np.sort(routing["indices"]), np.sort(expected))


def test_saturated_probabilities_tie_although_logits_differ() -> None:
    """The choice is made among float32 probabilities: 1.0 and 1.0, whatever the logits were."""
    rows = np.tile(np.array([1, -1] * 4, np.float32), (1, 6, 1))
    rows[0] *= np.sign(np.arange(1, 7) - 3.5)[:, None]
    kernel = np.zeros((8, 2))
    kernel[0, 0] = 200
    _, routing = route(rows, {"router_weights/kernel": kernel}, num_experts=2, eval_capacity_factor=2 / 3)
    # Rows 3, 4, 5 have probability 1 for expert 0, the others for expert 1.
    np.testing.assert_array_equal(np.sort(routing["indices"][0]), [[3, 4], [0, 1]])


def test_single_expert_takes_the_first_tokens(rng: np.random.Generator) -> None:
    _, routing = route(normalised_rows(rng, 2, 10), num_experts=1, eval_capacity_factor=0.5)
    np.testing.assert_array_equal(np.sort(routing["indices"]), np.tile(np.arange(5), (2, 1, 1)))


@pytest.mark.filterwarnings("ignore:the expert capacity rounds to 0")
def test_metrics_of_capacity_zero_are_those_of_the_reference(rng: np.random.Generator) -> None:
    encoder, _ = route(normalised_rows(rng, 1, 8), num_experts=4, eval_capacity_factor=0.05)
    assert np.isposinf(encoder.aux_losses["fraction_tokens_left_behind"]).all()
    assert np.isnan(encoder.aux_losses["router_confidence"]).all()


def test_metrics_are_means_over_calls_until_reset(rng: np.random.Generator) -> None:
    encoder, _ = route(normalised_rows(rng, 1, 8), num_experts=2)
    for metric in encoder.metrics:
        metric.reset_state()
    (bias,) = [weight for weight in encoder.weights if weight.key.endswith("router_weights/bias")]
    values = []
    for logit in (0.0, 2.0, 5.0):
        bias.assign(np.array([logit, 0.0], np.float32))
        encoder(inputs_of(normalised_rows(rng, 1, 8)))
        values.append(float(encoder.aux_losses["unscaled_router_z_loss"][0]))
        assert values[-1] == pytest.approx(np.log(np.exp(logit) + 1) ** 2, rel=1e-6)
    z_loss = next(metric for metric in encoder.metrics if metric.name == "unscaled_router_z_loss")
    assert float(z_loss.result()) == pytest.approx(np.mean(values), rel=1e-6)
    z_loss.reset_state()
    assert float(z_loss.result()) == 0
