"""Assigning weights: touches what is given, wholly or not at all, and leaves running calls alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder, small_inputs
from memory_of_calls import python
from sparse_mixer import models

STATM = Path("/proc/self/statm")
CLEAR_REFS = Path("/proc/self/clear_refs")


def large_encoder() -> Any:
    """About 50 MB of weights."""
    return small_encoder(hidden_size=256, inner_dim=1024, vocab_size=20_000, num_experts=8, num_threads=2)


def output(encoder: Any) -> Any:
    return encoder(small_inputs())["sequence_output"]


def fastest(work: Callable[[], Any], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_a_bias_takes_no_longer_than_its_size() -> None:
    encoder = large_encoder()
    weights = encoder.get_weights()
    bias = next(variable for variable in encoder.weights if variable.key.endswith("bias"))
    values = bias.numpy()
    one = fastest(lambda: bias.assign(values), 20)
    assert one < fastest(lambda: encoder.set_weights(weights), 3) / 50


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's count of a process's memory")
def test_a_bias_is_all_that_is_copied_while_a_record_lives() -> None:
    encoder = large_encoder()
    bias = next(variable for variable in encoder.weights if variable.key.endswith("bias"))
    before = bias.numpy()
    _, vjp = encoder.vjp(small_inputs(), training=False)
    size = encoder.count_params() * 4
    resident = int(STATM.read_text().split()[1])
    for step in range(3):
        bias.assign(before + step)
    grown = (int(STATM.read_text().split()[1]) - resident) * 4096
    assert grown < size / 5
    # The record has the weights of the moment in which it was made.
    changed = vjp({"sequence_output": np.sin(np.arange(2 * 8 * 256, dtype=np.float32)).reshape(2, 8, 256)})
    bias.assign(before)
    _, again = encoder.vjp(small_inputs(), training=False)
    expected = again({"sequence_output": np.sin(np.arange(2 * 8 * 256, dtype=np.float32)).reshape(2, 8, 256)})
    for key, gradient in expected.items():
        np.testing.assert_array_equal(changed[key], gradient, key)


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="reads a process's peak of memory from Linux")
def test_weights_that_nobody_uses_are_written_over() -> None:
    """Assigning takes no memory for a second copy; where a record has the weights, it keeps them and there are two."""
    alone, beside_a_record, weights = python("""
encoder = small_encoder(hidden_size=256, inner_dim=1024, vocab_size=50_000, num_threads=2)
values = encoder.get_weights()
def peak():
    trim()
    with open("/proc/self/clear_refs", "w") as clear: clear.write("5")
    before = memory("VmRSS")
    encoder.set_weights(values)
    return memory("VmHWM") - before
peak()
alone = peak()
_, vjp = encoder.vjp(small_inputs())
print(alone, peak(), encoder.weight_bytes)
""")
    assert alone < 0.05 * weights
    assert beside_a_record > 0.9 * weights


@pytest.mark.parametrize("beside_a_record", [False, True])
def test_every_assignment_is_a_new_version(beside_a_record: bool) -> None:
    encoder = small_encoder()
    record = encoder.vjp(small_inputs()) if beside_a_record else None
    before, weights = encoder.weights_version, encoder.get_weights()
    encoder.set_weights([array + 1 for array in weights])
    assert encoder.weights_version > before
    for array, old in zip(encoder.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(array, old + 1)
    del record


def test_threads_that_call_meanwhile_see_weights_of_one_assignment() -> None:
    """All zeros or all ones: with either, every position has the same output."""
    encoder = small_encoder(num_threads=1)
    zeros, ones = ([np.full(array.shape, value, np.float32) for array in encoder.get_weights()] for value in (0, 1))
    expected = []
    for weights in (zeros, ones):
        encoder.set_weights(weights)
        expected.append(output(encoder).tobytes())
    seen: set[bytes] = set()
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            seen.add(output(encoder).tobytes())

    thread = threading.Thread(target=call)
    thread.start()
    try:
        for _ in range(200):
            encoder.set_weights(zeros)
            encoder.set_weights(ones)
    finally:
        done.set()
        thread.join()
    assert seen <= set(expected)


def test_one_by_one_is_all_at_once() -> None:
    one, other = small_encoder(), small_encoder()
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.1, array.shape).astype(np.float32) for array in one.get_weights()]
    one.set_weights(weights)
    for variable, values in zip(other.weights, weights, strict=True):
        variable.assign(values)
    np.testing.assert_array_equal(output(one), output(other))
    for array, values in zip(other.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("mechanism", ["circulant", "toeplitz"])
@pytest.mark.parametrize("use_fft", [False, True])
def test_mixing_follows_its_vectors_and_only_them(mechanism: str, use_fft: bool) -> None:
    encoder = small_encoder(mixing_mechanism=mechanism, use_fft=use_fft)
    rng = np.random.default_rng(1)
    for variable in encoder.weights:
        variable.assign(variable.numpy() + rng.normal(0, 0.1, variable.shape).astype(np.float32))
        fresh = small_encoder(mixing_mechanism=mechanism, use_fft=use_fft)
        fresh.set_weights(encoder.get_weights())
        np.testing.assert_array_equal(output(encoder), output(fresh), variable.key)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_a_refused_assignment_changes_nothing(dtype: str) -> None:
    encoder = small_encoder().astype(dtype)
    before, weights = output(encoder), encoder.get_weights()
    wrong = [array + 1 for array in weights]
    wrong[-1] = wrong[-1][..., :-1]
    with pytest.raises(ValueError, match="expected shape"):
        encoder.set_weights(wrong)
    indices = list(range(len(wrong)))
    with pytest.raises(ValueError, match="expected"):
        encoder.core.assign(indices, wrong)
    with pytest.raises(ValueError, match="index: got 1000"):
        encoder.core.assign([0, 1000], [weights[0] + 1, weights[0]])
    np.testing.assert_array_equal(output(encoder), before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_converted_weights_are_those_assigned(dtype: str) -> None:
    full = small_encoder()
    assigned = small_encoder(dtype=dtype)
    assigned.set_weights(full.get_weights())
    converted = full.astype(dtype)
    np.testing.assert_array_equal(output(converted), output(assigned))
    for one, other in zip(converted.get_weights(), assigned.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_head_keeps_what_is_not_assigned() -> None:
    model = models.BertClassifier(small_encoder(), 3, seed=0)
    (head,) = model.heads.values()
    *_, bias = head.all_variables
    before = [variable.numpy() for variable in head.all_variables]
    bias.assign(bias.numpy() + 1)
    after = [variable.numpy() for variable in head.all_variables]
    for one, other in zip(before[:-1], after[:-1], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(after[-1], before[-1] + 1)
