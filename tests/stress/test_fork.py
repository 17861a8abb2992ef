"""Children of a process that has computed: they compute, too, the same bits at the same speed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import small_encoder, small_inputs
from sparse_mixer import optimizers

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    # Python 3.12 and newer warn of any fork of a process with threads; numpy's and the tests' own are enough for that.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]

WATCHDOG = 30.0


def in_child(work: Callable[[], None]) -> None:
    """Does `work` in a forked child; fails if it fails, or hangs for 30 seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(code)
    deadline = time.monotonic() + WATCHDOG
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.002)
    if status == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hung")
    assert status == (child, 0), "the child failed"


def bits(encoder: sparse_mixer.SparseMixer, inputs: dict[str, Any]) -> bytes:
    """A forward pass and all its gradients."""
    outputs, vjp = encoder.vjp(inputs, seed=3)
    grads = vjp({"pooled_output": outputs["pooled_output"]})
    parts = [encoder(inputs)["sequence_output"], outputs["pooled_output"], *grads.values()]
    return b"".join(part.tobytes() for part in parts)


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[None]:
    """Another thread does `work` over and over."""
    done, busy = threading.Event(), threading.Event()

    def loop() -> None:
        while not done.is_set():
            work()
            busy.set()

    thread = threading.Thread(target=loop)
    thread.start()
    busy.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_cycles(scaled: Any, report: Any) -> None:
    """Forward and backward in child after child, some forked while another thread is inside a forward pass."""
    cycles, busy_cycles = scaled((30, 10), (250, 50))
    encoder, inputs = small_encoder(num_threads=2, hidden_size=64, inner_dim=256), small_inputs(batch=16)
    expected = bits(encoder, inputs)

    def child() -> None:
        assert bits(encoder, inputs) == expected
        sparse_mixer.release_scratch()
        assert bits(encoder, inputs) == expected

    start = time.monotonic()
    for _ in range(cycles):
        in_child(child)
        assert bits(encoder, inputs) == expected
    many = small_inputs(batch=512)
    with meanwhile(lambda: encoder(many)):
        for _ in range(busy_cycles):
            in_child(child)
    report(
        cycles=cycles + busy_cycles, of_them_during_a_forward=busy_cycles, seconds=round(time.monotonic() - start, 1)
    )


def test_forks_during_updates(scaled: Any) -> None:
    """A child never finds weights half updated, and can go on training."""
    encoder = small_encoder(num_threads=2, vocab_size=20_000, hidden_size=64)
    ones = {v.key: np.ones(v.shape, np.float32) for v in encoder.weights}
    optimizer = optimizers.AdamW(1.0, weight_decay=0.0)
    optimizer.apply_gradients(encoder, ones)
    before = encoder.get_weights()

    def child() -> None:
        # Adam with constant gradients moves every weight by the same.
        steps = {
            int(np.rint(step)) for a, b in zip(before, encoder.get_weights(), strict=True) for step in (a - b).flat
        }
        assert len(steps) == 1, steps
        iterations = optimizer.iterations
        optimizer.apply_gradients(encoder, ones)
        assert optimizer.iterations == iterations + 1

    with meanwhile(lambda: optimizer.apply_gradients(encoder, ones)):
        for _ in range(scaled(8, 50)):
            in_child(child)


def test_forks_during_a_backward_pass(scaled: Any) -> None:
    """A fork waits until what another thread adds to gradients is added; the child finds sums of whole passes."""
    encoder, inputs = small_encoder(num_threads=2, hidden_size=64), small_inputs(batch=64)
    outputs, vjp = encoder.vjp(inputs, seed=1, persistent=True)
    d_outputs = {"pooled_output": outputs["pooled_output"]}
    once, shared = vjp(d_outputs), vjp(d_outputs)
    bias, kernel = "pooler_transform/bias", "pooler_transform/kernel"

    def child() -> None:
        passes = [
            shared[key].ravel() @ once[key].ravel() / (once[key].ravel() @ once[key].ravel()) for key in (bias, kernel)
        ]
        assert abs(passes[0] - passes[1]) < 0.1, passes
        vjp(d_outputs, into=shared)
        shared.clear()
        assert not shared[bias].any()

    with meanwhile(lambda: vjp(d_outputs, into=shared)):
        for _ in range(scaled(10, 50)):
            in_child(child)


def test_a_fork_in_the_middle_of_an_own_backward_pass() -> None:
    """A thread does not wait for itself: a derivative may start a process."""

    def derivative(x: np.ndarray) -> np.ndarray:
        in_child(lambda: None)
        return np.ones_like(x)

    encoder = small_encoder(num_threads=2, inner_activation=sparse_mixer.Activation(lambda x: x, derivative))
    outputs, vjp = encoder.vjp(small_inputs(), seed=1)
    assert np.isfinite(vjp({"pooled_output": outputs["pooled_output"]})["pooler_transform/bias"]).all()


