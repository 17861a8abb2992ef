"""Our module of PyTorch beside the direct call: inference, training, memory, small calls."""

from __future__ import annotations

import pathlib
import statistics

from benchmarks import report
from benchmarks.keras_layer import BASE, MINI, measure
from benchmarks.timing import median_ratio

KINDS = (
    ("inference, Base, S=128", BASE, ("ours-f32", "torch")),
    ("training step, Base, S=128", BASE, ("train-f32", "train-torch")),
    ("inference, two blocks, S=16", MINI, ("ours-f32", "torch")),
    ("training step, two blocks, S=16", MINI, ("train-f32", "train-torch")),
)


def run(batch: int, threads: int, rounds: int, mini: bool, folder: pathlib.Path | None) -> str:
    """Measure all kinds of calls and return the printed table.

    Args:
        batch: sequences per call.
        threads: threads of every engine.
        rounds: timed turns of each engine.
        mini: leave the Base model out.
        folder: where `torch.json` and `torch.md` go, or None.
    """
    lines, raw = [], {}
    for kind, workload, (direct, module) in KINDS:
        if mini and workload is BASE:
            continue
        turns, peaks = measure(workload, (direct, module), batch, threads, rounds)
        raw[kind] = {"seconds": turns, "peak_bytes": peaks}
        milliseconds = {peer: 1e3 * statistics.median(turns[peer]) for peer in (direct, module)}
        lines.append(
            [
                kind,
                f"{milliseconds[direct]:.2f}",
                f"{milliseconds[module]:.2f}",
                f"{median_ratio(turns[module], turns[direct]):.2f}",
                f"{milliseconds[module] - milliseconds[direct]:.2f}",
                f"{peaks[module] / peaks[direct]:.2f}",
            ]
        )
    header = ["call", "direct ms", "module ms", "module / direct", "added ms", "peak / direct"]
    table = report.markdown_table(header, lines)
    if folder is not None:
        report.save(folder, "torch", {"threads": threads, "batch": batch, "measured": raw}, table)
    return table
