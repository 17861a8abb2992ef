"""Interleaved timing of several workers, so that a slow minute of the machine hits all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from benchmarks.worker import Worker

TURN_SECONDS = 0.4
"""A turn of a worker repeats its call for about this long."""


def turn_plan(worker: Worker, batch: Any) -> tuple[int, int]:
    """Warm `worker` up at this batch size; return how many calls of a turn are not counted and how many are."""
    worker.call(batch)
    (seconds,) = worker.call(batch)
    if seconds > TURN_SECONDS:
        return 0, 1  # caches that another engine's turn has emptied matter little in so long a call
    return 1, round(TURN_SECONDS / seconds)


def interleaved(
    workers: Sequence[Worker], batch: Any, rounds: int, *, label: str = "", plan: tuple[int, int] | None = None
) -> dict[str, list[float]]:
    """Time every worker in turn, `rounds` times; a turn of short calls starts with one that is not counted.

    Args:
        workers: built workers; the order is rotated by one from round to round.
        batch: sequences per call, or the name of a task.
        rounds: turns of each worker.
        label: text of the progress bar.
        plan: how many calls of a turn are not counted and how many are; None for what `turn_plan` finds.

    Returns:
        For each worker's name the median seconds per call of each of its turns.
    """
    plans = {worker.name: plan or turn_plan(worker, batch) for worker in workers}
    turns: dict[str, list[float]] = {worker.name: [] for worker in workers}
    with tqdm(total=rounds * len(workers), desc=label or f"batch {batch}", leave=False) as progress:
        for round_index in range(rounds):
            shift = round_index % len(workers)
            for worker in (*workers[shift:], *workers[:shift]):
                skipped, counted = plans[worker.name]
                turns[worker.name].append(statistics.median(worker.call(batch, skipped + counted)[skipped:]))
                progress.update()
    return turns


def median_ratio(baseline: Sequence[float], turns: Sequence[float]) -> float:
    """Return the median over rounds of `baseline / turns`: how much faster than the baseline, noise cancelled."""
    return statistics.median(b / t for b, t in zip(baseline, turns, strict=True))
