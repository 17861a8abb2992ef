"""Our Keras layer beside the direct call and TensorFlow's class: inference, training, memory, small calls."""

from __future__ import annotations

import contextlib
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import report
from benchmarks.timing import interleaved, median_ratio
from benchmarks.worker import Worker
from benchmarks.workload import Workload

BASE = Workload(max_sequence_length=128)
MINI = Workload(
    vocab_size=1000,
    hidden_size=64,
    num_layers=2,
    moe_layers=(0,),
    attention_layers=(1,),
    num_experts=4,
    num_attention_heads=2,
    max_sequence_length=16,
    inner_dim=128,
)

KINDS = (
    ("inference, Base, S=128", BASE, ("ours-f32", "keras", "tf")),
    ("training step, Base, S=128", BASE, ("train-f32", "train-keras", "train-tf")),
    ("inference, two blocks, S=16", MINI, ("ours-f32", "keras", "tf")),
    ("training step, two blocks, S=16", MINI, ("train-f32", "train-keras", "train-tf")),
)


def run(wanted: Sequence[str], batch: int, threads: int, rounds: int, folder: pathlib.Path | None) -> str:
    """Measure kinds of calls and return the printed table.

    Args:
        wanted: words of the kinds wanted, such as "two blocks"; none for all.
        batch: sequences per call.
        threads: threads of every engine.
        rounds: timed turns of each engine.
        folder: where `keras.json` and `keras.md` go, or None.
    """
    lines, raw = [], {}
    for kind, workload, peers in KINDS:
        if wanted and not any(words in kind for words in wanted):
            continue
        turns, peaks = measure(workload, peers, batch, threads, rounds)
        raw[kind] = {"seconds": turns, "peak_bytes": peaks}
        direct, layer, reference = peers
        milliseconds = {peer: 1e3 * statistics.median(turns[peer]) for peer in peers}
        lines.append(
            [
                kind,
                *(f"{milliseconds[peer]:.2f}" for peer in peers),
                f"{median_ratio(turns[layer], turns[direct]):.2f}",
                f"{median_ratio(turns[layer], turns[reference]):.2f}",
                f"{milliseconds[layer] - milliseconds[direct]:.2f}",
                f"{peaks[layer] / peaks[reference]:.2f}",
            ]
        )
    header = ["call", "direct ms", "layer ms", "TensorFlow ms", "layer / direct", "layer / TF", "added ms", "peak / TF"]
    table = report.markdown_table(header, lines)
    if folder is not None:
        report.save(folder, "keras", {"threads": threads, "batch": batch, "measured": raw}, table)
    return table


def measure(
    workload: Workload, peers: Sequence[str], batch: int, threads: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time engines in turn.

    Returns:
        For each engine the seconds per call of its turns, and the bytes of its process at their peak.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(peer, threads)) for peer in peers]
        for worker in workers:
            worker.build(workload)
            worker.reset_peak()
        turns = interleaved(workers, batch, rounds)
        return turns, {worker.name: worker.memory().peak for worker in workers}
