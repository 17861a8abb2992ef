"""What a user waits for and pays before the first result: import, construction, first call, memory."""

from __future__ import annotations

import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence

from tqdm.auto import tqdm

from benchmarks import report
from benchmarks.peers import PEERS
from benchmarks.worker import Memory, Worker
from benchmarks.workload import Workload

MEBIBYTE = 1 << 20


def import_seconds(statement: str, repeats: int) -> float:
    """Return the median time of `statement` (an import) in a fresh interpreter, measured inside it."""
    program = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    times = []
    for _ in range(repeats):
        answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        times.append(float(answer.stdout.splitlines()[-1]))
    return statistics.median(times)


def _start(peer: str, batch: int, threads: int) -> tuple[float, float, Memory, Memory]:
    """Start `peer` afresh; return seconds to build and of the first call, memory when built and after calls."""
    with Worker(peer, threads) as worker:
        build = worker.build(Workload(), same_weights=False)
        built = worker.memory()
        worker.reset_peak()
        (first,) = worker.call(batch)
        worker.call(batch, 3)
        return build, first, built, worker.memory()


def run(peers: Sequence[str], batch: int, threads: int, folder: pathlib.Path | None) -> str:
    """Measure start-up of each engine in a fresh process and return the printed table.

    Args:
        peers: keys of `PEERS`.
        batch: sequences of the calls whose memory is measured.
        threads: threads of every engine.
        folder: where `startup.json` and `startup.md` go, or None.
    """
    imports = {
        "numpy": import_seconds("import numpy", 15),
        "numpy and sparse_mixer": import_seconds("import numpy, sparse_mixer", 15),
    }
    rows, results = [], []
    for peer in tqdm(peers, desc="start-up", leave=False):
        _start(peer, batch, threads)  # a start that does not count: converts models, fills the file cache
        build, first, built, used = _start(peer, batch, threads)
        results.append(
            {"peer": peer, "build": build, "first_call": first, "peak_build": built.peak, "peak_calls": used.peak}
        )
        sizes = (built.peak, built.resident, used.peak)
        rows.append([PEERS[peer].label, f"{build:.1f}", f"{first:.2f}", *(f"{s / MEBIBYTE:.0f}" for s in sizes)])
    header = ["engine", "import + build, s", "first call, s", "peak building, MiB", "built, MiB", "peak calling, MiB"]
    table = report.markdown_table(header, rows)
    table += "\n\n" + "\n".join(f"import {name}: {seconds * 1000:.0f} ms" for name, seconds in imports.items())
    if folder is not None:
        report.save(folder, "startup", {"batch": batch, "imports": imports, "engines": results}, table)
    return table
