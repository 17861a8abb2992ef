"""Our engine beside the closest one of the same precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.peers import ENGINES
from benchmarks.timing import median_ratio

Turns = Mapping[str, Mapping[str, Sequence[float]]]
"""For each task and engine the seconds per call of its turns."""


@dataclasses.dataclass(frozen=True)
class Rival:
    """Of our engine at a task: the closest engine of the same precision, and how much faster we are."""

    peer: str
    ratio: float


def closest_rivals(turns: Turns) -> dict[tuple[str, str], Rival]:
    """Return by precision and task how our engine stands to the fastest other one, round by round."""
    found = {}
    for task, of_peers in turns.items():
        for precision, peers in by_precision(of_peers).items():
            own = [peer for peer in peers if _is_ours(peer)]
            ratios = [
                Rival(peer, median_ratio(of_peers[peer], of_peers[own[0]]))
                for peer in peers
                if own and not _is_ours(peer)
            ]
            if ratios:
                found[precision, task] = min(ratios, key=lambda rival: rival.ratio)
    return found


def by_precision(engines: Iterable[str]) -> dict[str, list[str]]:
    """Return engines by the precision of their arithmetic, in the order of the table."""
    wanted, groups = set(engines), dict[str, list[str]]()
    for name, spec in ENGINES.items():
        if name in wanted:
            groups.setdefault(spec.compute, []).append(name)
    return groups


def _is_ours(peer: str) -> bool:
    return ENGINES[peer].module.endswith("_ours")
