"""How time grows with batch, sequence length, group size, experts and threads; one figure per question."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from benchmarks import report
from benchmarks.timing import interleaved
from benchmarks.worker import Worker, WorkerError
from benchmarks.workload import Workload


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement of a sweep: `x` is what varies, `series` names the line it belongs to."""

    x: float
    workload: Workload
    batch: int
    series: str = ""
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A question, the points that answer it, and the engines asked."""

    name: str
    x_label: str
    points: tuple[Point, ...]
    peers: tuple[str, ...] = ("ours-f32", "tf")
    per: str = "sequence"


LENGTHS = (128, 256, 512, 1024, 2048, 4096)


def _fourier_only() -> tuple[Point, ...]:
    # FNet's layers: what the two ways of transforming cost shows best without attention and experts.
    points = []
    for length in LENGTHS:
        for fft in (False, True):
            workload = Workload(
                num_layers=4,
                max_sequence_length=length,
                mixing_mechanism="fourier",
                use_fft=fft,
                attention_layers=(),
                moe_layers=(),
            )
            points.append(Point(length, workload, 1, "FFT" if fft else "DFT matrices"))
    return tuple(points)


def _experts() -> tuple[Point, ...]:
    # One expert layer in four: 128 experts in each of the Base model's four layers would need 4.3 GB.
    shape = {"num_layers": 4, "moe_layers": (2,), "attention_layers": (3,)}
    return tuple(Point(count, Workload(num_experts=count, **shape), 8) for count in (4, 8, 16, 32, 64, 128))


def sweeps(threads: int) -> dict[str, Sweep]:
    """Return every sweep by name; `threads` is the largest number of threads tried."""
    all_dtypes = ("ours-f32", "ours-bf16", "ours-int8")
    answers = (
        Sweep(
            "batch", "batch size", tuple(Point(b, Workload(), b) for b in (1, 2, 4, 8, 16, 32, 64)), (*all_dtypes, "tf")
        ),
        Sweep(
            "length",
            "sequence length",
            tuple(Point(n, Workload(max_sequence_length=n), 1) for n in LENGTHS),
            per="token",
        ),
        Sweep("fourier", "sequence length", _fourier_only(), per="token"),
        Sweep(
            "groups",
            "examples per group",
            tuple(Point(g, Workload(examples_per_group=g), 16) for g in (1, 2, 4, 8, 16)),
        ),
        Sweep("experts", "experts", _experts()),
        Sweep(
            "threads",
            "threads",
            tuple(Point(t, Workload(), 8, threads=t) for t in range(1, threads + 1)),
            (*all_dtypes, "tf"),
        ),
    )
    return {sweep.name: sweep for sweep in answers}


def measure(sweep: Sweep, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Measure every point of `sweep` with every engine; an engine that fails at a point is left out there."""
    rows = []
    with tqdm(total=len(sweep.points), desc=sweep.name, leave=False) as progress:
        # Neighbouring points of one workload share their engines.
        for (workload, limit), points in itertools.groupby(sweep.points, lambda p: (p.workload, p.threads)):
            workers = [Worker(peer, limit or threads) for peer in sweep.peers]
            try:
                able = [worker for worker in workers if _works(worker, sweep, "build", workload)]
                for point in points:
                    able = [worker for worker in able if _works(worker, sweep, "call", point.batch)]
                    rows += _rows(able, sweep, point, rounds)
                    progress.update()
            finally:
                for worker in workers:
                    worker.close()
    return rows


def _rows(workers: Sequence[Worker], sweep: Sweep, point: Point, rounds: int) -> list[dict[str, Any]]:
    """Return the result of each engine at one point."""
    turns = interleaved(workers, point.batch, rounds, label=f"{sweep.name} {point.x:g}") if workers else {}
    rows = []
    for peer, seconds in turns.items():
        rate = point.batch / statistics.median(seconds)
        tokens = rate * point.workload.max_sequence_length
        row = {"x": point.x, "series": point.series, "peer": peer, "batch": point.batch}
        rows.append({**row, "sequences_per_second": rate, "tokens_per_second": tokens})
    return rows


def _works(worker: Worker, sweep: Sweep, method: str, argument: Workload | int) -> bool:
    """Let the worker build or call; report a failure in one line and return False."""
    try:
        getattr(worker, method)(argument)
    except WorkerError as error:
        tqdm.write(f"{sweep.name}: {worker.name} left out: {str(error).strip().splitlines()[-1]}")
        return False
    return True


def run(names: Sequence[str], threads: int, rounds: int, folder: pathlib.Path) -> str:
    """Measure the named sweeps (all of them if none is named), save data and figures, return the tables."""
    from benchmarks.figures import draw

    known = sweeps(os.cpu_count() or 1)
    texts = []
    for name in names or known:
        rows = measure(known[name], threads, rounds)
        header = [known[name].x_label, "series", "engine", "ms per sequence", "tokens/s"]
        lines = [
            [
                f"{r['x']:g}",
                r["series"],
                r["peer"],
                f"{1e3 / r['sequences_per_second']:.1f}",
                f"{r['tokens_per_second']:.0f}",
            ]
            for r in rows
        ]
        table = report.markdown_table(header, lines)
        report.save(folder, f"scaling-{name}", {"threads": threads, "rows": rows}, table)
        draw(known[name], rows, folder / f"scaling-{name}.svg")
        texts.append(f"{name}\n{table}")
    return "\n\n".join(texts)
