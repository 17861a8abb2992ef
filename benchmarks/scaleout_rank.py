"""What `python -m benchmarks scaleout` starts on each rank: exchanges of gradients, and updates, with their times."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import sparse_mixer
from sparse_mixer import models, optimizers, training
from sparse_mixer.distributed import MPI
from sparse_mixer.distributed.exchange import GradientExchange
from sparse_mixer.distributed.records import Records
from sparse_mixer.gradients import Gradients

SIZES: dict[str, dict[str, Any]] = {
    "base": {"vocab_size": 30522},
    "mini": {"vocab_size": 8000, "hidden_size": 256, "num_layers": 4, "inner_dim": 1024, "max_sequence_length": 128},
}


class Timed(MPI):
    """Notes when collective calls begin and end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls: list[tuple[float, float]] = []

    def alltoall(self, send: Any, lengths: Sequence[int], receive: Any) -> None:
        """As `MPI.alltoall`."""
        start = time.perf_counter()
        super().alltoall(send, lengths, receive)
        self.calls.append((start, time.perf_counter()))

    def allgather(self, whole: Any, lengths: Sequence[int]) -> None:
        """As `MPI.allgather`."""
        start = time.perf_counter()
        super().allgather(whole, lengths)
        self.calls.append((start, time.perf_counter()))


class Times(training.Callback):
    """Notes when updates end."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, trainer: Any, logs: Any) -> None:
        """See `Callback`."""
        self.at.append(time.perf_counter())


class Watched(models.BertClassifier):
    """Notes when forward and backward begin and end."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.spans: list[tuple[float, float]] = []

    def loss_and_gradients(self, batch: Any, **options: Any) -> Any:
        """As in `Model`."""
        start = time.perf_counter()
        found = super().loss_and_gradients(batch, **options)
        self.spans.append((start, time.perf_counter()))
        return found


def build(size: str, threads: int) -> Watched:
    """The model."""
    return Watched(sparse_mixer.SparseMixer(**SIZES[size], seed=1, num_threads=threads), num_classes=2)


def batches(model: Any, batch: int, count: int) -> Any:
    """Random inputs and labels for so many batches."""
    random = np.random.default_rng(0)
    arguments = model.encoder.arguments
    shape = (batch * count, arguments.max_sequence_length)
    inputs = {
        "input_word_ids": random.integers(0, arguments.vocab_size, shape),
        "input_mask": np.ones(shape, np.int32),
        "input_type_ids": np.zeros(shape, np.int32),
    }
    return inputs, random.integers(0, 2, batch * count)


def exchange(model: Watched, communicator: Timed, threads: int, rounds: int) -> tuple[float, float, int]:
    """Median seconds of exchanging all gradients by itself, also of this process's processor time, and their bytes."""
    exchanger = GradientExchange(Records(communicator), threads)
    gradients = Gradients(model)
    for buffer in gradients.buffers:
        buffer.reach([True] * len(buffer.reached()))
    seconds, busy = [], []
    for _ in range(rounds + 1):
        communicator.exchange(b"")
        start, start_busy = time.perf_counter(), time.process_time()
        exchanger.begin(gradients, [], [True] * communicator.size)
        exchanger.end(gradients)
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    leases = [buffer.lease() for buffer in gradients.buffers]
    size = 4 * sum(len(lease) for lease in leases)
    return statistics.median(seconds[1:]), statistics.median(busy[1:]), size


def ready_times(model: Watched, data: Any, batch: int, bucket: int) -> list[tuple[float, int]]:
    """Of each bucket the seconds before the end of backward at which it is finished, and its bytes."""
    gradients = Gradients(model)
    part = ({name: array[:batch] for name, array in data[0].items()}, data[1][:batch])
    found: list[tuple[float, int]] = []
    for _ in range(2):
        gradients.clear()
        found.clear()
        leases = [buffer.lease() for buffer in gradients.buffers]

        def watch(leases: list[Any] = leases) -> None:
            for lease in leases:
                for start in range(0, len(lease), bucket // 4):
                    end = min(start + bucket // 4, len(lease))
                    lease.wait_ready(end)
                    found.append((time.perf_counter(), 4 * (end - start)))
            leases.clear()

        thread = threading.Thread(target=watch)
        thread.start()
        del leases
        model.loss_and_gradients(part, seed=0, into=gradients)
        end = time.perf_counter()
        for buffer in gradients.buffers:
            buffer.finish()
        thread.join()
    return [(max(0.0, end - at), size) for at, size in found]


def updates(model: Watched, communicator: Timed, data: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians over updates: all of it, forward and backward, and what of the exchange comes after these."""
    times = Times()
    model.spans.clear()
    communicator.calls.clear()
    model.fit(
        data,
        optimizer=optimizers.AdamW(1e-5),
        batch_size=arguments.batch,
        accumulation_steps=communicator.size,
        callbacks=[times],
        progress=False,
        seed=0,
        communicator=communicator,
    )
    skipped = 2
    totals = np.diff(times.at)[skipped - 1 :]
    ends = [end for _, end in model.spans][skipped:]
    after = []
    for end, update_end in zip(ends, times.at[skipped:], strict=True):
        own = [stop for _, stop in communicator.calls if stop <= update_end]
        after.append(max(0.0, (own[-1] if own else end) - end))
    return {
        "update": statistics.median(totals),
        "compute": statistics.median(end - start for start, end in model.spans[skipped:]),
        "exposed": statistics.median(after),
    }


def peak_bytes() -> int:
    """The most memory that this process has had (Linux)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure, and print a line of JSON on rank 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=list(SIZES), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--wire", required=True)
    parser.add_argument("--no-overlap", action="store_true")
    arguments = parser.parse_args()
    communicator = Timed(wire_dtype=arguments.wire, overlap=not arguments.no_overlap)
    model = build(arguments.size, arguments.threads)
    data = batches(model, arguments.batch, communicator.size * (arguments.updates + 2))
    alone, busy, size = exchange(model, communicator, arguments.threads, 3)
    result = {"ranks": communicator.size, "exchange": alone, "busy": busy, "bytes": size}
    result |= updates(model, communicator, data, arguments)
    result["peak"] = max(json.loads(peak) for peak in communicator.exchange(json.dumps(peak_bytes()).encode()))
    if communicator.size == 1:
        result["ready"] = ready_times(model, data, arguments.batch, communicator.bucket_bytes)
    if not communicator.rank:
        print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
