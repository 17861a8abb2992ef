"""Training steps: the Base model beside TensorFlow, and our own engine on the paper's architectures."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from benchmarks import report
from benchmarks.peers import TRAINERS
from benchmarks.timing import interleaved, median_ratio
from benchmarks.worker import Worker
from benchmarks.workload import BERT_BASE, Workload

GIGABYTE = 1e9

ARCHITECTURES = {
    "BERT Base": (BERT_BASE, (1.0, 1.0)),
    "Sparse Mixer": (Workload(), (1.65, 1.61)),
    "Fast Sparse Mixer": (Workload(train_capacity_factor=0.5, eval_capacity_factor=0.5), (1.89, 1.98)),
}
"""Configurations of the paper's table 3, each with its speed there beside BERT Base: training and inference."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One engine's training steps."""

    peer: str
    seconds_per_step: float
    turns: list[float]
    sequences_per_second: float
    ratio: float
    peak_bytes: int
    relative_peak: float
    last_loss: float


def run(peers: Sequence[str], batch: int, threads: int, rounds: int, baseline: str, folder: pathlib.Path | None) -> str:
    """Measure training steps of `peers` on the Base model and return the printed table.

    Args:
        peers: keys of `TRAINERS`.
        batch: sequences per step.
        threads: threads of every engine.
        rounds: timed steps of each engine.
        baseline: the peer that ratios refer to (higher is faster).
        folder: where `training.json` and `training.md` go, or None.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(peer, threads)) for peer in peers]
        for worker in tqdm(workers, desc="building", leave=False):
            worker.build(Workload())
            worker.reset_peak()
        turns = interleaved(workers, batch, rounds, label="training")
        peaks = {worker.name: worker.memory().peak for worker in workers}
        losses = {worker.name: float(worker.answer(batch)) for worker in workers}
    rows = []
    for peer, seconds in turns.items():
        median = statistics.median(seconds)
        ratio, relative = median_ratio(turns[baseline], seconds), peaks[peer] / peaks[baseline]
        rows.append(Row(peer, median, seconds, batch / median, ratio, peaks[peer], relative, losses[peer]))
    table = _table(rows, baseline)
    if folder is not None:
        results = {"threads": threads, "batch": batch, "baseline": baseline}
        report.save(folder, "training", {**results, "rows": [dataclasses.asdict(row) for row in rows]}, table)
    return table


def _table(rows: Sequence[Row], baseline: str) -> str:
    name = TRAINERS[baseline].label
    header = ["engine", "s per step", "seq/s", f"x {name}", "peak GB", f"of {name}'s", "loss"]
    lines = [
        [
            TRAINERS[row.peer].label,
            f"{row.seconds_per_step:.2f}",
            f"{row.sequences_per_second:.2f}",
            f"{row.ratio:.2f}",
            f"{row.peak_bytes / GIGABYTE:.2f}",
            f"{row.relative_peak:.2f}",
            f"{row.last_loss:.4f}",
        ]
        for row in rows
    ]
    return report.markdown_table(header, lines)


def compare_architectures(batch: int, threads: int, rounds: int, folder: pathlib.Path | None) -> str:
    """Measure our engine, float32 and bfloat16, on the paper's architectures and return the printed table.

    Args:
        batch: sequences per step or call.
        threads: threads of the engine.
        rounds: timed turns of each architecture.
        folder: where `architectures.json` and `architectures.md` go, or None.
    """
    speeds: dict[str, dict[str, float]] = {name: {} for name in ARCHITECTURES}
    raw: dict[str, Any] = {}
    kinds = ("train-f32", "ours-f32", "train-bf16", "ours-bf16")
    for peer in kinds:
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(peer, threads, name)) for name in ARCHITECTURES]
            for worker in workers:
                worker.build(ARCHITECTURES[worker.name][0])
            turns = raw[peer] = interleaved(workers, batch, rounds, label=peer)
        for name, seconds in turns.items():
            speeds[name][peer] = median_ratio(turns["BERT Base"], seconds)
    header = ["architecture", "training", "inference", "training, bfloat16", "inference, bfloat16", "paper"]
    lines = [
        [name, *(f"{speeds[name][peer]:.2f}" for peer in kinds), " / ".join(f"{speed:.2f}" for speed in paper)]
        for name, (_, paper) in ARCHITECTURES.items()
    ]
    table = report.markdown_table(header, lines)
    if folder is not None:
        results = {"threads": threads, "batch": batch, "speed_to_bert": speeds, "seconds": raw}
        report.save(folder, "architectures", results, table)
    return table
