"""Inference of the Base model: sequences per second of every engine in one interleaved run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from tqdm.auto import tqdm

from benchmarks import peak, report
from benchmarks.peers import ENGINES
from benchmarks.timing import interleaved, median_ratio
from benchmarks.worker import Worker
from benchmarks.workload import Workload


@dataclasses.dataclass(frozen=True)
class Row:
    """One engine at one batch size."""

    peer: str
    batch: int
    seconds_per_call: float
    turns: list[float]
    sequences_per_second: float
    ratio: float
    share_of_peak: float


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What an engine computes beside the baseline: the median cosine of tokens, and the largest difference."""

    cosine: float
    difference: float


def agreement(workers: Sequence[Worker], baseline: Worker) -> dict[str, Agreement]:
    """Return for each engine how its outputs for one sequence stand to the baseline's.

    With random weights, lower precision sends some tokens to other experts, and mixing spreads the change to all.
    """
    wanted, pooled = baseline.answer(1)
    found = {}
    for worker in workers:
        sequence, other = worker.answer(1)
        norms = np.linalg.norm(sequence, axis=-1) * np.linalg.norm(wanted, axis=-1)
        cosine = float(np.median((sequence * wanted).sum(-1) / np.maximum(norms, 1e-30)))
        difference = max(float(np.abs(a - b).max()) for a, b in ((sequence, wanted), (other, pooled)))
        found[worker.name] = Agreement(cosine, difference)
    return found


def require_agreement(agrees: dict[str, Agreement], baseline: str, tolerance: float) -> None:
    """Check the largest differences of float32 engines.

    Raises:
        RuntimeError: an engine of float32 computes something else.
    """
    for peer, found in agrees.items():
        if ENGINES[peer].compute == "float32" and not found.difference <= tolerance:
            raise RuntimeError(
                f"{peer}: its outputs differ from those of {baseline} by {found.difference:.3g}; expected {tolerance:g}"
            )


def run(
    peers: Sequence[str],
    batches: Sequence[int],
    threads: int,
    rounds: int,
    baseline: str,
    folder: pathlib.Path | None,
    name: str = "inference",
    *,
    workload: Workload | None = None,
    tolerance: float = math.inf,
    compare: Callable[[Sequence[Row]], list[str]] | None = None,
) -> str:
    """Measure `peers` and return the printed table.

    Args:
        peers: keys of `ENGINES` that take the workload.
        batches: batch sizes.
        threads: threads of every engine.
        rounds: timed turns of each engine per batch size.
        baseline: the peer that ratios refer to (higher is faster).
        folder: where `<name>.json` and `<name>.md` go, or None.
        name: see there.
        workload: what to measure; None for the Base model.
        tolerance: largest difference between outputs of float32 engines.
        compare: makes the lines under the table; None for `comparisons`.

    Raises:
        RuntimeError: an engine of float32 computes something else.
    """
    workload = workload or Workload()
    rates = peak.measure(threads)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(peer, threads)) for peer in peers]
        for worker in tqdm(workers, desc="building", leave=False):
            worker.build(workload)
        by_name = {worker.name: worker for worker in workers}
        agrees = agreement(workers, by_name[baseline])
        require_agreement(agrees, baseline, tolerance)
        rows = [row for batch in batches for row in _rows(workers, workload, batch, rounds, baseline, rates)]

    table = _table(rows, batches, baseline)
    if folder is not None:
        results = {
            "threads": threads,
            "baseline": baseline,
            "operations_per_second_peak": rates,
            "flops_per_sequence": workload.flops_per_sequence(),
            "cosine_to_baseline": {peer: found.cosine for peer, found in agrees.items()},
            "difference_to_baseline": {peer: found.difference for peer, found in agrees.items()},
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        report.save(folder, name, results, table)
    table += "".join(f"\n\n{line}" for line in (compare or comparisons)(rows))
    agree = ", ".join(f"{peer} {found.cosine:.5f} ({found.difference:.1e})" for peer, found in agrees.items())
    label = ENGINES[baseline].label
    return f"{table}\n\nMedian cosine of tokens (largest difference of outputs) to {label}: {agree}"


def comparisons(rows: Sequence[Row]) -> list[str]:
    """Return for each of our engines and batch size how much faster it is than its closest rivals, round by round."""
    rivals = {
        "the better of TensorFlow graph and XLA": ("tf", "tf-xla"),
        "OpenVINO float32": ("openvino-f32",),
        "OpenVINO bfloat16": ("openvino-bf16",),
    }
    turns = {(row.peer, row.batch): row.turns for row in rows}
    lines = []
    for (peer, batch), own in turns.items():
        found = []
        for label, names in rivals.items():
            ratios = [median_ratio(turns[name, batch], own) for name in names if (name, batch) in turns]
            if len(ratios) == len(names):
                found.append(f"{min(ratios):.2f} x {label}")
        if peer.startswith("ours-") and found:
            lines.append(f"{ENGINES[peer].label}, batch {batch}: {', '.join(found)}")
    return lines


def _rows(
    workers: Sequence[Worker], workload: Workload, batch: int, rounds: int, baseline: str, rates: dict[str, float]
) -> list[Row]:
    turns = interleaved(workers, batch, rounds)
    rows = []
    for peer, seconds in turns.items():
        median = statistics.median(seconds)
        ceiling = peak.of_storage_type(rates, ENGINES[peer].compute)
        share = workload.flops_per_sequence() * batch / median / ceiling if ceiling else float("nan")
        rows.append(Row(peer, batch, median, seconds, batch / median, median_ratio(turns[baseline], seconds), share))
    return rows


def _table(rows: Sequence[Row], batches: Sequence[int], baseline: str) -> str:
    header = ["engine"]
    for batch in batches:
        header += [f"seq/s, batch {batch}", f"x {baseline}", "of peak"]
    lines = []
    for peer in dict.fromkeys(row.peer for row in rows):
        cells = [ENGINES[peer].label]
        for row in (row for row in rows if row.peer == peer):
            cells += [f"{row.sequences_per_second:.2f}", f"{row.ratio:.2f}", f"{row.share_of_peak:.0%}"]
        lines.append(cells)
    return report.markdown_table(header, lines)
