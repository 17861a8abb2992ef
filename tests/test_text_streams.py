"""Long streams of texts through `TextEncoder`: few at a time; Ctrl-C comes out soon and leaves nothing half done."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
from sparse_mixer import SparseMixer, TextEncoder
from text_models import LETTERS, VOCABULARY, small_model

# Seconds from Ctrl-C to the exception, on a machine that does other things besides.
MOST = 1.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """A model of which `LONG` takes many seconds."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    layers: dict[str, Any] = {"attention_layers": range(4), "moe_layers": (), "shorter_sequences": True}
    sizes: dict[str, Any] = {"hidden_size": 256, "num_layers": 4, "inner_dim": 1024, "max_sequence_length": 256}
    return TextEncoder(SparseMixer(len(VOCABULARY), **sizes, **layers, seed=0), folder / "vocab.txt")


LONG = ["a " * 250] * 2000


def test_an_endless_stream(model: TextEncoder) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield LETTERS[number % 12]

    stream = model.embed(endless(), batch_size=16)
    found = np.stack([next(stream) for _ in range(40)])
    assert taken == 48
    np.testing.assert_array_equal(found, model.encode([LETTERS[i % 12] for i in range(40)]))


def test_memory_is_that_of_a_batch(model: TextEncoder) -> None:
    """Vectors and texts that have been handed out are not held on to."""
    texts = (" ".join(LETTERS[: 1 + i % 12]) + " " * 3000 for i in range(2000))
    stream = model.embed(texts, batch_size=64)
    for _ in range(500):
        next(stream)
    gc.collect()
    tracemalloc.start()
    try:
        count = sum(1 for _ in stream)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 1500
    # 1,500 of these texts are 4.5 MB.
    assert peak < 1_500_000


def test_an_error_of_the_source_comes_out(model: TextEncoder) -> None:
    def broken() -> Iterator[Any]:
        yield from ["a", "b", "c"]
        raise OSError("the disk is gone")

    stream = model.embed(broken(), batch_size=2)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    with pytest.raises(TypeError, match=r"inputs\[1\]: expected a text or a pair of texts, got 3"):
        list(model.embed(iter(["a", 3])))


def interrupted(work: Callable[[], Any], delay: float) -> float:
    """Seconds from SIGINT to the KeyboardInterrupt that comes out of `work`.

    Without collections of garbage meanwhile: Python loses a signal that comes while one calls somebody, as hypothesis
    wants to be.
    """
    sent: list[float] = []

    def send() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(delay, send)
    gc.disable()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        timer.join()
        gc.enable()
    return time.perf_counter() - sent[0]


@pytest.mark.parametrize("delay", [0.05, 0.4])
def test_ctrl_c_in_encode(delay: float, slow: TextEncoder) -> None:
    few = LONG[:3]
    before = slow.encode(few)
    out = np.zeros((len(LONG), 256), np.float32)
    assert interrupted(lambda: slow.encode(LONG, out=out), delay) < MOST
    # What was done is done; the rest is untouched, and no row half written.
    done = np.flatnonzero(np.abs(out).sum(axis=1))
    assert len(done) < len(LONG)
    assert all(np.array_equal(out[row], before[0]) for row in done)
    assert interrupted(lambda: slow.encode(LONG, output_value="token_embeddings"), delay) < MOST
    np.testing.assert_array_equal(slow.encode(few), before)


def test_ctrl_c_in_embed(slow: TextEncoder) -> None:
    source = iter(LONG)
    stream = slow.embed(source, batch_size=8)
    first = next(stream)
    assert interrupted(lambda: list(stream), 0.3) < MOST
    with pytest.raises(StopIteration):
        next(stream)
    # The source goes on behind the batch that was lost.
    assert 0 < len(list(source)) < len(LONG) - 8
    np.testing.assert_array_equal(slow.encode(LONG[0]), first)


def test_ctrl_c_while_texts_become_tokens(model: TextEncoder) -> None:
    texts = [" ".join(LETTERS) * 20] * 100_000
    assert interrupted(lambda: model.encode(texts, on_truncation="ignore"), 0.3) < MOST
    assert interrupted(lambda: model.token_count(texts), 0.3) < MOST
