"""Pairs of settings of the Base model that should cost the same, or one a multiple of the other: interleaved calls."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence

from tqdm.auto import tqdm

from benchmarks import report
from benchmarks.timing import median_ratio
from benchmarks.worker import Worker
from benchmarks.workload import Workload

BASE = Workload()


@dataclasses.dataclass(frozen=True)
class Side:
    """One setting."""

    peer: str
    workload: Workload = BASE
    batch: int = 8
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question: how much faster, per sequence, is the second than the first?"""

    question: str
    first: Side
    second: Side


OURS = ("ours-f32", "ours-bf16", "ours-int8")
# FNet's layers, so that the transform is not hidden behind attention.
FOURIER = Workload(
    max_sequence_length=4096, mixing_mechanism="fourier", use_fft=True, attention_layers=(), moe_layers=(), num_layers=4
)


def pairs(threads: int) -> list[Pair]:
    """Return all pairs; those of threads only where there are several."""
    grouped = Workload(examples_per_group=8)
    several = [
        Pair(f"{threads} threads against 1, {peer}", Side(peer, threads=1), Side(peer)) for peer in OURS if threads > 1
    ]
    return [
        *several,
        *(Pair(f"batch 64 against 8, {peer}", Side(peer), Side(peer, batch=64)) for peer in OURS),
        Pair("groups of 8 examples against 1", Side("ours-f32"), Side("ours-f32", grouped)),
        Pair(
            "Fourier, S=4096, use_fft: against TensorFlow graph",
            Side("tf", FOURIER, batch=1),
            Side("ours-f32", FOURIER, batch=1),
        ),
    ]


def _measure(pair: Pair, threads: int, rounds: int) -> tuple[float, float, float]:
    """Return the median seconds per sequence of both sides and how much faster the second is."""
    sides = (pair.first, pair.second)
    seconds: tuple[list[float], list[float]] = ([], [])
    with (
        Worker(sides[0].peer, sides[0].threads or threads, "first") as first,
        Worker(sides[1].peer, sides[1].threads or threads, "second") as second,
    ):
        workers = (first, second)
        for worker, side in zip(workers, sides, strict=True):
            worker.build(side.workload)
            worker.call(side.batch, 2)
        for number in range(rounds):
            for i in (0, 1) if number % 2 else (1, 0):
                # As many sequences on both sides, so that a disturbance hits both alike.
                calls = max(1, max(side.batch for side in sides) // sides[i].batch)
                per_call = workers[i].call(sides[i].batch, calls)
                seconds[i].append(statistics.mean(per_call) / sides[i].batch)
    return statistics.median(seconds[0]), statistics.median(seconds[1]), median_ratio(*seconds)


def run(questions: Sequence[str], threads: int, rounds: int, folder: pathlib.Path | None) -> str:
    """Measure the pairs whose question holds one of `questions` (all if there are none); return the printed table."""
    chosen = [p for p in pairs(threads) if not questions or any(word in p.question for word in questions)]
    results = {pair.question: _measure(pair, threads, rounds) for pair in tqdm(chosen, desc="ratios", leave=False)}
    header = ["pair", "ms per sequence", "against", "x faster"]
    lines = [
        [question, f"{1e3 * second:.1f}", f"{1e3 * first:.1f}", f"{ratio:.2f}"]
        for question, (first, second, ratio) in results.items()
    ]
    table = report.markdown_table(header, lines)
    if folder is not None:
        report.save(folder, "ratios", {"threads": threads, "rounds": rounds, "pairs": results}, table)
    return table