def test_updates_gradients_and_forks_do_not_wait_for_each_other(scaled: Any) -> None:
    """One thread updates, one clears the gradients that the first one reads, one forks."""
    program = f"""
import os, sys, threading, time
sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
from encoders import small_encoder
from sparse_mixer import gradients, optimizers
encoder = small_encoder(num_threads=2, vocab_size=20_000, hidden_size=64)
optimizer, grads = optimizers.SGD(1e-6), gradients.Gradients(encoder)
end = time.monotonic() + {scaled(3, 20)}
def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
counts = dict()
def repeat(name, work):
    while time.monotonic() < end:
        work()
        counts[name] = counts.get(name, 0) + 1
works = dict(update=lambda: optimizer.apply_gradients(encoder, grads), clear=grads.clear, fork=fork)
threads = [threading.Thread(target=repeat, args=item) for item in works.items()]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert min(counts[name] for name in works) > 10, counts
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG + scaled(3, 20), check=False)
    assert done.returncode == 0, done.stderr


def test_no_child_finds_a_lock_held(scaled: Any) -> None:
    """Of the metrics, which every call updates; with threads that take turns as often as they can."""
    encoder, inputs = small_encoder(num_threads=1), small_inputs(1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(meanwhile(lambda: encoder(inputs)))
            for _ in range(scaled(100, 500)):
                in_child(lambda: [mean.reset_state() for mean in encoder.metrics] and None)
    finally:
        sys.setswitchinterval(interval)


def test_nested_forks() -> None:
    encoder, inputs = small_encoder(num_threads=2), small_inputs(batch=16)
    expected = bits(encoder, inputs)

    def nested(depth: int) -> None:
        assert bits(encoder, inputs) == expected
        if depth:
            in_child(lambda: nested(depth - 1))

    nested(4)


def test_children_are_as_fast(scaled: Any, report: Any) -> None:
    """Medians of interleaved calls in the parent and in a child."""
    encoder = small_encoder(num_threads=2, hidden_size=256, inner_dim=1024, num_layers=4)
    inputs = small_inputs(batch=64)
    rounds, calls = scaled((3, 10), (9, 40))

    def seconds() -> float:
        for _ in range(3):
            encoder(inputs)
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            encoder(inputs)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    ratios = []
    for _ in range(rounds):
        reader, writer = os.pipe()
        parent = seconds()
        in_child(lambda writer=writer: os.write(writer, repr(seconds()).encode()))  # type: ignore[misc]
        child = float(os.read(reader, 100))
        os.close(reader)
        os.close(writer)
        ratios.append(((parent + seconds()) / 2) / child)
    report(childs_speed=f"{statistics.median(ratios):.2f} of the parent's")
    # The machine may be busy with other things; a full run is made on an idle one.
    assert statistics.median(ratios) >= scaled(0.6, 0.9)


_encoder: Any = None


def _compute(seed: int) -> bytes:
    global _encoder
    if _encoder is None:
        _encoder = small_encoder(num_threads=2)
    return bits(_encoder, small_inputs(4, seed))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str) -> None:
    global _encoder
    _encoder = small_encoder(num_threads=2)
    expected = [_compute(seed) for seed in range(4)]
    context = multiprocessing.get_context(method)
    with warnings.catch_warnings(), context.Pool(2) as pool:
        assert pool.map_async(_compute, range(4)).get(WATCHDOG * 2) == expected
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(_compute, range(4), timeout=WATCHDOG * 2)) == expected


def test_joblib() -> None:
    joblib = pytest.importorskip("joblib")
    encoder = small_encoder(num_threads=2)
    expected = [bits(encoder, small_inputs(4, seed)) for seed in range(4)]
    parallel = joblib.Parallel(n_jobs=2, timeout=WATCHDOG * 2)
    assert parallel(joblib.delayed(bits)(encoder, small_inputs(4, seed)) for seed in range(4)) == expected


def test_nothing_is_printed_and_no_warning() -> None:
    """The usual server: compute, fork workers, compute in each."""
    program = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
from encoders import small_encoder, small_inputs
encoder, inputs = small_encoder(num_threads=2), small_inputs(8)
expected = encoder(inputs)["sequence_output"].tobytes()
for _ in range(3):
    child = os.fork()
    if child == 0:
        ok = encoder(inputs)["sequence_output"].tobytes() == expected
        # The ordinary way out, with all that Python does at exit.
        sys.exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
"""
    newer = ["-W", "ignore:This process:DeprecationWarning"] if sys.version_info >= (3, 12) else []
    command = [sys.executable, "-W", "error", *newer, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
