"""One encoder in many Python threads, while others change it, save it and copy it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import sparse_mixer
from encoders import assert_same_outputs, small_encoder, small_inputs
from sparse_mixer import optimizers
from sparse_mixer.gradients import Gradients


def everything(encoder: sparse_mixer.SparseMixer, number: int) -> bytes:
    """The bits of a forward pass and of all its gradients."""
    inputs = small_inputs(1 + number % 3, number % 4)
    if number % 5:
        return encoder(inputs)["sequence_output"].tobytes()
    outputs, vjp = encoder.vjp(inputs, seed=3)
    grads = vjp({"pooled_output": outputs["pooled_output"]})
    return outputs["pooled_output"].tobytes() + b"".join(grads[key].tobytes() for key in grads)


def test_readers_and_writers(scaled: Any, report: Any, tmp_path: Path) -> None:
    threads, calls, writers = scaled((8, 60, 4), (32, 300, 4))
    versions = [small_encoder(seed=seed).get_weights() for seed in (1, 2)]
    # Twelve different calls (batch, inputs) recur: lcm(3, 4); every fifth one differentiates: period 60.
    serial: list[set[bytes]] = [set() for _ in range(60)]
    for weights in versions:
        reference = small_encoder(num_threads=1)
        reference.set_weights(weights)
        for number, results in enumerate(serial):
            results.add(everything(reference, number))
    assert all(len(results) == 2 for results in serial)

    encoder = small_encoder(num_threads=2)
    encoder.set_weights(versions[0])
    done = threading.Event()
    written = [0] * writers

    def write(writer: int) -> None:
        while not done.is_set():
            encoder.set_weights(versions[written[writer] % 2])
            encoder.num_threads = 1 + written[writer] % 3
            if writer == 0:
                encoder.save(tmp_path / "weights.safetensors")
                encoder.load_weights(tmp_path / "weights.safetensors")
            if writer == 1:
                copy = pickle.loads(pickle.dumps(encoder))
                assert {w.tobytes() for w in copy.get_weights()[-2:]} <= known
            if writer == 2:
                sparse_mixer.release_scratch()
            written[writer] += 1

    known = {w.tobytes() for weights in versions for w in weights[-2:]}

    def read(reader: int) -> int:
        return sum(everything(encoder, reader + n) not in serial[(reader + n) % 60] for n in range(calls))

    with ThreadPoolExecutor(threads + writers) as pool:
        writing = [pool.submit(write, writer) for writer in range(writers)]
        differing = sum(pool.map(read, range(threads)))
        done.set()
        for writer in writing:
            writer.result()
    report(calls=threads * calls, writes=sum(written), differing=differing)
    assert differing == 0
    assert min(written) > 0


def test_gradients_and_updates_of_many_threads_add_up() -> None:
    """Threads that share buffers and an optimiser wait for each other, however the pool deals out their work."""
    encoder = small_encoder(num_threads=2, hidden_size=64, inner_dim=256)
    outputs, vjp = encoder.vjp(small_inputs(16), seed=1, persistent=True)
    d_outputs = {"sequence_output": np.ones_like(outputs["sequence_output"])}
    once, shared = vjp(d_outputs), Gradients(encoder)
    optimizer = optimizers.SGD(1e-6)

    def add(_: int) -> None:
        for _ in range(5):
            vjp(d_outputs, into=shared)
            optimizer.apply_gradients(encoder, once)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert optimizer.iterations == 40
    bias = "pooler_transform/bias"
    table = "position_embedding/embeddings"
    np.testing.assert_allclose(shared[bias], 40 * once[bias], rtol=1e-5)
    np.testing.assert_allclose(shared[table], 40 * once[table], rtol=1e-3, atol=1e-3)


def test_a_change_never_shows_half(scaled: Any) -> None:
    """Updates happen in place; a reader sees the weights before or after one, and calls use one set throughout."""
    encoder = small_encoder(num_threads=2)
    gradients = {v.key: np.ones(v.shape, np.float32) for v in encoder.weights}
    optimizer = optimizers.SGD(1.0)
    before = [weight.copy() for weight in encoder.get_weights()]
    done = threading.Event()
    seen: set[int] = set()

    def watch() -> None:
        while not done.is_set():
            steps = {int(np.rint((b - a).flat[0])) for b, a in zip(before, encoder.get_weights(), strict=True)}
            assert len(steps) == 1
            seen.update(steps)

    with ThreadPoolExecutor(4) as pool:
        watching = [pool.submit(watch) for _ in range(4)]
        updates, end = 0, time.monotonic() + 60
        # Threads that are kept waiting see few of them.
        while updates < scaled(50, 500) or (len(seen) <= 2 and time.monotonic() < end):
            optimizer.apply_gradients(encoder, gradients)
            updates += 1
        done.set()
        for watcher in watching:
            watcher.result()
    assert len(seen) > 2
    assert seen <= set(range(updates + 1))
    for was, now in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_allclose(now, was - updates, rtol=1e-5)


def test_inputs_that_another_thread_changes(scaled: Any) -> None:
    """The result is that of one moment's inputs: they are copied, and ids are checked in the copy."""
    encoder = small_encoder(num_threads=1, attention_layers=())
    inputs = small_inputs(1)
    ids = inputs["input_word_ids"]
    # A copy made between two values has an id that is refused, so these are the only results there can be.
    possible = [encoder(inputs)["sequence_output"].tobytes()]
    possible += [encoder(inputs | {"input_word_ids": np.full_like(ids, 3)})["sequence_output"].tobytes()]
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            ids[:] = -1
            ids[:] = 2**30
            ids[:] = 3

    complaints, results = set(), set()
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        end = time.monotonic() + scaled(0.5, 10)
        while time.monotonic() < end:
            try:
                results.add(encoder(inputs)["sequence_output"].tobytes())
            except ValueError as error:
                complaints.add(str(error)[:22])
        done.set()
        changing.result()
    ids[:] = 3
    assert_same_outputs(encoder(inputs), small_encoder(attention_layers=())(inputs))
    assert results <= set(possible)
    assert complaints <= {"input_word_ids: got id"}


def test_activations_that_call_other_encoders(scaled: Any) -> None:
    """They wait for weights that another thread updates with the threads of the same pool."""
    program = f"""
import sys, threading
sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
import numpy as np
from encoders import small_encoder, small_inputs
from sparse_mixer import optimizers
inner, inputs = small_encoder(num_threads=2, vocab_size=20_000), small_inputs(8)
ones = {{v.key: np.ones(v.shape, np.float32) for v in inner.weights}}
optimizer = optimizers.SGD(1e-6)
def activation(x):
    inner(inputs)
    if threading.current_thread() is callers[0]:
        optimizer.apply_gradients(inner, ones)
    return np.maximum(x, 0)
outer = small_encoder(num_threads=2, inner_activation=activation)
def calls():
    for _ in range({scaled(20, 200)}):
        outer(inputs)
def updates():
    while any(caller.is_alive() for caller in callers):
        optimizer.apply_gradients(inner, ones)
callers = [threading.Thread(target=calls) for _ in range(4)]
updater = threading.Thread(target=updates)
for thread in [*callers, updater]: thread.start()
for thread in [*callers, updater]: thread.join()
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=scaled(60, 600), check=False)
    assert done.returncode == 0, done.stderr
