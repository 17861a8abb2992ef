"""Replacing and converting the weights of the Base model, beside plain copies of the same arrays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import sparse_mixer


def _line(name: str, work: Callable[[], object], rounds: int) -> str:
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return f"{name:26} {min(times):9.2f} {statistics.median(times):9.2f}"


def run(threads: int, rounds: int) -> str:
    """Return a table of milliseconds, least and median."""
    encoder = sparse_mixer.SparseMixer(vocab_size=30522, seed=0, num_threads=threads)
    values = encoder.get_weights()
    variables = encoder.weights
    buffers = [np.empty_like(value) for value in values]
    table = next(i for i, variable in enumerate(variables) if "word_embeddings" in variable.name)
    bias = next(i for i, variable in enumerate(variables) if "bias" in variable.name)

    def copy() -> None:
        for buffer, value in zip(buffers, values, strict=True):
            np.copyto(buffer, value)

    def one_by_one() -> None:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    size = sum(value.nbytes for value in values) / 1e6
    return "\n".join(
        [
            f"{len(values)} weights, {size:.0f} MB; milliseconds       least    median",
            _line("copy into arrays", copy, rounds),
            _line("copy into new arrays", lambda: [value.copy() for value in values], rounds),
            _line("set_weights", lambda: encoder.set_weights(values), rounds),
            _line("assign one by one", one_by_one, rounds),
            _line("assign a bias", lambda: variables[bias].assign(values[bias]), rounds),
            _line("assign the word table", lambda: variables[table].assign(values[table]), rounds),
            *(_line(f"astype {t}", lambda t=t: encoder.astype(t), rounds) for t in ("bfloat16", "float16", "int8")),  # type: ignore[misc]
        ]
    )
