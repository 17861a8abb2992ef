"""BERT Base in our engine, PyTorch, TensorFlow, ONNX Runtime and OpenVINO: one interleaved run on the same weights."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from benchmarks import inference
from benchmarks.bert_load import Bert
from benchmarks.peers import ENGINES
from benchmarks.rivals import closest_rivals
from benchmarks.workload import BERT_BASE, Workload

TOLERANCE = 1e-3
"""Largest difference between outputs of float32 engines, which are of the order of 1."""


def run(
    engines: Sequence[str],
    batches: Sequence[int],
    threads: int,
    rounds: int,
    folder: pathlib.Path | None,
    sizes: Workload = BERT_BASE,
) -> str:
    """Measure engines and return the printed table.

    Args:
        engines: keys of `BERTS`; the first is what others are compared with.
        batches: batch sizes.
        threads: threads of every engine.
        rounds: timed turns of each engine per batch size.
        folder: where `bert.json` and `bert.md` go, or None.
        sizes: those of the model.
    """
    load = Bert.random(sizes)
    options = {"workload": load, "tolerance": TOLERANCE, "compare": comparisons}
    return inference.run(engines, batches, threads, rounds, engines[0], folder, "bert", **options)


def comparisons(rows: Sequence[inference.Row]) -> list[str]:
    """Return how our engine stands to the closest one of the same precision, round by round."""
    turns: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        turns.setdefault(f"batch {row.batch}", {})[row.peer] = row.turns
    return [
        f"{precision}, {batch}: ours is {rival.ratio:.2f} x {ENGINES[rival.peer].label}, the closest"
        for (precision, batch), rival in closest_rivals(turns).items()
    ]
