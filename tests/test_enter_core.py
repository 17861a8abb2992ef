"""The door between Python and the core: other threads, signals, exceptions, forks."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import sparse_mixer
from encoders import assert_same_outputs, small_encoder, small_inputs

needs_posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and fork as on POSIX")


@pytest.fixture(scope="module")
def slow() -> tuple[sparse_mixer.SparseMixer, dict[str, Any]]:
    """An encoder and a batch that takes more than a second."""
    encoder = sparse_mixer.SparseMixer(
        100, hidden_size=256, num_layers=4, attention_layers=(3,), moe_layers=(2,), max_sequence_length=256, seed=0
    )
    batch = 4
    while True:
        ids = np.zeros((batch, 256), np.int32)
        inputs = {"input_word_ids": ids, "input_mask": ids + 1, "input_type_ids": ids}
        start = time.perf_counter()
        encoder(inputs, outputs=("pooled_output",))
        if time.perf_counter() - start > 1:
            return encoder, inputs
        batch *= 2


class AlarmError(Exception):
    """Raised by the signal handler of these tests."""


@pytest.fixture
def alarm() -> Iterator[list[float]]:
    """Times at which SIGALRM was delivered; its handler raises `AlarmError`."""
    times: list[float] = []

    def handler(*_: Any) -> None:
        times.append(time.perf_counter())
        raise AlarmError

    previous = signal.signal(signal.SIGALRM, handler)
    yield times
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@needs_posix
@pytest.mark.parametrize("threads", [1, 2])
def test_signals_stop_a_call(slow: Any, alarm: list[float], threads: int) -> None:
    encoder, inputs = slow
    encoder.num_threads = threads
    small = {key: value[:1] for key, value in inputs.items()}
    before = encoder(small)
    for delay in (0.05, 0.2, 0.4):
        signal.setitimer(signal.ITIMER_REAL, delay)
        start = time.perf_counter()
        with pytest.raises(AlarmError):
            encoder(inputs, outputs=("pooled_output",))
        # The handler runs up to 20 ms after the signal; tasks that had begun are finished.
        assert time.perf_counter() - start < delay + 0.5
    assert_same_outputs(encoder(small), before)


@needs_posix
def test_interrupted_set_weights_changes_nothing_or_everything(slow: Any, alarm: list[float]) -> None:
    encoder, _ = slow
    before = encoder.get_weights()
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    try:
        encoder.set_weights([weight + 1 for weight in before])
        time.sleep(0.01)
    except AlarmError:
        pass
    differences = {float((new - old).min()) for new, old in zip(encoder.get_weights(), before, strict=True)}
    assert max(differences) - min(differences) < 1e-5
    encoder.set_weights(before)


def test_other_threads_run_during_a_call(slow: Any) -> None:
    encoder, inputs = slow
    ticks = 0
    done = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.wait(0.01):
            ticks += 1

    thread = threading.Thread(target=count)
    thread.start()
    start = time.perf_counter()
    encoder(inputs, outputs=("pooled_output",))
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    assert ticks > 10 * seconds


def test_calls_see_one_consistent_set_of_weights() -> None:
    encoder, inputs = small_encoder(), small_inputs()
    versions = [small_encoder(seed=seed).get_weights() for seed in (1, 2)]
    expected = []
    for weights in versions:
        encoder.set_weights(weights)
        expected.append(encoder(inputs)["sequence_output"].tobytes())
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for weights in versions:
                encoder.set_weights(weights)

    def read(_: int) -> tuple[bytes, bytes]:
        return encoder(inputs)["sequence_output"].tobytes(), encoder.get_weights()[-2].tobytes()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read, range(400)))
    stop.set()
    for writer in writers:
        writer.join()
    assert {output for output, _ in results} <= set(expected)
    assert {weight for _, weight in results} <= {weights[-2].tobytes() for weights in versions}


def test_losses_belong_to_the_thread() -> None:
    encoder = small_encoder()
    encoder(small_inputs(seed=1))
    before = encoder.aux_losses
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: encoder.aux_losses).result() == {}
        pool.submit(encoder, small_inputs(seed=2)).result()
    np.testing.assert_array_equal(encoder.aux_losses["router_confidence"], before["router_confidence"])


def test_inputs_may_change_during_a_call(slow: Any) -> None:
    encoder, inputs = slow
    expected = encoder(inputs, outputs=("pooled_output",))
    given = {key: value.copy() for key, value in inputs.items()}
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(encoder, given, outputs=("pooled_output",))
        time.sleep(0.3)
        for value in given.values():
            value.fill(2**30)
        assert_same_outputs(call.result(), expected)


def test_any_exception_of_a_callback_comes_through() -> None:
    def leave(_: Any) -> Any:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        small_encoder(inner_activation=leave, num_threads=2)(small_inputs())


@needs_posix
def test_errors_of_callbacks_are_let_go(alarm: list[float]) -> None:
    """Also where a signal comes out instead of them."""
    # Not a set of them: it would run Python code, and with it the handler, when an error goes.
    errors: list[weakref.ref[Exception]] = []

    class OwnError(Exception):
        pass

    def fail(_: Any) -> Any:
        error = OwnError()
        errors.append(weakref.ref(error))
        time.sleep(0.002)
        raise error

    encoder, inputs = small_encoder(inner_activation=fail, num_threads=2), small_inputs()
    came_late = 0
    for number in range(40):
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0001 * number)
        try:
            with contextlib.suppress(OwnError):
                encoder(inputs)
            came_late += 1
            time.sleep(1)
        except AlarmError:
            pass
    gc.collect()
    assert 0 < came_late < 40
    assert errors
    assert not any(error() for error in errors)


def test_errors_of_callbacks_are_not_formatted() -> None:
    """`str()` runs the handlers of signals: what they raise, Ctrl-C among it, would be lost in there."""
    formatted: list[Exception] = []

    class OwnError(Exception):
        def __str__(self) -> str:
            formatted.append(self)
            return "own"

    def fail(_: Any) -> Any:
        raise OwnError

    with pytest.raises(OwnError):
        small_encoder(inner_activation=fail, num_threads=2)(small_inputs())
    assert not formatted


@needs_posix
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
# JAX, which other tests import, warns of every fork.
@pytest.mark.filterwarnings("ignore:os.fork")
def test_forked_children_compute() -> None:
    encoder, inputs = small_encoder(num_threads=2), small_inputs(batch=16)
    expected = encoder(inputs)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert_same_outputs(encoder(inputs), expected)
                encoder.set_weights(encoder.get_weights())
                code = 0
            finally:
                os._exit(code)
        deadline = time.monotonic() + 30
        while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if status == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert status == (child, 0), "the child hung or failed"
