"""This build beside another one: the same engines of both, interleaved."""

from __future__ import annotations

import contextlib
import pathlib
import statistics
from collections.abc import Sequence

from benchmarks import report
from benchmarks.timing import interleaved, median_ratio
from benchmarks.worker import Worker
from benchmarks.workload import Workload

ENGINES = (
    ("ours-f32", (1, 8)),
    ("ours-bf16", (1, 8)),
    ("ours-int8", (1, 8)),
    ("train-f32", (8,)),
    ("train-bf16", (8,)),
)
"""What is measured, and with how many sequences per call."""


def run(other: pathlib.Path, threads: int, rounds: int) -> str:
    """Measure the Base model, S=512, and return the printed table.

    Args:
        other: folder that the other build is installed in: ``pip install --no-deps --target FOLDER WHEEL``.
        threads: threads of both.
        rounds: timed turns of each.

    Raises:
        FileNotFoundError: There is no build in the folder.
    """
    if not (other / "sparse_mixer" / "__init__.py").exists():
        raise FileNotFoundError(f"{other}: no sparse_mixer; pip install --no-deps --target {other} WHEEL")
    lines = []
    for engine, batches in ENGINES:
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(Worker(engine, threads, "this")),
                stack.enter_context(Worker(engine, threads, "other", site=other)),
            ]
            for worker in workers:
                worker.build(Workload(), same_weights=False)
            for batch in batches:
                turns = interleaved(workers, batch, rounds, label=f"{engine}, batch {batch}")
                seconds = {name: statistics.median(each) for name, each in turns.items()}
                ratio = median_ratio(turns["this"], turns["other"])
                lines.append([engine, str(batch), *(f"{seconds[n]:.3f}" for n in ("this", "other")), f"{ratio:.3f}"])
    header: Sequence[str] = ["engine", "batch", "this build, s", "the other, s", "this / other"]
    return report.markdown_table(header, lines)
