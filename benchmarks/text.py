"""Encoding sentences with the same weights: ours beside other engines, in one interleaved run."""

from __future__ import annotations

import contextlib
import pathlib
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm.auto import tqdm

from benchmarks import report
from benchmarks.peers import SENTENCE_ENCODERS
from benchmarks.rivals import Turns, by_precision, closest_rivals
from benchmarks.sentence_tasks import SHAPES, TASKS, SentenceLoad, make_load
from benchmarks.timing import interleaved
from benchmarks.worker import Worker

TEXTS_ONLY = ("text-fastembed",)
"""Engines that do not take token ids."""


def run(
    model: pathlib.Path,
    engines: Sequence[str],
    tasks: Sequence[str],
    *,
    threads: int,
    rounds: int,
    passages: int,
    passage_rounds: int,
    folder: pathlib.Path | None,
) -> str:
    """Measure engines and return the printed tables.

    Args:
        model: folder of a sentence encoder.
        engines: keys of `SENTENCE_ENCODERS`.
        tasks: keys of `TASKS`.
        threads: threads of every engine.
        rounds: timed turns of each engine at each task.
        passages: texts of W4.
        passage_rounds: timed turns at W4, each of which encodes all of them.
        folder: where `text.json` and `text.md` go, or None.
    """
    load = make_load(model, passages)
    with contextlib.ExitStack() as stack:
        workers = start(stack, engines, threads, load)
        vectors = {worker.name: worker.answer("first passages") for worker in workers}
        turns = {task: _measure(workers, task, passage_rounds if task == "W4" else rounds) for task in tasks}
        resident = {worker.name: worker.memory().resident for worker in workers}
    reference = engines[0] if "text-f32" not in engines else "text-f32"
    cosines = {peer: float(cosine(found, vectors[reference]).min()) for peer, found in vectors.items()}
    calls = {task: len(load.inputs(task).texts) if task == "W4" else SHAPES.get(task, (1, 0))[0] for task in tasks}
    table = _table(engines, turns, calls)
    if folder is not None:
        results = {
            "threads": threads,
            "passages": passages,
            "seconds_per_call": turns,
            "sequences_per_call": calls,
            "resident_bytes": resident,
            f"least_cosine_to_{reference}": cosines,
        }
        report.save(folder, "text", results, table)
    agree = ", ".join(f"{peer} {value:.6f}" for peer, value in cosines.items())
    gibibytes = sum(resident.values()) / 2**30
    return f"{table}\n\nLeast cosine to {reference} (the first passages): {agree}\n\nAll processes: {gibibytes:.1f} GiB"


def start(stack: contextlib.ExitStack, engines: Sequence[str], threads: int, load: SentenceLoad) -> list[Worker]:
    """Start engines, each in a process of its own that ends with `stack`."""
    workers = [stack.enter_context(Worker(engine, threads)) for engine in engines]
    for worker in tqdm(workers, desc="building", leave=False):
        worker.build(load)
    return workers


def cosine(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the cosines [N] of rows [N, D] in the same places, computed in float64."""
    a, b = np.asarray(vectors, np.float64), np.asarray(others, np.float64)
    return np.asarray((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))


def _measure(workers: Sequence[Worker], task: str, rounds: int) -> dict[str, list[float]]:
    able = [worker for worker in workers if task not in SHAPES or worker.name not in TEXTS_ONLY]
    # Passages take seconds, and the first of them have been encoded before.
    return interleaved(able, task, rounds, label=task, plan=(0, 1) if task == "W4" else None)


def _table(engines: Sequence[str], turns: Turns, calls: Mapping[str, int]) -> str:
    rivals = closest_rivals(turns)
    lines = []
    for precision, peers in by_precision(engines).items():
        for peer in peers:
            cells = (_cell(turns[task].get(peer), task, calls) for task in turns)
            lines.append([SENTENCE_ENCODERS[peer].label, *cells])
        ratios = [rivals.get((precision, task)) for task in turns]
        if any(ratios):
            lines.append([f"**ours / best peer, {precision}**", *(f"**{r.ratio:.2f}**" if r else "" for r in ratios)])
    legend = "; ".join(f"{task}: {TASKS[task]}" for task in turns)
    return f"{report.markdown_table(['engine', *turns], lines)}\n\n{legend}. Ratios above 1: ours is faster."


def _cell(seconds: Sequence[float] | None, task: str, calls: Mapping[str, int]) -> str:
    if seconds is None:
        return ""
    median = statistics.median(seconds)
    return f"{1e3 * median:.2f}" if task.startswith("W3") else f"{calls[task] / median:.1f}"
