"""How long an update takes on many machines: arithmetic that a table and a plot come from.

Machines have a link each way of `bandwidth`, through a switch that never is the bottleneck. An exchange of a bucket is
two steps, each of which sends ``(n - 1) / n`` of its bytes to ``n - 1`` others, one message after the other; between
them the sum is made. Machines compute equally fast but for random differences; all wait for the slowest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BUCKET = 50_000_000


@dataclass(frozen=True)
class Network:
    """What lies between ranks.

    Attributes:
        bandwidth: Bytes per second of a rank, each way.
        latency: Seconds of a message.
        sum_rate: Bytes of gradients per second that a rank adds up.
    """

    bandwidth: float
    latency: float
    sum_rate: float


@dataclass(frozen=True)
class Update:
    """One update of one rank, without exchange.

    Attributes:
        compute: Seconds of forward and backward of all batches of the rank.
        rest: Seconds of the rest: optimiser, records, data.
        ready: Of each bucket the seconds before the end of `compute` at which it is finished, and its bytes.
        jitter: Standard deviation of `compute` over the ranks, as a share of it.
    """

    compute: float
    rest: float
    ready: Sequence[tuple[float, int]]
    jitter: float = 0.0


def exchange_seconds(size: int, ranks: int, network: Network, wire: float = 1.0) -> float:
    """Seconds in which a bucket of `size` bytes is exchanged; `wire` is the share of them that travels."""
    if ranks == 1:
        return 0.0
    sent = size * wire * (ranks - 1) / ranks
    return 2 * (network.latency * (ranks - 1) + sent / network.bandwidth) + size / network.sum_rate


def update_seconds(
    update: Update, ranks: int, network: Network, *, overlap: bool = True, wire: float = 1.0, cost: float = 0.0
) -> float:
    """Seconds of an update on so many ranks.

    Args:
        update: Without exchange.
        ranks: How many there are.
        network: What lies between them.
        overlap: Whether buckets are exchanged as soon as they are finished.
        wire: Share of the bytes that travels.
        cost: Seconds of computing, less than 1, that a second of exchange takes from it while they overlap.
    """
    # About the expected largest of so many normal numbers.
    slowest = update.compute * (1 + update.jitter * math.sqrt(2 * math.log(ranks)))
    done = 0.0
    delay = 0.0
    for before_end, size in update.ready:
        computed = slowest + delay
        start = max(done, computed - before_end if overlap else computed)
        seconds = exchange_seconds(size, ranks, network, wire)
        # What is left to compute goes on more slowly beside the exchange, and later buckets are finished later.
        delay += cost * min(seconds, (computed - start) / (1 - cost)) if start < computed else 0.0
        done = start + seconds
    return max(done, slowest + delay) + update.rest


def efficiency(update: Update, ranks: int, network: Network, **options: float) -> float:
    """Work of so many ranks per second over that of as many that need not exchange anything."""
    return (update.compute + update.rest) / update_seconds(update, ranks, network, **options)  # type: ignore[arg-type]


def fitted(size: int, seconds: dict[int, float], latency: float, sum_rate: float, wire: float = 1.0) -> Network:
    """The network in which exchanging `size` bytes in buckets takes the measured `seconds`, by number of ranks.

    The bandwidth is the one thing that is fitted, to the smallest number of ranks.
    """
    ranks = min(seconds)
    buckets = math.ceil(size / BUCKET)
    fixed = 2 * latency * (ranks - 1) * buckets + size / sum_rate
    moved = 2 * size * wire * (ranks - 1) / ranks
    return Network(moved / max(seconds[ranks] - fixed, 1e-9), latency, sum_rate)
