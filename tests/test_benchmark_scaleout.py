"""`python -m benchmarks scaleout`: its arithmetic."""

from __future__ import annotations

import pytest

from benchmarks.scaleout import extrapolated
from benchmarks.scaleout_model import BUCKET, Network, Update, efficiency, exchange_seconds, fitted, update_seconds

FAST = Network(1e9, 0.0, 1e18)
UPDATE = Update(1.0, 0.1, [(0.6, 200_000_000), (0.2, 100_000_000), (0.0, 100_000_000)])


def test_an_exchange_moves_each_piece_to_its_adder_and_back() -> None:
    assert exchange_seconds(10**9, 1, FAST) == 0.0
    assert exchange_seconds(10**9, 2, FAST) == pytest.approx(1.0)
    assert exchange_seconds(10**9, 4, FAST) == pytest.approx(1.5)
    assert exchange_seconds(10**9, 4, FAST, wire=0.5) == pytest.approx(0.75)
    slow = Network(1e9, 1e-3, 2e9)
    assert exchange_seconds(10**9, 4, slow) == pytest.approx(1.5 + 2 * 3e-3 + 0.5)


def test_what_is_ready_early_is_hidden() -> None:
    # Buckets take 0.2, 0.1 and 0.1 s between two ranks.
    assert update_seconds(UPDATE, 2, FAST, overlap=False) == pytest.approx(1.0 + 0.4 + 0.1)
    assert update_seconds(UPDATE, 2, FAST) == pytest.approx(1.0 + 0.1 + 0.1)
    # At half its speed beside 0.3 s of exchange, backward ends 0.15 s later, and its last bucket with it.
    assert update_seconds(UPDATE, 2, FAST, cost=0.5) == pytest.approx(1.0 + 0.15 + 0.1 + 0.1)
    # Beside an exchange that never ends, its last 0.6 s take 1.2 s.
    assert update_seconds(UPDATE, 2, Network(1e8, 0.0, 1e18), cost=0.5) == pytest.approx(0.4 + 4.0 + 0.1)
    # A network so slow that it never waits: from the first bucket on it is busy.
    assert update_seconds(UPDATE, 2, Network(1e8, 0.0, 1e18)) == pytest.approx(0.4 + 4.0 + 0.1)
    assert efficiency(UPDATE, 1, FAST) == pytest.approx(1.0)


def test_a_network_is_found_from_its_times() -> None:
    network = Network(3e9, 1e-4, 5e9)
    sizes = [BUCKET] * 7
    seconds = {ranks: sum(exchange_seconds(size, ranks, network) for size in sizes) for ranks in (2, 4)}
    found = fitted(sum(sizes), seconds, 1e-4, 5e9)
    assert found.bandwidth == pytest.approx(3e9)
    assert sum(exchange_seconds(size, 4, found) for size in sizes) == pytest.approx(seconds[4])


def test_more_per_machine_and_less_on_the_wire_scale_better() -> None:
    table = extrapolated(UPDATE, 8)["efficiency"]
    plain, hidden, half, larger = (
        table[f"{label}, 10 Gbit/s"][-1]
        for label in ("8, float32, no overlap", "8, float32, overlap", "8, bfloat16, overlap", "64, bfloat16, overlap")
    )
    assert 0 < plain < hidden < half < larger < 1
