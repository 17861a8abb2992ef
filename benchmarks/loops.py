"""A training step of the Base model by `fit` and by the loops that the docs show: seconds and peak memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import sparse_mixer
from sparse_mixer import gradients, models, optimizers, training

LOOPS = ("fit", "plain", "model", "into", "frozen")
"""`fit`; the loop over an encoder, with all outputs, and over a model, as the docs show them; gradients of one's own,
cleared and added to; `fit` with the encoder frozen."""


class _Times(training.Callback):
    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, trainer: Any, logs: Any) -> None:
        self.at.append(time.perf_counter())


def measure(loop: str, batch: int, steps: int, threads: int) -> str:
    """Return seconds and MiB; in a process of its own, for the peak's sake."""
    import resource

    random = np.random.default_rng(0)
    encoder = sparse_mixer.SparseMixer(vocab_size=30522, seed=1, num_threads=threads)
    shape = (batch, 512)
    inputs = {
        "input_word_ids": random.integers(0, 30522, shape),
        "input_mask": np.ones(shape, np.int32),
        "input_type_ids": np.zeros(shape, np.int32),
    }
    optimizer, times = optimizers.AdamW(1e-5), _Times()
    if loop in ("fit", "frozen"):
        encoder.trainable = loop == "fit"
        data = (
            {key: np.tile(value, (steps, 1)) for key, value in inputs.items()},
            random.integers(0, 2, batch * steps),
        )
        model = models.BertClassifier(encoder, num_classes=2)
        model.fit(data, optimizer=optimizer, batch_size=batch, callbacks=[times], progress=False)
    elif loop == "model":
        model, labels = models.BertClassifier(encoder, num_classes=2), random.integers(0, 2, batch)
        for step in range(steps):
            _, found = model.loss_and_gradients((inputs, labels), seed=step)
            optimizer.apply_gradients(model, found)
            times.at.append(time.perf_counter())
    else:
        cotangents = {"pooled_output": np.full((batch, encoder.get_config()["hidden_size"]), 1e-3, np.float32)}
        kept = gradients.Gradients(encoder) if loop == "into" else None
        for step in range(steps):
            if kept is None:
                outputs, vjp = encoder.vjp(inputs, training=True, seed=step)
                assert outputs.keys() == {"sequence_output", "pooled_output", "encoder_outputs"}
                found = vjp(cotangents)
            else:
                kept.clear()
                _, vjp = encoder.vjp(inputs, training=True, seed=step, outputs=["pooled_output"])
                found = vjp(cotangents, into=kept)
            optimizer.apply_gradients(encoder, found)
            times.at.append(time.perf_counter())
    seconds = statistics.median(np.diff(times.at))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{seconds} {peak}"


def run(batch: int, steps: int, threads: int, rounds: int) -> str:
    """Return a table: seconds of a step, the first one left out, and peak of the process, and both over those of `fit`.

    Medians over rounds, in each of which all loops take turns.
    """
    measured: dict[str, list[tuple[float, float]]] = {loop: [] for loop in LOOPS}
    for _ in range(rounds):
        for loop in LOOPS:
            program = f"from benchmarks.loops import measure; print(measure({loop!r}, {batch}, {steps}, {threads}))"
            done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
            seconds, peak = map(float, done.stdout.splitlines()[-1].split())
            measured[loop].append((seconds, peak))
    lines = []
    for loop in LOOPS:
        seconds, peak = np.median(measured[loop], axis=0)
        times, peaks = np.median(np.divide(measured[loop], measured["fit"]), axis=0)
        lines.append(f"{loop:8} {seconds:8.2f} s {times:7.3f} x {peak:8.0f} MiB {peaks:7.3f} x")
    return "\n".join(lines)
